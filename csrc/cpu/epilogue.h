// The epilogue: it forms the two by two outputs of each site from its nine products, interleaved along W.
//
//   y[2i+p][2j+q] = M[0][0] + M[1+p][0] + M[0][1+q] + M[1+p][1+q] + bias
#pragma once

#include "tile.h"
#include "transform.h"

// Returns whether an image is written past the caches: not if its rows do not begin with a cache line, because lines
// would then be written in parts.
template <class S>
static inline bool streams(int64_t count, int64_t width) {
  return count * static_cast<int64_t>(sizeof(S)) >= STREAMED && width * sizeof(S) % 64 == 0;
}

// Copies a line to its place in the output, past the caches if `stream`.
template <class Tile, class S, class T = typename Tile::T>
static inline void write_line(const T* line, int64_t count, S* to, bool stream) {
  int64_t t = 0;
  if (stream) {
    for (; t < count && !Tile::aligned(to + t); ++t) to[t] = stored<S>(line[t]);
    for (; t + Tile::LANES <= count; t += Tile::LANES) Tile::stream(to + t, Tile::load(line + t));
  }
  for (; t + Tile::LANES <= count; t += Tile::LANES) Tile::store(to + t, Tile::load(line + t));
  for (; t < count; ++t) to[t] = stored<S>(line[t]);
}

// Forms the rows 2i and 2i + 1 of one output channel, for `length` sites.
template <class Tile, class T = typename Tile::T>
static inline void combine_products(const T* product, int64_t slot, int64_t length, T bias, T* even, T* odd,
                                    bool stream) {
  using Vector = typename Tile::Vector;
  const auto combine = [&](auto load, int64_t t, auto put) {
    const auto m = [&](int a) { return load(product + a * slot + t); };
    const auto left = m(1), right = m(2), all = m(0) + bias;
    const auto above = all + m(3), below = all + m(6);
    put(even + 2 * t, above + (left + m(4)), above + (right + m(5)));
    put(odd + 2 * t, below + (left + m(7)), below + (right + m(8)));
  };
  const bool past_caches = stream && Tile::aligned(even) && Tile::aligned(odd);
  int64_t t = 0;
  for (; t + Tile::LANES <= length; t += Tile::LANES)
    combine([](const T* from) { return Tile::load(from); }, t,
            [past_caches](T* to, const Vector& a, const Vector& b) {
              Vector pair[2];
              Tile::interleave(a, b, pair);
              if (past_caches)
                Tile::stream(to, pair[0]), Tile::stream(to + Tile::LANES, pair[1]);
              else
                Tile::store(to, pair[0]), Tile::store(to + Tile::LANES, pair[1]);
            });
  for (; t < length; ++t)
    combine([](const T* from) { return *from; }, t, [](T* to, T a, T b) { to[0] = a, to[1] = b; });
}

// Bilinear: the outputs are those of nearest, blurred by [1 2 1]/4 along H and W with replicated borders.  A stretch of
// sites lacks its neighbours; between two calls this struct keeps them for each channel: the two output rows of the row
// of sites above, blurred along W, and the last columns of the stretch to the left, not yet blurred.
//
// Row i of sites completes the rows 2i - 1 and 2i of the output.  A stretch completes whole vectors of them, and the
// columns that remain wait for the next stretch.
template <class Tile>
struct Blur {
  using T = typename Tile::T;
  using Vector = typename Tile::Vector;
  static constexpr int64_t LANES = Tile::LANES, CARRIED = LANES + 2;

  int64_t height;       // of the low-resolution image
  int64_t top, bottom;  // rows of sites whose outputs are written
  int64_t from, cols;   // the columns of sites of the region: the first, and their number
  int64_t left, right;  // columns of sites whose outputs are written
  int64_t line;         // size of a kept line
  bool stream;
  T* kept;     // [channel][2][line]
  T* carried;  // [channel][2][CARRIED]

  static int64_t size(int64_t channels, int64_t line) { return channels * 2 * (line + CARRIED); }

  // The columns of the rows 2i - 1 and 2i of the output that the sites j .. j + length of row i complete.
  struct Window {
    int64_t begin, end;   // all of them
    int64_t start, stop;  // those that are written
    int64_t first, last;  // the rows that are written
  };
  Window window(int64_t i, int64_t j, int64_t length) const {
    const int64_t begin = j == from ? 2 * j : completed(2 * j - 1),
                  end = completed(2 * (j + length) - 1, j + length == from + cols);
    const int64_t start = clamped(2 * left, begin, end);
    return {begin,
            end,
            start,
            clamped(2 * right, start, end),
            at_least(2 * i - 1, 2 * top),
            at_most(i == height - 1 ? 2 * i + 2 : 2 * i + 1, 2 * bottom)};
  }

  // Blurs the sites j .. j + length of row i of one channel.  `output` is where row 2i of it begins; rows are `width`
  // wide.
  void operator()(int64_t channel, int64_t i, int64_t j, int64_t length, const T* product, int64_t slot, T bias,
                  T* output, int64_t width) const {
    const bool at_begin = j == from;
    const auto [begin, end, start, stop, first, last] = window(i, j, length);
    const int64_t count = 2 * length + CARRIED;
    T lines[2][2 * MAX_BLOCK + CARRIED + LANES];  // from column 2j - CARRIED on
    combine_products<Tile>(product, slot, length, T(0), lines[0] + CARRIED, lines[1] + CARRIED, false);
    for (int p = 0; p < 2; ++p) {
      T *n = lines[p], *carry = carried + (2 * channel + p) * CARRIED;
      if (at_begin)
        n[CARRIED - 1] = n[CARRIED];
      else
        copy(carry, CARRIED, n);
      n[count] = n[count - 1];
      copy(n + 2 * length, CARRIED, carry);
    }
    const Row row{lines[0] + CARRIED - 2 * j,
                  lines[1] + CARRIED - 2 * j,
                  kept + 2 * channel * line - 2 * from,
                  line,
                  bias,
                  output,
                  width,
                  stream && width % LANES == 0};
    row.template complete<false, false>(begin, start);
    if (first >= last)
      row.template complete<false, false>(start, stop);
    else if (i == 0)
      row.template complete<false, true, true>(start, stop);
    else if (first == 2 * i)
      row.template complete<false, true>(start, stop);
    else if (last == 2 * i)
      row.template complete<true, false>(start, stop);
    else
      row.template complete<true, true>(start, stop);
    row.template complete<false, false>(stop, end);
    if (last == 2 * i + 2) row.close(start, stop);
  }

  // The columns up to which the output is complete when `known` columns have a right neighbour.
  int64_t completed(int64_t known, bool last = false) const {
    return last ? known + 1 : clamped(known / LANES * LANES, 2 * from, known);
  }

  struct Row {
    const T *even, *odd;  // the rows 2i and 2i + 1 of the outputs of nearest, by column
    T* kept;              // the rows 2i - 2 and 2i - 1 of these, blurred along W
    int64_t line;
    T bias;
    T* output;  // row 2i
    int64_t width;
    bool stream;

    // Blurs the columns begin .. end; writes row 2i - 1 if ODD and row 2i if EVEN.  If FIRST, there is no row above.
    template <bool ODD, bool EVEN, bool FIRST = false>
    void complete(int64_t begin, int64_t end) const {
      const auto one = [&](int64_t t, auto load, auto keep, auto put) {
        const auto e = (load(even + t - 1) + load(even + t + 1)) + 2 * load(even + t);
        const auto o = (load(odd + t - 1) + load(odd + t + 1)) + 2 * load(odd + t);
        const auto above = load(kept + line + t);
        if constexpr (ODD) put(output - width + t, ((load(kept + t) + e) + 2 * above) * static_cast<T>(0.0625) + bias);
        if constexpr (EVEN) put(output + t, (((FIRST ? e : above) + o) + 2 * e) * static_cast<T>(0.0625) + bias);
        keep(kept + t, e);
        keep(kept + line + t, o);
      };
      const auto load = [](const T* from) { return *from; };
      const auto store = [](T* to, T value) { *to = value; };
      // These are lambdas because functions would be called through pointers.
      const auto loads = [](const T* from) { return Tile::load(from); };
      const auto stores = [](T* to, const Vector& value) { Tile::store(to, value); };
      const auto streams = [](T* to, const Vector& value) { Tile::stream(to, value); };
      int64_t t = begin;
      while (stream && t < end && !Tile::aligned(output + t)) one(t++, load, store, store);
      if (stream)
        for (; t + LANES <= end; t += LANES) one(t, loads, stores, streams);
      else
        for (; t + LANES <= end; t += LANES) one(t, loads, stores, stores);
      while (t < end) one(t++, load, store, store);
    }

    // Writes the last row of the image, whose neighbour below is itself.
    void close(int64_t begin, int64_t end) const {
#pragma omp simd
      for (int64_t t = begin; t < end; ++t)
        output[width + t] = (kept[t] + 3 * kept[line + t]) * static_cast<T>(0.0625) + bias;
    }
  };
};
