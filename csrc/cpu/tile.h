// The micro-kernel: a tile of ROWS x NR sums of products, held in registers.
//
//   out[i][j] (+)= sum over r of a[i * lda + r] * b[r * ldb + j]      i < ROWS <= MR, j < NR
//
// a is a matrix by rows, of which one element at a time is broadcast; b is a panel, whose rows of NR elements are
// vectors, mostly without a gap between them.  With 16 vector registers (AVX2) a tile of 6 x 2 vectors takes 12 for the
// sums, 2 for b and 1 for a; two multiply-adds a cycle of latency 4 need 8 sums at least, so tiles of 4 or 5 rows still
// run at full rate, and rows are divided evenly (see tile_begin) in place of a ragged last tile.
//
// A tile of PAIRS multiplies in bfloat16, and adds up in float: two products to each lane of a sum at once.  Its
// operands lie in pairs of neighbours along r, in a word of 32 bits the even one below: two elements of a row of a, and
// those of two rows of b that belong to one column.  They are made in place of operands in float (pair_row,
// pair_panel), so a pair stands where the element of half its number stood, and what divides a depth divides it at even
// elements (place).
//
// The code uses the vector extension of GCC and Clang, so that one text serves every instruction set.  Each file that
// includes this one is compiled with flags of its own and does so inside an unnamed namespace.
#pragma once

constexpr int64_t MAX_BLOCK = 64;  // the most sites that are worked on at a time

static constexpr int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
static constexpr int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
static constexpr int64_t clamped(int64_t value, int64_t low, int64_t high) {
  return at_least(low, at_most(high, value));
}
static constexpr int64_t quotient_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static constexpr int64_t rounded_up(int64_t a, int64_t b) { return quotient_up(a, b) * b; }

// Outputs of at least so many bytes are written past the caches.  Zen 5, one thread, a step of quick at 256x256: 49 ms
// with a limit of 4 MB, 45.5 with 1 MB or less; without streaming the layers of full size take 1.1 to 1.5 times as long
// (docs/notes/step.md).
constexpr int64_t STREAMED = 1 << 20;

// A value of an image as it is computed with.
static inline float value_of(BFloat16 stored) { return __builtin_bit_cast(float, static_cast<uint32_t>(stored) << 16); }
static inline float value_of(float value) { return value; }
static inline double value_of(double value) { return value; }

// A value as it is stored: in 16 bits the nearest one, of two the one whose last bit is 0.
template <class S, class T>
static inline S stored(T value) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, value), nearest = bits + 0x7fff + (bits >> 16 & 1);
    return static_cast<BFloat16>((value != value ? bits | 0x400000 : nearest) >> 16);
  } else {
    return value;
  }
}

// A division of rows into bands: `rows` in each, the last may have fewer.
struct Bands {
  int64_t rows, count;
  Bands(int64_t height, int64_t most) : rows(at_most(height, most)), count(quotient_up(height, rows)) {}
  int64_t begin(int64_t band) const { return band * rows; }
  int64_t end(int64_t band, int64_t height) const { return at_most(height, (band + 1) * rows); }
};

template <int LANES>
struct Integers {
  typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t)), aligned(alignof(uint16_t))));
  typedef uint32_t Words __attribute__((vector_size(LANES * sizeof(uint32_t)), aligned(alignof(uint32_t))));
};

template <class T_, int LANES_, int MR_, int VECTORS_, bool PAIRS_ = false>
struct Tile {
  using T = T_;
  static constexpr int LANES = LANES_, MR = MR_, VECTORS = VECTORS_, NR = LANES * VECTORS;
  static constexpr bool PAIRS = PAIRS_;
  // For the last columns of a product: tiles of one vector, and of half a vector where that is not too short.
  static constexpr int REST = LANES > 4 ? LANES / 2 : LANES;
  using HalfTile = Tile<T, LANES, MR, 1, PAIRS>;
  using RestTile = Tile<T, REST, MR, 1, PAIRS>;
  using Unpaired = Tile<T, LANES, MR, VECTORS>;
  typedef T Vector __attribute__((vector_size(LANES * sizeof(T)), aligned(alignof(T))));

  static Vector load(const T* from) { return *reinterpret_cast<const Vector*>(from); }
  static void store(T* to, const Vector& value) { *reinterpret_cast<Vector*>(to) = value; }

  // The same of an image in 16 bits: see value_of and stored.
  using Halves = typename Integers<LANES>::Halves;
  using Words = typename Integers<LANES>::Words;
  static Vector load(const BFloat16* from) {
    const Words bits = __builtin_convertvector(*reinterpret_cast<const Halves*>(from), Words);
    return (Vector)(bits << 16);
  }
  static Halves halves(const Vector& value) {
    const Words bits = (Words)value, nearest = bits + 0x7fff + (bits >> 16 & 1);
    const Words rounded = value != value ? bits | 0x400000 : nearest;
    return __builtin_convertvector(Words(rounded >> 16), Halves);
  }
  static void store(BFloat16* to, const Vector& value) { *reinterpret_cast<Halves*>(to) = halves(value); }

  // Writes past the caches, for outputs larger than these: no line is read before it is overwritten, and the operands
  // stay in the caches.  `to` must be aligned to a vector, and fence() must come before another thread reads.
  template <class S>
  static bool aligned(const S* to) {
    return reinterpret_cast<uintptr_t>(to) % (LANES * sizeof(S)) == 0;
  }
  static void stream(T* to, const Vector& value) { stream_bytes(to, value); }
  static void stream(BFloat16* to, const Vector& value) { stream_bytes(to, halves(value)); }
  template <class V>
  static void stream_bytes(void* to, V value) {  // no reference: V is aligned to its size, Vector to an element
#if defined(__x86_64__)
    if constexpr (sizeof(V) == 8) *reinterpret_cast<V*>(to) = value;
    if constexpr (sizeof(V) == 16) _mm_stream_si128(reinterpret_cast<__m128i*>(to), (__m128i)value);
#if defined(__AVX__)
    if constexpr (sizeof(V) == 32) _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)value);
#endif
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64) _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)value);
#endif
#else
    *reinterpret_cast<V*>(to) = value;
#endif
  }
  static void fence() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
  }

  // The sum of all lanes: the two halves are added first.
  static T sum(const Vector& v) { return sum_halves<LANES / 2>(v, std::make_integer_sequence<int, LANES>()); }
  template <int S, int... I>
  static T sum_halves(const Vector& v, std::integer_sequence<int, I...> lanes) {
    const Vector both = v + __builtin_shufflevector(v, v, ((I + S) % LANES)...);
    if constexpr (S > 1)
      return sum_halves<S / 2>(both, lanes);
    else
      return both[0];
  }

  // a[0] b[0] a[1] b[1] ..., as two vectors.
  template <int... I>
  static void interleave(const Vector& a, const Vector& b, Vector* out, std::integer_sequence<int, I...>) {
    out[0] = __builtin_shufflevector(a, b, (I % 2 * LANES + I / 2)...);
    out[1] = __builtin_shufflevector(a, b, (I % 2 * LANES + LANES / 2 + I / 2)...);
  }
  static void interleave(const Vector& a, const Vector& b, Vector* out) {
    interleave(a, b, out, std::make_integer_sequence<int, LANES>());
  }

  // A tile of exactly ROWS rows.  Every loop over the sums is unrolled; otherwise the compiler keeps them in memory
  // before and after the loop over r.
  template <int ROWS>
  __attribute__((noinline)) static void only(int64_t depth, const T* a, int64_t lda, const T* b, T* out, int64_t ldo,
                                             bool accumulate, int64_t ldb) {
    Vector sum[ROWS][VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) sum[i][v] = Vector{};
    const int64_t count = PAIRS ? (depth + 1) / 2 : depth;
#pragma GCC unroll 2
    for (int64_t r = 0; r < count; ++r) {
      Vector row[VECTORS];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) row[v] = load(b + r * ldb + v * LANES);
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; ++i) {
        const T value = a[i * lda + r];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) add_product(sum[i][v], value, row[v]);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) {
        T* to = out + i * ldo + v * LANES;
        store(to, accumulate ? load(to) + sum[i][v] : sum[i][v]);
      }
  }

  // A tile of `rows` <= MR rows.
  template <int ROWS = MR>
  static void upto(int rows, int64_t depth, const T* a, int64_t lda, const T* b, T* out, int64_t ldo, bool accumulate,
                   int64_t ldb = NR) {
    if (rows == ROWS)
      only<ROWS>(depth, a, lda, b, out, ldo, accumulate, ldb);
    else if constexpr (ROWS > 1)
      upto<ROWS - 1>(rows, depth, a, lda, b, out, ldo, accumulate, ldb);
  }

  static void add_product(Vector& sum, T value, const Vector& row) {
    if constexpr (!PAIRS) {
      sum += value * row;
    } else {
#if defined(__AVX512BF16__)
      if constexpr (LANES == 16)
        sum = (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(value), (__m512bh)row);
      else
        sum = (Vector)_mm256_dpbf16_ps((__m256)sum, (__m256bh)_mm256_set1_ps(value), (__m256bh)row);
#endif
    }
  }

  // Where the element or the row d of an operand lies; d is even.
  static constexpr int64_t place(int64_t d) { return PAIRS ? d / 2 : d; }

  // From a row of `depth` elements to pairs, which may be made in its place.
  static void pair_row([[maybe_unused]] const T* from, [[maybe_unused]] int64_t depth, [[maybe_unused]] T* to) {
#if defined(__AVX512BF16__)
    if constexpr (PAIRS) {
      int64_t t = 0;
      for (; t + 2 * LANES <= depth; t += 2 * LANES)
        store(to + t / 2, (Vector)_mm512_cvtne2ps_pbh((__m512)load(from + t + LANES), (__m512)load(from + t)));
      const auto first = [&](int64_t count) { return static_cast<__mmask16>((1U << clamped(count, 0, LANES)) - 1); };
      const __m512 low = _mm512_maskz_loadu_ps(first(depth - t), from + t),
                   high = _mm512_maskz_loadu_ps(first(depth - t - LANES), from + t + LANES);
      _mm512_mask_storeu_ps(to + t / 2, first(quotient_up(depth - t, 2)), (__m512)_mm512_cvtne2ps_pbh(high, low));
    }
#endif
  }

  typedef uint16_t PairHalves __attribute__((vector_size(2 * LANES * sizeof(uint16_t))));
  // Makes pairs of `depth` rows of `width` elements, `ld` apart, in their place.
  static void pair_panel([[maybe_unused]] T* rows, [[maybe_unused]] int64_t ld, [[maybe_unused]] int64_t depth,
                         [[maybe_unused]] int64_t width) {
#if defined(__AVX512BF16__)
    if constexpr (PAIRS)
      for (int64_t r = 0; r < depth; r += 2)
        for (int64_t w = 0; w < width; w += LANES) {
          const Vector even = load(rows + r * ld + w), odd = r + 1 < depth ? load(rows + (r + 1) * ld + w) : Vector{};
          const PairHalves both = (PairHalves)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
          store(rows + r / 2 * ld + w, (Vector)alternate(both, std::make_integer_sequence<int, 2 * LANES>()));
        }
#endif
  }
  template <int... I>
  static PairHalves alternate(PairHalves v, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(v, v, (I % 2 * LANES + I / 2)...);
  }

  // Transposes `rows` x LANES elements, the other rows being zero: exchanges halves, then quarters, and so on down to
  // elements.
  static void transpose(const T* in, int64_t ldi, int64_t rows, T* out, int64_t ldo) {
    Vector v[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) v[i] = i < rows ? load(in + i * ldi) : Vector{};
    exchange<LANES / 2>(v, std::make_integer_sequence<int, LANES>());
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) store(out + i * ldo, v[i]);
  }

  template <int S, int... I>
  static void exchange(Vector* v, std::integer_sequence<int, I...> lanes) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i)
      if ((i & S) == 0) {
        const Vector a = v[i], b = v[i + S];
        v[i] = __builtin_shufflevector(a, b, ((I & S) == 0 ? I : I - S + LANES)...);
        v[i + S] = __builtin_shufflevector(a, b, ((I & S) == 0 ? I + S : I + LANES)...);
      }
    if constexpr (S > 1) exchange<S / 2>(v, lanes);
  }

  // The division of `rows` into tiles of at most MR rows, as even as possible.
  static int64_t tiles(int64_t rows) { return (rows + MR - 1) / MR; }
  static int64_t tile_begin(int64_t rows, int64_t tile) { return rows * tile / tiles(rows); }
};

// The distance between two fields of `count` elements each.  80 elements are added because fields a multiple of 4096
// bytes apart would all compete for the same eight lines of the first-level cache.
static inline int64_t field_slot(int64_t count) { return count + 80; }

// Prefetches `count` elements into the first-level cache.  Channels lie planes apart, which the hardware does not
// foresee; each transform prefetches the rows that it will read two channels later.
template <class T>
static inline void prefetch(const T* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(from + i);
}

// For one tile of rows and the nine slots 3a + b, computes
//
//   out[slot][row - begin][site] = sum over d of weight[slot][row][d] * panel[slot][site / NR][d][site % NR]
//
// `mask` has a bit for each of the a whose slots are computed.  With out_slot = 0 the products of all slots are added
// up in one place.
//
// A tile of the weights, 6 x 64 floats, stays in the first-level cache while the panels are read.  Sums of more than
// CHAIN terms are added up from parts, which rounds less: with 128 terms the error of nearest would be 1.6 times that
// of PyTorch's layers on AVX-512, and that of the data gradient, whose nine terms partly cancel, 1.56 times on AVX2.
constexpr int64_t CHAIN = 64;

template <class Tile, class T = typename Tile::T>
static void nine_products(const T* weight, int64_t rows, int64_t depth, const T* panel, int64_t panels, int64_t tile,
                          T* out, int64_t out_slot, int mask = 7) {
  const int64_t row = Tile::tile_begin(rows, tile), count = Tile::tile_begin(rows, tile + 1) - row;
  for (int slot = 0; slot < 9; ++slot) {
    if ((mask >> slot / 3 & 1) == 0) continue;
    const T* b = panel + slot * field_slot(panels * depth * Tile::NR);
    for (int64_t d = 0; d < depth; d += CHAIN)
      for (int64_t p = 0; p < panels; ++p)
        Tile::upto(static_cast<int>(count), at_most(depth - d, CHAIN),
                   weight + (slot * rows + row) * depth + Tile::place(d), depth,
                   b + (p * depth + Tile::place(d)) * Tile::NR, out + slot * out_slot + p * Tile::NR, panels * Tile::NR,
                   d > 0 || (out_slot == 0 && slot > 0));
  }
}

// Makes `count` products of a whole tile, whose operands stay in the first-level cache, and returns how many
// multiplications these are: a benchmark measures the rate of the micro-kernel by it.
template <class Tile, class T = typename Tile::T>
static int64_t repeat_products(int64_t count) {
  constexpr int64_t MR = Tile::MR, NR = Tile::NR;
  alignas(64) T a[MR * CHAIN], b[CHAIN * NR], out[MR * NR] = {};
  for (T& value : a) value = static_cast<T>(0.001);
  for (T& value : b) value = static_cast<T>(0.001);
  for (int64_t i = 0; i < count; ++i) Tile::template only<Tile::MR>(CHAIN, a, CHAIN, b, out, NR, true, NR);
  const volatile T used = out[0];  // otherwise the compiler leaves the products out
  (void)used;
  return count * MR * NR * CHAIN;
}
