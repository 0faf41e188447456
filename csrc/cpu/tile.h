// The micro-kernel: a tile of ROWS x NR sums of products, held in registers.
//
//   out[i][j] (+)= sum over r of a[i * lda + r] * b[r * NR + j]      i < ROWS <= MR, j < NR
//
// a is a matrix by rows, of which one element at a time is broadcast; b is a panel, whose rows of NR elements are
// vectors.  With 16 vector registers (AVX2) a tile of 6 x 2 vectors takes 12 for the sums, 2 for b and 1 for a; two
// multiply-adds a cycle of latency 4 need 8 sums at least, so tiles of 4 or 5 rows still run at full rate, and rows are
// dealt out evenly (see tile_begin) in place of a ragged last tile.
//
// Written with the vector extension of GCC and Clang, so that one text serves every instruction set; each file that
// includes this one does so with flags of its own, inside an unnamed namespace.
#pragma once

template <class T_, int LANES_, int MR_, int VECTORS_>
struct Tile {
  using T = T_;
  static constexpr int LANES = LANES_, MR = MR_, VECTORS = VECTORS_, NR = LANES * VECTORS;
  typedef T Vector __attribute__((vector_size(LANES * sizeof(T)), aligned(alignof(T))));

  static Vector load(const T* from) { return *reinterpret_cast<const Vector*>(from); }

  template <int ROWS>
  __attribute__((noinline)) static void only(int64_t depth, const T* a, int64_t lda, const T* b, T* out, int64_t ldo,
                                             bool accumulate) {
    Vector sum[ROWS][VECTORS] = {};
    for (int64_t r = 0; r < depth; ++r, ++a, b += NR) {
      Vector row[VECTORS];
      for (int v = 0; v < VECTORS; ++v) row[v] = load(b + v * LANES);
#pragma GCC unroll 16
      for (int i = 0; i < ROWS; ++i) {
        const T value = a[i * lda];
        for (int v = 0; v < VECTORS; ++v) sum[i][v] += value * row[v];
      }
    }
    for (int i = 0; i < ROWS; ++i)
      for (int v = 0; v < VECTORS; ++v) {
        Vector* to = reinterpret_cast<Vector*>(out + i * ldo + v * LANES);
        *to = accumulate ? *to + sum[i][v] : sum[i][v];
      }
  }

  template <int ROWS = MR>
  static void upto(int rows, int64_t depth, const T* a, int64_t lda, const T* b, T* out, int64_t ldo, bool accumulate) {
    if (rows == ROWS)
      only<ROWS>(depth, a, lda, b, out, ldo, accumulate);
    else if constexpr (ROWS > 1)
      upto<ROWS - 1>(rows, depth, a, lda, b, out, ldo, accumulate);
  }

  // `rows` in tiles of MR at most, as even as can be.
  static int64_t tiles(int64_t rows) { return (rows + MR - 1) / MR; }
  static int64_t tile_begin(int64_t rows, int64_t tile) { return rows * tile / tiles(rows); }
};

// The distance of the nine slots of fields with `count` elements each.  80 more, as at a multiple of 4096 bytes all
// nine would fall on the same eight places of the first-level cache.
static inline int64_t field_slot(int64_t count) { return count + 80; }

// Into the first-level cache.  Channels lie planes apart, which no hardware foresees: each transform asks for the rows
// that it needs two channels later.
template <class T>
static inline void prefetch(const T* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(from + i);
}

// out[slot][row - begin][site] (+)= sum over d of weight[slot][row][d] * panel[slot][site / NR][d][site % NR] for the
// nine slots 3a + b, or only those whose bit a is in `wanted`.  With out_slot = 0 all are summed in one place.
//
// A block of rows of the weights and a panel stay in the first-level cache together: 36 x 128 + 128 x 16 floats are
// 26 kB.  Sums of more than `chain` terms are added up from parts, which rounds less.
template <class Tile, class T = typename Tile::T>
static void nine_products(const T* weight, int64_t rows, int64_t depth, const T* panel, int64_t panels,
                          int64_t first_tile, int64_t last_tile, T* out, int64_t out_slot, int64_t chain = 128,
                          int wanted = 7) {
  const int64_t begin = Tile::tile_begin(rows, first_tile), ldo = panels * Tile::NR;
  for (int slot = 0; slot < 9; ++slot) {
    if ((wanted >> slot / 3 & 1) == 0) continue;
    for (int64_t d = 0; d < depth; d += chain) {
      const int64_t part = depth - d < chain ? depth - d : chain;
      const bool accumulate = d > 0 || (out_slot == 0 && slot > 0);
      for (int64_t p = 0; p < panels; ++p) {
        const T* b = panel + slot * field_slot(panels * depth * Tile::NR) + (p * depth + d) * Tile::NR;
        for (int64_t t = first_tile; t < last_tile; ++t) {
          const int64_t row = Tile::tile_begin(rows, t), end = Tile::tile_begin(rows, t + 1);
          Tile::upto(static_cast<int>(end - row), part, weight + (slot * rows + row) * depth + d, depth, b,
                     out + slot * out_slot + (row - begin) * ldo + p * Tile::NR, ldo, accumulate);
        }
      }
    }
  }
}
