// All gradients of a convolution with one tap, in one pass over the image.
//
// For a block of pixels the gradient G of the outputs (RawGradient) is formed once and serves twice: as the matrix
// whose rows are multiplied by the transposed input a = leaky(scale x + shift), which gives the gradient of the
// weights, and as the panel that is multiplied by the weights, which gives the gradient of the input:
//
//   dweight[k][c] = sum over pixels of G[k] a[c]      dbias[k] = sum over pixels of G[k]
//   da[c] = sum over k of weight[k][c] G[k]           t = da leaky'      dx = scale t
//
// The sums of t and of t (x - mean) are the gradients of the batch norm.
#pragma once

#include "convolution.h"
#include "raw_gradient.h"

template <class Tile>
struct PointwiseGradient {
  using T = typename Tile::T;
  using Vector = typename Tile::Vector;
  using Forward = Convolution<Tile, Algorithm::pointwise>;
  using Thin = ThinPointwise<Tile>;
  static constexpr int NR = Tile::NR, LANES = Tile::LANES;
  static constexpr int64_t BLOCK = 128, LD = BLOCK + 16;  // LD: so that rows are not a multiple of 4096 bytes apart
  static constexpr int64_t AHEAD = 4;                     // channels that are prefetched

  // Of the gradient as the matrix that is multiplied by the input: G itself, or pairs of its pixels.
  static constexpr int64_t ROW = Tile::place(LD);
  static int64_t paired_size(const ConvShape& s) { return Tile::PAIRS ? s.outputs * ROW : 0; }

  static int64_t row_of_sums(const ConvShape& s) { return rounded_up(s.inputs, NR); }
  static int64_t sums_size(const ConvShape& s) { return s.outputs * row_of_sums(s) + s.outputs; }
  static int64_t scratch(const ConvShape& s) {
    if (Thin::is_thin(s)) return Thin::scratch(s);
    return (s.outputs + 2 * s.inputs) * LD + row_of_sums(s) * BLOCK + Tile::MR * BLOCK + paired_size(s);
  }

  template <class I, class O>
  static void gradient(const ConvShape& s, const RawGradient<O>& raw, const I* input, const Activation<T>& activation,
                       const double* mean, const T* packed, I* grad_input, double* input_sums, T* sums, int64_t item,
                       T* scratch) {
    const int64_t K = s.outputs, C = s.inputs, plane = s.cols, row = row_of_sums(s);
    T *g = scratch, *x = g + K * LD, *a = x + C * LD, *panels = a + C * LD, *products = panels + row * BLOCK,
      *rows = Tile::PAIRS ? products + Tile::MR * BLOCK : g;
    T* bias = sums + K * row;
    const Bands band = Forward::bands(s);
    const int64_t begin = band.begin(item), end = band.end(item, plane);
    const bool stream = streams<I>(C * plane, plane);
    fill_zero(bias, K);
    if (input_sums != nullptr) fill_zero(input_sums, 2 * C);
    if (Thin::is_thin(s)) {
      fill_zero(sums, K * row);
      Thin::gradient(s, raw, input, activation, mean, packed, grad_input, input_sums, sums, row, bias, begin, end,
                     stream, scratch);
      Tile::fence();
      return;
    }
    for (int64_t first = begin; first < end; first += BLOCK) {
      const int64_t count = at_most(end - first, BLOCK);
      load_gradient(raw, K, plane, first, count, g, bias);
      if constexpr (Tile::PAIRS) {
        for (int64_t k = 0; k < K; ++k) Tile::pair_row(g + k * LD, count, rows + k * ROW);
        Tile::pair_panel(g, LD, K, rounded_up(count, NR));
      }
      load_input(input, activation, C, plane, first, count, x, a);
      add_weight_products(s, rows, a, count, first > begin, panels, sums);
      if (grad_input == nullptr) continue;
      for (int64_t tile = 0; tile < Tile::tiles(C); ++tile) {
        const int64_t c0 = Tile::tile_begin(C, tile), c1 = Tile::tile_begin(C, tile + 1);
        multiply(packed, K, c0, c1, g, rounded_up(count, NR), products);
        for (int64_t c = c0; c < c1; ++c) {
          T* made = products + (c - c0) * BLOCK;
          if (activation.scale != nullptr)
            activation_gradient(activation, c, x + c * LD, static_cast<T>(mean[c]), count, made, input_sums + 2 * c);
          write_line<Tile>(made, count, grad_input + c * plane + first, stream);
        }
      }
    }
    Tile::fence();
  }

 private:
  // g = G of the pixels first .. first + count, filled up with zeros to whole panels; adds its sums to `bias`.
  template <class O>
  [[gnu::always_inline]] static inline void load_gradient(const RawGradient<O>& raw, int64_t K, int64_t plane,
                                                          int64_t first, int64_t count, T* g, T* bias) {
    const int64_t width = rounded_up(count, NR);
    for (int64_t k = 0; k < K; ++k) {
      const O *from = raw.grad + k * plane + first,
              *output = raw.output == nullptr ? nullptr : raw.output + k * plane + first;
      T* to = g + k * LD;
      if (k + AHEAD < K) prefetch(from + AHEAD * plane, count);
      if (k + AHEAD < K && output != nullptr) prefetch(output + AHEAD * plane, count);
      bias[k] += raw_gradient<Tile>(from, output, raw.constant[k], raw.factor[k], count, to);
      for (int64_t t = count; t < width; ++t) to[t] = 0;
    }
  }

  // x = the input of these pixels, a = what its activation makes of it.
  template <class I>
  [[gnu::always_inline]] static inline void load_input(const I* input, const Activation<T>& activation, int64_t C,
                                                       int64_t plane, int64_t first, int64_t count, T* x, T* a) {
    for (int64_t c = 0; c < C; ++c) {
      const I* from = input + c * plane + first;
      T *to_x = x + c * LD, *to_a = a + c * LD;
      if (c + AHEAD < C) prefetch(from + AHEAD * plane, count);
      if (activation.scale == nullptr) {
#pragma omp simd
        for (int64_t t = 0; t < count; ++t) to_a[t] = value_of(from[t]);
        continue;
      }
      const T scale = activation.scale[c], shift = activation.shift[c], slope = activation.slope;
#pragma omp simd
      for (int64_t t = 0; t < count; ++t) {
        const T value = value_of(from[t]), u = scale * value + shift;
        to_x[t] = value;
        to_a[t] = u > 0 ? u : slope * u;
      }
    }
  }

  // sums[k][c] (+)= sum over the pixels of g[k] a[c]; rows: those of g.
  [[gnu::always_inline]] static inline void add_weight_products(const ConvShape& s, const T* rows, const T* a,
                                                                int64_t count, bool accumulate, T* panels, T* sums) {
    const int64_t K = s.outputs, C = s.inputs, row = row_of_sums(s);
    for (int64_t c = 0; c < row; c += NR) {
      transpose_line<Tile>(a + c * LD, LD, at_most(NR, C - c), count, NR, panels + c * count);
      Tile::pair_panel(panels + c * count, NR, count, NR);
      for (int64_t tile = 0; tile < Tile::tiles(K); ++tile) {
        const int64_t k0 = Tile::tile_begin(K, tile), k1 = Tile::tile_begin(K, tile + 1);
        for (int64_t t = 0; t < count; t += CHAIN)
          Tile::upto(static_cast<int>(k1 - k0), at_most(count - t, CHAIN), rows + k0 * ROW + Tile::place(t), ROW,
                     panels + c * count + Tile::place(t) * NR, sums + k0 * row + c, row, accumulate || t > 0);
      }
    }
  }

  // products[c - c0] = da[c], for the inputs c0 .. c1.
  [[gnu::always_inline]] static inline void multiply(const T* packed, int64_t K, int64_t c0, int64_t c1, const T* g,
                                                     int64_t width, T* products) {
    for (int64_t d = 0; d < K; d += CHAIN)
      for (int64_t p = 0; p < width; p += NR)
        Tile::upto(static_cast<int>(c1 - c0), at_most(K - d, CHAIN), packed + c0 * K + Tile::place(d), K,
                   g + Tile::place(d) * LD + p, products + p, BLOCK, d > 0, LD);
  }

  // Turns `made` from da to dx, and adds to the two sums of the channel.
  [[gnu::always_inline]] static inline void activation_gradient(const Activation<T>& activation, int64_t c,
                                                                const T* image, T mean, int64_t count, T* made,
                                                                double* channel_sums) {
    const T scale = activation.scale[c], shift = activation.shift[c], slope = activation.slope;
    Vector plain{}, with{};
    int64_t t = 0;
    for (; t + LANES <= count; t += LANES) {
      const Vector x = Tile::load(image + t), g = Tile::load(made + t);
      const Vector d = scale * x + shift > 0 ? g : slope * g;
      plain += d;
      with += d * (x - mean);
      Tile::store(made + t, scale * d);
    }
    double sums[2] = {Tile::sum(plain), Tile::sum(with)};
    for (; t < count; ++t) {
      const T d = scale * image[t] + shift > 0 ? made[t] : slope * made[t];
      sums[0] += d;
      sums[1] += d * (image[t] - mean);
      made[t] = scale * d;
    }
    channel_sums[0] += sums[0];
    channel_sums[1] += sums[1];
  }
};
