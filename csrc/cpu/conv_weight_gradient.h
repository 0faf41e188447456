// The gradient of the weights of strided and winograd: sums over the sites of the products of the fields of the input
// with those of the output's gradient, and from these sums the gradient of the taps.
//
//   sums[slot][c][k] = sum over sites of field[slot][c][site] * gradient[slot][site][k]
#pragma once

#include "conv_fields.h"

template <class Tile, Algorithm A>
struct ConvWeightGradient {
  using T = typename Tile::T;
  using Vector = typename Tile::Vector;
  using S = Scheme<A>;
  using Fields = ConvFields<Tile, A>;
  static constexpr int NR = Tile::NR, LANES = Tile::LANES;
  static constexpr int64_t BLOCK = MAX_BLOCK, STRIP = 64;
  static constexpr bool WINOGRAD = A == Algorithm::winograd;
  static constexpr int GRADIENTS = WINOGRAD ? 16 : 1;  // strided: all slots are multiplied by the same gradient

  static int64_t row_of_sums(const ConvShape& s) { return rounded_up(s.outputs, NR); }
  static int64_t sums_size(const ConvShape& s) { return S::SLOTS * s.inputs * row_of_sums(s); }
  static Bands bands(const ConvShape& s) {
    return {s.rows, quotient_up(at_least(BLOCK, at_most(1024, s.rows * s.cols / 8)), s.cols)};
  }
  static int64_t items(const ConvShape& s) { return bands(s).count; }
  static Rows input_rows(const ConvShape& s, int64_t item) { return rows_read<A>(s, bands(s), item); }
  // Rows of the gradient, padded as the adjoint reads it.
  static Rows grad_rows(const ConvShape& s, int64_t item) {
    const Bands band = bands(s);
    const int64_t begin = band.begin(item), count = band.end(item, s.rows) - begin;
    return WINOGRAD ? Rows{2 * begin + 2, 2 * count} : Rows{begin + 1, count};
  }
  static int64_t scratch(const ConvShape& s) {
    return S::FIELDS * Fields::template slot_size<BLOCK>(s, BLOCK) +
           (GRADIENTS + 4) * field_slot(row_of_sums(s) * BLOCK);
  }

  static void sum(const ConvShape& s, const Window<T>& input, const Window<T>& gradient, T* sums, int64_t item,
                  T* scratch) {
    const int64_t K = row_of_sums(s), slot = Fields::template slot_size<BLOCK>(s, BLOCK);
    T *rows = scratch, *panels = rows + S::FIELDS * slot, *transposed = panels + GRADIENTS * field_slot(K * BLOCK);
    const Bands band = bands(s);
    const int64_t begin = band.begin(item) * s.cols, end = band.end(item, s.rows) * s.cols;
    for (int64_t first = begin; first < end; first += BLOCK) {
      const int64_t last = at_most(end, first + BLOCK), count = last - first, panel = field_slot(K * count);
      Fields::template make<BLOCK>(s, input, {}, first, last, rows);
      if constexpr (WINOGRAD)
        winograd_gradients(s, gradient, first, last, transposed, panels);
      else
        transposed_gradient(s, gradient, first, last, panels);
      for (int i = 0; i < S::SLOTS; ++i)
        for (int64_t k = 0; k < K; k += NR)
          for (int64_t tile = 0; tile < Tile::tiles(s.inputs); ++tile) {
            const int64_t c0 = Tile::tile_begin(s.inputs, tile), c1 = Tile::tile_begin(s.inputs, tile + 1);
            Tile::upto(static_cast<int>(c1 - c0), count, rows + i * slot + c0 * BLOCK, BLOCK,
                       panels + (GRADIENTS > 1 ? i : 0) * panel + k * count, sums + (i * s.inputs + c0) * K + k, K,
                       first > begin);
          }
    }
  }

  // From the total of the sums to the gradient of the weights (outputs, inputs, 3, 3), for the inputs c0 .. c1.
  static void finish(const ConvShape& s, const T* total, int64_t c0, int64_t c1, T* grad_weight) {
    const int64_t K = row_of_sums(s), slot = s.inputs * K;
    for (int64_t c = c0; c < c1; ++c)
      for (int64_t k0 = 0; k0 < s.outputs; k0 += STRIP) {
        const int64_t count = at_most(s.outputs - k0, STRIP);
        const T* in = total + c * K + k0;
        T w[9][STRIP];
        if constexpr (WINOGRAD) {
          T rows[4][3][STRIP];
          for (int a = 0; a < 4; ++a) transform_adjoint(in + 4 * a * slot, slot, count, rows[a][0], STRIP);
          for (int b = 0; b < 3; ++b) transform_adjoint(rows[0][b], 3 * STRIP, count, w[b], 3 * STRIP);
        } else {
          for (int i = 0; i < 9; ++i) copy(in + i * slot, count, w[i]);
        }
        for (int64_t k = 0; k < count; ++k)
          for (int i = 0; i < 9; ++i) grad_weight[((k0 + k) * s.inputs + c) * 9 + i] = w[i][k];
      }
  }

 private:
  // The gradient with the output channels as vectors: [channel / NR][site][NR].
  static void transposed_gradient(const ConvShape& s, const Window<T>& gradient, int64_t first, int64_t last, T* out) {
    const int64_t K = row_of_sums(s), sites = last - first, row = s.cols + 2, plane = row * gradient.rows.count;
    const T* from = gradient.data - gradient.rows.first * row;
    each_stretch({0, 0, s.rows, s.cols}, first, last, [&](int64_t i, int64_t j, int64_t site, int64_t length) {
      for (int64_t k = 0; k < K; k += NR)
        transpose_line<Tile>(from + k * plane + (i + 1) * row + j + 1, plane, at_most(NR, s.outputs - k), length, NR,
                             out + (k / NR * sites + site - first) * NR);
    });
  }

  // The gradients of the 16 products of each square: [gradient][channel / NR][site][NR].  `transposed` holds the four
  // pixels of each square in between, with the output channels as vectors.
  static void winograd_gradients(const ConvShape& s, const Window<T>& gradient, int64_t first, int64_t last,
                                 T* transposed, T* out) {
    const int64_t K = row_of_sums(s), sites = last - first, panel = field_slot(K * sites);
    const int64_t half = s.cols + 2, row = 2 * half, plane = row * gradient.rows.count;
    const T* from = gradient.data - gradient.rows.first * row;
    each_stretch({0, 0, s.rows, s.cols}, first, last, [&](int64_t i, int64_t j, int64_t site, int64_t length) {
      const int64_t line = K * length;
      for (int r = 0; r < 4; ++r)
        transpose_line<Tile>(from + (2 * i + 2 + r / 2) * row + (r % 2) * half + j + 1, plane, s.outputs, length, K,
                             transposed + r * line);
      for (int64_t k = 0; k < K; k += NR)
        for (int64_t t = 0; t < length; ++t) {
          const T* g = transposed + t * K + k;
          T* to = out + (k / NR * sites + site - first + t) * NR;
          for (int v = 0; v < NR; v += LANES) product_gradients_of_square(g + v, line, to + v, panel);
        }
    });
  }

  // y0, y0 + y1, y0 - y1 and -y1 along H, then along W, of the four pixels g[p][q] of a square.
  [[gnu::always_inline]] static inline void product_gradients_of_square(const T* g, int64_t line, T* to,
                                                                        int64_t panel) {
    const Vector g00 = Tile::load(g), g01 = Tile::load(g + line), g10 = Tile::load(g + 2 * line),
                 g11 = Tile::load(g + 3 * line);
    const Vector left[4] = {g00, g00 + g10, g00 - g10, -g10}, right[4] = {g01, g01 + g11, g01 - g11, -g11};
    for (int a = 0; a < 4; ++a) {
      T* o = to + 4 * a * panel;
      Tile::store(o, left[a]);
      Tile::store(o + panel, left[a] + right[a]);
      Tile::store(o + 2 * panel, left[a] - right[a]);
      Tile::store(o + 3 * panel, -right[a]);
    }
  }

  // The adjoint of ConvWeights::transform: from four lines of sums to those of three taps.
  static void transform_adjoint(const T* m, int64_t step, int64_t count, T* out, int64_t out_step) {
    const T half = static_cast<T>(0.5);
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) {
      const T m0 = m[k], m1 = m[k + step], m2 = m[k + 2 * step], m3 = m[k + 3 * step];
      out[k] = m0 + half * (m1 + m2);
      out[k + out_step] = half * (m1 - m2);
      out[k + 2 * out_step] = half * (m1 + m2) + m3;
    }
  }
};
