// The first part of the backward pass of norm_upsample_conv2d.  In one pass over the gradient of the outputs it forms
//
//   G = grad + constant + factor y (RawGradient), and writes it for the passes of upsample_conv2d
//   dweight[k][d] = sum over pixels of G[k] q[d]      d: tap of a skip channel      dbias[k] = sum over pixels of G[k]
//   dq[d] = sum over k of weight[d][k] G[k], added up over the taps of each pixel of the padded image
#pragma once

#include "epilogue.h"
#include "tile.h"
#include "transform.h"

template <class Tile>
struct SkipConvGradient {
  using T = typename Tile::T;
  static constexpr int NR = Tile::NR;
  static constexpr int64_t SEGMENT = 128, LD = SEGMENT + 16;  // pixels of a row that are worked on at a time

  static int64_t row_of_sums(int64_t channels) { return rounded_up(9 * channels, NR); }
  static int64_t sums_size(const Shape& s, int64_t channels) { return s.K * (row_of_sums(channels) + 1); }
  static Bands bands(const Shape& s) { return {2 * s.H, at_least(2, quotient_up(2 * s.H, 32))}; }
  static int64_t items(const Shape& s) { return bands(s).count; }
  static int64_t rows(const Shape& s) { return bands(s).rows; }
  static int64_t scratch(const Shape& s, int64_t channels) {
    return (s.K + 2 * 9 * channels) * LD + row_of_sums(channels) * SEGMENT;
  }

  // full: where G is written; may be null.  sums: those of the weight (K, 9 S rounded up), then those of the bias.
  // local: the gradient of the rows of the padded image that the item's rows read, (S, rows + 2, 2W + 2).
  template <class O>
  static void gradient(const Shape& s, const RawGradient<O>& raw, const SkipConv<T>& skip, T* full, T* sums, T* local,
                       int64_t item, T* scratch) {
    const int64_t S = skip.channels, D = 9 * S, width = 2 * s.W, pitch = width + 2;
    const Bands band = bands(s);
    const int64_t top = band.begin(item), bottom = band.end(item, 2 * s.H), part = (band.rows + 2) * pitch;
    const bool stream = streams<T>(s.K * 2 * s.H * width, width);
    T *g = scratch, *fields = g + s.K * LD, *made = fields + D * LD, *panels = made + D * LD;
    fill_zero(sums, sums_size(s, S));
    fill_zero(local, S * part);
    for (int64_t r = top; r < bottom; ++r)
      for (int64_t first = 0; first < width; first += SEGMENT) {
        const int64_t count = at_most(width - first, SEGMENT);
        load_gradient(s, raw, r * width + first, count, full, stream, g, sums + s.K * row_of_sums(S));
        if (S == 0) continue;
        load_windows(s, skip, r, first, count, fields, panels);
        add_weight_products(s, S, g, panels, count, sums);
        multiply(s, skip, g, rounded_up(count, NR), made);
        for (int64_t d = 0; d < D; ++d) {
          T* to = local + d / 9 * part + (r - top + d % 9 / 3) * pitch + first + d % 3;
          const T* from = made + d * LD;
#pragma omp simd
          for (int64_t t = 0; t < count; ++t) to[t] += from[t];
        }
      }
    Tile::fence();
  }

 private:
  // g = G of `count` pixels from `first` on, filled up with zeros to whole panels; adds its sums to `bias`.
  template <class O>
  [[gnu::always_inline]] static inline void load_gradient(const Shape& s, const RawGradient<O>& raw, int64_t first,
                                                          int64_t count, T* full, bool stream, T* g, T* bias) {
    const int64_t plane = 4 * s.H * s.W, filled = rounded_up(count, NR);
    for (int64_t k = 0; k < s.K; ++k) {
      const int64_t at = k * plane + first;
      T* to = g + k * LD;
      if (k + 2 < s.K) prefetch(raw.grad + at + 2 * plane, count);
      if (raw.output != nullptr && k + 2 < s.K) prefetch(raw.output + at + 2 * plane, count);
      bias[k] += raw_gradient<Tile>(raw.grad + at, raw.output == nullptr ? nullptr : raw.output + at, raw.constant[k],
                                    raw.factor[k], count, to);
      fill_zero(to + count, filled - count);
      if (full != nullptr) write_line<Tile>(to, count, full + at, stream);
    }
  }

  // The taps of the pixels of row r, as lines and transposed into panels.
  [[gnu::always_inline]] static inline void load_windows(const Shape& s, const SkipConv<T>& skip, int64_t r,
                                                         int64_t first, int64_t count, T* fields, T* panels) {
    const int64_t D = 9 * skip.channels, row = row_of_sums(skip.channels), pitch = 2 * s.W + 2,
                  plane = (2 * s.H + 2) * pitch;
    for (int64_t d = 0; d < D; ++d)
      copy(skip.image + d / 9 * plane + (r + d % 9 / 3) * pitch + first + d % 3, count, fields + d * LD);
    for (int64_t c = 0; c < row; c += NR)
      transpose_line<Tile>(fields + c * LD, LD, at_most(NR, D - c), count, NR, panels + c * count);
  }

  [[gnu::always_inline]] static inline void add_weight_products(const Shape& s, int64_t S, const T* g, const T* panels,
                                                                int64_t count, T* sums) {
    const int64_t row = row_of_sums(S);
    for (int64_t c = 0; c < row; c += NR)
      for (int64_t tile = 0; tile < Tile::tiles(s.K); ++tile) {
        const int64_t k0 = Tile::tile_begin(s.K, tile), k1 = Tile::tile_begin(s.K, tile + 1);
        for (int64_t t = 0; t < count; t += CHAIN)
          Tile::upto(static_cast<int>(k1 - k0), at_most(count - t, CHAIN), g + k0 * LD + t, LD,
                     panels + c * count + t * NR, sums + k0 * row + c, row, true);
      }
  }

  // made[d] = dq[d], the share of each tap of the skip channels.
  [[gnu::always_inline]] static inline void multiply(const Shape& s, const SkipConv<T>& skip, const T* g,
                                                     int64_t filled, T* made) {
    const int64_t D = 9 * skip.channels;
    for (int64_t tile = 0; tile < Tile::tiles(D); ++tile) {
      const int64_t d0 = Tile::tile_begin(D, tile), d1 = Tile::tile_begin(D, tile + 1);
      for (int64_t k = 0; k < s.K; k += CHAIN)
        for (int64_t p = 0; p < filled; p += NR)
          Tile::upto(static_cast<int>(d1 - d0), at_most(s.K - k, CHAIN), skip.weight + d0 * s.K + k, s.K,
                     g + k * LD + p, made + d0 * LD + p, LD, k > 0, LD);
    }
  }
};
