// A tile of a matrix product, computed by a block of 256 or 512 threads: M x N sums.  The depth goes through shared
// memory in steps of DEPTH; a step holds M rows of the left matrix and N rows of the (transposed) right one.
#pragma once

#include "platform.cuh"

namespace dip_fast::cuda {

constexpr int THREADS = 256, WARP = 32;

template <int M_, int N_, int WARPS_DOWN_, int THREADS_ = THREADS>
struct Tile {
  static constexpr int M = M_, N = N_, THREADS = THREADS_, WARPS_DOWN = WARPS_DOWN_,
                       WARPS_ACROSS = THREADS / WARP / WARPS_DOWN;
};

// The layout of a step in shared memory.  Convolutions read along the depth, gradients of weights along the rows, and
// each stores a step as it reads it.
enum class Layout { depth_contiguous, rows_contiguous };

// A 32-bit word of shared memory: the numbers of one row that are neighbours along the depth.
template <class Factor>
struct alignas(sizeof(Factor) < 4 ? 4 : sizeof(Factor)) Word {
  static constexpr int COUNT = sizeof(Factor) < 4 ? int(4 / sizeof(Factor)) : 1;
  Factor at[COUNT];
};

// Stores four neighbours to shared memory, as one vector where the pitch keeps them aligned.
template <int PITCH, class Factor>
DIP_FAST_D void store_quad(Factor* to, const Quad<Factor>& quad) {
  if constexpr (PITCH % 4 == 0) {
    *reinterpret_cast<Quad<Factor>*>(to) = quad;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = quad.at[i];
  }
}

// Copies four neighbours from global to shared memory asynchronously, see copy_async.
template <int PITCH, class Factor>
DIP_FAST_D void copy_quad_async(Factor* to, const Factor* from) {
  constexpr int AT_ONCE = PITCH % 4 != 0 || sizeof(Factor) > 4 ? 1 : 4;
#pragma unroll
  for (int i = 0; i < 4; i += AT_ONCE) copy_async<AT_ONCE* int(sizeof(Factor))>(to + i, from + i);
}

// ---- float32 and float64, with ordinary multiplications and additions: thread (i, j) of 16 x 16 owns the sums of rows
// i + 16 r and columns j + 16 c

template <class Factor, class T, Layout layout = Layout::depth_contiguous>
struct Product {
  using Sum = Factor;
  static constexpr int DEPTH = 16, WORDS = DEPTH, DOWN = T::M / 16, ACROSS = T::N / 16;
  // ROW: from row to row.  LEFT, RIGHT: from word to word of either matrix.  BEGIN: where the right matrix begins.
  static constexpr int PITCH = DEPTH + 1, ROW = layout == Layout::depth_contiguous ? PITCH : 1,
                       LEFT = layout == Layout::depth_contiguous ? 1 : T::M,
                       RIGHT = layout == Layout::depth_contiguous ? 1 : T::N,
                       BEGIN = layout == Layout::depth_contiguous ? T::M * PITCH : DEPTH * T::M,
                       SIZE = BEGIN / T::M * (T::M + T::N);
  Sum sums[DOWN][ACROSS] = {};

  // The sums of a step are formed apart and added at its end: this rounds less than one long chain of additions.
  DIP_FAST_D void step(const Factor* factors) {
    const int i = threadIdx.x / 16, j = threadIdx.x % 16;
    const Factor *a = factors + i * ROW, *b = factors + BEGIN + j * ROW;
    Sum own[DOWN][ACROSS] = {};
#pragma unroll 4
    for (int d = 0; d < DEPTH; ++d) {
      Factor left[DOWN], right[ACROSS];
#pragma unroll
      for (int r = 0; r < DOWN; ++r) left[r] = a[16 * r * ROW + d * LEFT];
#pragma unroll
      for (int c = 0; c < ACROSS; ++c) right[c] = b[16 * c * ROW + d * RIGHT];
#pragma unroll
      for (int r = 0; r < DOWN; ++r)
#pragma unroll
        for (int c = 0; c < ACROSS; ++c) own[r][c] += left[r] * right[c];
    }
#pragma unroll
    for (int r = 0; r < DOWN; ++r)
#pragma unroll
      for (int c = 0; c < ACROSS; ++c) sums[r][c] += own[r][c];
  }

  DIP_FAST_D void store(Sum* to, int pitch) const {
    const int i = threadIdx.x / 16, j = threadIdx.x % 16;
#pragma unroll
    for (int r = 0; r < DOWN; ++r)
#pragma unroll
      for (int c = 0; c < ACROSS; ++c) to[(i + 16 * r) * pitch + j + 16 * c] = sums[r][c];
  }
};

// ---- tensor cores.  A word is one TF32 number or two 16-bit ones; counted in words, the fragments of all three
// formats are the same

// d += a b, with 16 x 8 sums for each of DOWN x ACROSS fragments.  Lane 4 g + t of the warp holds words t and t + 4 of
// rows g and g + 8 of a, the same words of row g of b, and columns 2 t and 2 t + 1 of rows g and g + 8 of d.
template <class Factor, int DOWN, int ACROSS>
DIP_FAST_D void multiply_fragments(float (&d)[DOWN][ACROSS][4], const uint32_t (&a)[DOWN][4],
                                   const uint32_t (&b)[ACROSS][2]) {
#ifdef DIP_FAST_EMULATED
  struct Fragments {
    uint32_t a[DOWN][4], b[ACROSS][2];
  };
  static_assert(sizeof(Fragments) <= 256);
  const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
  auto* own = reinterpret_cast<Fragments*>(simt::warp_slot());
  std::memcpy(own->a, a, sizeof a);
  std::memcpy(own->b, b, sizeof b);
  simt::sync_warp();
  const auto value = [](uint32_t word, int part) -> float {
    if constexpr (std::is_same_v<Factor, TF32>)
      return part == 0 ? simt::as_float(word & ~0x1fffu) : 0;
    else
      return widened(Factor{uint16_t(word >> (16 * part))});
  };
  for (int i = 0; i < DOWN; ++i)
    for (int j = 0; j < ACROSS; ++j)
      for (int e = 0; e < 4; ++e)
        for (int word = 0; word < 8; ++word) {
          const auto *left = reinterpret_cast<const Fragments*>(simt::warp_slot(4 * g + word % 4)),
                     *right = reinterpret_cast<const Fragments*>(simt::warp_slot(4 * (2 * t + e % 2) + word % 4));
          const uint32_t x = left->a[i][2 * (word / 4) + e / 2], y = right->b[j][word / 4];
          d[i][j][e] += value(x, 0) * value(y, 0) + value(x, 1) * value(y, 1);
        }
  simt::sync_warp();
#else
#pragma unroll
  for (int i = 0; i < DOWN; ++i)
#pragma unroll
    for (int j = 0; j < ACROSS; ++j) {
      float* s = d[i][j];
      if constexpr (std::is_same_v<Factor, TF32>)
        asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
            : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])
            : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "r"(b[j][0]), "r"(b[j][1]));
      else if constexpr (std::is_same_v<Factor, BFloat16>)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
            : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])
            : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "r"(b[j][0]), "r"(b[j][1]));
      else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
            : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])
            : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "r"(b[j][0]), "r"(b[j][1]));
    }
#endif
}

template <class Factor, class T, Layout layout>
struct TensorProduct {
  using Sum = float;
  static constexpr int DEPTH = 32, PER_WORD = Word<Factor>::COUNT, WORDS = DEPTH / PER_WORD;
  // As above, but counted in words.  Padding of four words a row, or of eight rows a word, puts the eight rows by four
  // words that a fragment loads into 32 different banks.
  static constexpr int ROW = layout == Layout::depth_contiguous ? WORDS + 4 : 1,
                       LEFT = layout == Layout::depth_contiguous ? 1 : T::M + 8,
                       RIGHT = layout == Layout::depth_contiguous ? 1 : T::N + 8, PITCH = ROW * PER_WORD;
  static_assert(layout == Layout::depth_contiguous || (LEFT % 16 == 8 && RIGHT % 16 == 8));
  // Counted in factors.
  static constexpr int BEGIN = (layout == Layout::depth_contiguous ? T::M * ROW : WORDS * LEFT) * PER_WORD,
                       SIZE = BEGIN + (layout == Layout::depth_contiguous ? T::N * ROW : WORDS * RIGHT) * PER_WORD;
  static constexpr int ROWS = T::M / T::WARPS_DOWN, COLUMNS = T::N / T::WARPS_ACROSS, DOWN = ROWS / 16,
                       ACROSS = COLUMNS / 8;
  float sums[DOWN][ACROSS][4] = {};

#ifndef DIP_FAST_EMULATED
  // As below, with four words a thread in one instruction: lane l names row l % 8 of the 8 x 4 words l / 8.
  DIP_FAST_D void step(const Factor* factors)
    requires(layout == Layout::depth_contiguous)
  {
    const int warp = threadIdx.x / WARP, l = threadIdx.x % WARP;
    const auto *words = reinterpret_cast<const uint32_t*>(factors),
               *left = words + (warp / T::WARPS_ACROSS * ROWS + l % 16) * ROW + l / 16 * 4,
               *right = words + BEGIN / PER_WORD + (warp % T::WARPS_ACROSS * COLUMNS + l / 16 * 8 + l % 8) * ROW +
                        l / 8 % 2 * 4;
    static_assert(ACROSS % 2 == 0 && ROW % 4 == 0);
#pragma unroll
    for (int word = 0; word < WORDS; word += 8) {
      uint32_t x[DOWN][4], y[ACROSS / 2][4];
#pragma unroll
      for (int i = 0; i < DOWN; ++i) load_matrices(x[i], left + 16 * i * ROW + word);
#pragma unroll
      for (int j = 0; j < ACROSS / 2; ++j) load_matrices(y[j], right + 16 * j * ROW + word);
      multiply_fragments<Factor>(sums, x, reinterpret_cast<const uint32_t (&)[ACROSS][2]>(y));
    }
  }
#endif

  DIP_FAST_D void step(const Factor* factors) {
    const int warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    const auto *words = reinterpret_cast<const uint32_t*>(factors),
               *left = words + (warp / T::WARPS_ACROSS * ROWS + g) * ROW + t * LEFT,
               *right = words + BEGIN / PER_WORD + (warp % T::WARPS_ACROSS * COLUMNS + g) * ROW + t * RIGHT;
#pragma unroll
    for (int word = 0; word < WORDS; word += 8) {
      uint32_t x[DOWN][4], y[ACROSS][2];
#pragma unroll
      for (int i = 0; i < DOWN; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e) x[i][e] = left[(16 * i + e % 2 * 8) * ROW + (word + e / 2 * 4) * LEFT];
#pragma unroll
      for (int j = 0; j < ACROSS; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) y[j][e] = right[8 * j * ROW + (word + 4 * e) * RIGHT];
      multiply_fragments<Factor>(sums, x, y);
    }
  }

  DIP_FAST_D void add(const TensorProduct& other) {
#pragma unroll
    for (int i = 0; i < DOWN; ++i)
#pragma unroll
      for (int j = 0; j < ACROSS; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[i][j][e] += other.sums[i][j][e];
  }

  DIP_FAST_D void store(Sum* to, int pitch) const {
    const int warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    float* from = to + (warp / T::WARPS_ACROSS * ROWS + g) * pitch + warp % T::WARPS_ACROSS * COLUMNS + 2 * t;
#pragma unroll
    for (int i = 0; i < DOWN; ++i)
#pragma unroll
      for (int j = 0; j < ACROSS; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) from[(16 * i + e / 2 * 8) * pitch + 8 * j + e % 2] = sums[i][j][e];
  }
};

template <class T, Layout layout>
struct Product<TF32, T, layout> : TensorProduct<TF32, T, layout> {};
template <class T, Layout layout>
struct Product<BFloat16, T, layout> : TensorProduct<BFloat16, T, layout> {};
template <class T, Layout layout>
struct Product<Half, T, layout> : TensorProduct<Half, T, layout> {};

// Shared memory of a block: two steps, of which one is filled while the other is multiplied; after the last step the
// sums take their place.
template <class Factor, class T, Layout layout = Layout::depth_contiguous>
struct Shared {
  using P = Product<Factor, T, layout>;
  static constexpr int PITCH = T::N + 4;  // from row to row of the sums
  static constexpr int STEP = P::SIZE;
  static constexpr int FACTOR_BYTES = 2 * STEP * int(sizeof(Factor)),
                       SUM_BYTES = T::M * PITCH * int(sizeof(typename P::Sum)),
                       BYTES = FACTOR_BYTES > SUM_BYTES ? FACTOR_BYTES : SUM_BYTES;
};

// The tiles of each factor type.  Wide: many sites and channels.  Small: few sites.  Narrow: few channels.
// NineProducts: for convolve_nine.cu.
template <class Factor>
struct Tiles {
  using NineProducts = Tile<64, 128, 2>;
  // Sixteen warps: with eight, whose block fills the registers too, half of an H100's time was waiting.
  using Wide = Tile<128, 128, 4, 512>;
  using Small = Tile<32, 64, 2>;
  using Narrow = Tile<128, 16, 8>;
};
template <>
struct Tiles<float> {
  using Wide = Tile<128, 128, 2>;
  using Small = Tile<64, 64, 2>;
  using Narrow = Tile<128, 16, 8>;
};
template <>
struct Tiles<double> {
  using Wide = Tile<64, 64, 2>;
  using Small = Wide;
  using Narrow = Tile<128, 16, 8>;
};

#ifdef DIP_FAST_EMULATED
constexpr int WIDE_TILES_TO_FILL = 1;  // so that small tests reach wide tiles
#else
constexpr int WIDE_TILES_TO_FILL = 96;  // as many keep most of a GPU busy: a guess, not measured on any GPU
#endif

// Whether a tile is only ever chosen for channels that are a multiple of 4.
template <class Factor, class T>
constexpr bool VEC4_ONLY =
    std::is_same_v<T, typename Tiles<Factor>::Wide> && !std::is_same_v<T, typename Tiles<Factor>::Small>;

// Calls `use` with the tile for a product of this size: small tiles where wide ones would leave most of a GPU idle, or
// where the channels that are read are no multiple of 4.
template <class Factor, class Use>
auto with_tile(int64_t sites, int channels, bool vec4, Use use) {
  using All = Tiles<Factor>;
  if (channels <= All::Narrow::N) return use(typename All::Narrow{});
  if (!vec4 || sites * channels < int64_t(WIDE_TILES_TO_FILL) * All::Wide::M * All::Wide::N)
    return use(typename All::Small{});
  return use(typename All::Wide{});
}

}  // namespace dip_fast::cuda
