// The gradient of the weights of a strided convolution: sums over the sites of the products of the fields of the input
// with the output's gradient.
//
//   sums[tap][c][k] = sum over sites of field[tap][c][site] * gradient[site][k]
#pragma once

#include "conv_fields.h"

template <class Tile>
struct StridedWeightGradient {
  using T = typename Tile::T;
  using S = Scheme<Algorithm::strided>;
  using Fields = ConvFields<Tile, Algorithm::strided>;
  static constexpr int NR = Tile::NR;
  static constexpr int64_t BLOCK = MAX_BLOCK;

  static int64_t row_of_sums(const ConvShape& s) { return rounded_up(s.outputs, NR); }
  static int64_t sums_size(const ConvShape& s) { return S::SLOTS * s.inputs * row_of_sums(s); }
  static Bands bands(const ConvShape& s) {
    return {s.rows, quotient_up(at_least(BLOCK, at_most(1024, s.rows * s.cols / 8)), s.cols)};
  }
  static int64_t items(const ConvShape& s) { return bands(s).count; }
  static Rows input_rows(const ConvShape& s, int64_t item) { return rows_read<Algorithm::strided>(s, bands(s), item); }
  // Rows of the gradient, padded as the adjoint reads it.
  static Rows grad_rows(const ConvShape& s, int64_t item) {
    const Bands band = bands(s);
    const int64_t begin = band.begin(item);
    return {begin + 1, band.end(item, s.rows) - begin};
  }
  static int64_t scratch(const ConvShape& s) {
    return S::FIELDS * Fields::template slot_size<BLOCK>(s, BLOCK) + field_slot(row_of_sums(s) * BLOCK);
  }

  static void sum(const ConvShape& s, const Window<T>& input, const Window<T>& gradient, T* sums, int64_t item,
                  T* scratch) {
    const int64_t K = row_of_sums(s), slot = Fields::template slot_size<BLOCK>(s, BLOCK);
    T *rows = scratch, *panels = rows + S::FIELDS * slot;
    const Bands band = bands(s);
    const int64_t begin = band.begin(item) * s.cols, end = band.end(item, s.rows) * s.cols;
    for (int64_t first = begin; first < end; first += BLOCK) {
      const int64_t last = at_most(end, first + BLOCK), count = last - first;
      Fields::template make<BLOCK>(s, input, {}, first, last, rows);
      transposed_gradient(s, gradient, first, last, panels);
      pair_operands(s, count, rows, panels);
      for (int i = 0; i < S::SLOTS; ++i)
        for (int64_t k = 0; k < K; k += NR)
          for (int64_t tile = 0; tile < Tile::tiles(s.inputs); ++tile) {
            const int64_t c0 = Tile::tile_begin(s.inputs, tile), c1 = Tile::tile_begin(s.inputs, tile + 1);
            Tile::upto(static_cast<int>(c1 - c0), count, rows + i * slot + c0 * BLOCK, BLOCK, panels + k * count,
                       sums + (i * s.inputs + c0) * K + k, K, first > begin);
          }
    }
  }

  // From the total of the sums to the gradient of the weights (outputs, inputs, 3, 3), for the inputs c0 .. c1.
  static void finish(const ConvShape& s, const T* total, int64_t c0, int64_t c1, T* grad_weight) {
    const int64_t K = row_of_sums(s), slot = s.inputs * K;
    for (int64_t c = c0; c < c1; ++c)
      for (int64_t k = 0; k < s.outputs; ++k)
        for (int i = 0; i < 9; ++i) grad_weight[(k * s.inputs + c) * 9 + i] = total[i * slot + c * K + k];
  }

 private:
  static void pair_operands(const ConvShape& s, int64_t count, T* rows, T* panels) {
    if constexpr (!Tile::PAIRS) return;
    const int64_t slot = Fields::template slot_size<BLOCK>(s, BLOCK);
    for (int i = 0; i < S::SLOTS; ++i)
      for (int64_t c = 0; c < s.inputs; ++c) {
        T* row = rows + i * slot + c * BLOCK;
        Tile::pair_row(row, count, row);
      }
    for (int64_t k = 0; k < row_of_sums(s); k += NR) Tile::pair_panel(panels + k * count, NR, count, NR);
  }

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
};
