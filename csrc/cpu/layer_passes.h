// The kernels of layers.h, as templates; see passes.h.
#pragma once

#include "passes.h"
//
#include "channels.h"
#include "convolution.h"
#include "pointwise.h"
#include "ring_gradient.h"
#include "strided_gradient.h"
#include "winograd_gradient.h"

// Calls f with a constant in place of the algorithm that is known at run time.
template <class F>
static auto with_algorithm(Algorithm algorithm, F f) {
  switch (algorithm) {
    case Algorithm::pointwise:
      return f(std::integral_constant<Algorithm, Algorithm::pointwise>());
    case Algorithm::strided:
      return f(std::integral_constant<Algorithm, Algorithm::strided>());
    case Algorithm::winograd:
      return f(std::integral_constant<Algorithm, Algorithm::winograd>());
    case Algorithm::strided_gradient:
      return f(std::integral_constant<Algorithm, Algorithm::strided_gradient>());
  }
  __builtin_unreachable();
}

template <class I, class O>
constexpr void add_channel_kernels(LayerKernels<I, O>& table) {
  using C = Channels<Computed<I>>;
  table.pad = C::template pad<I>;
  table.pad_gradient = C::template pad_gradient<O>;
  table.bands_adjoint = C::bands_adjoint;
  table.normed_adjoint = C::template normed_adjoint<I>;
  table.norm_act = C::template norm_act<I>;
  table.upsampled_moments = C::upsampled_moments;
  table.norm_sums = C::norm_sums;
  table.norm_gradient = C::norm_gradient;
}

template <class I, class O, class T = Computed<I>>
constexpr void add_convolutions(LayerKernels<I, O>& table) {
  using Tile = LayerTile<O>;
  table.packed_size = [](const ConvShape& s) {
    return with_algorithm(s.algorithm, [&](auto a) { return ConvWeights<Tile, a>::packed_size(s); });
  };
  table.pack = [](const ConvShape& s, const T* weight, bool adjoint, int64_t k0, int64_t k1, T* packed) {
    with_algorithm(s.algorithm, [&](auto a) { ConvWeights<Tile, a>::pack(s, weight, adjoint, k0, k1, packed); });
  };
  table.items = [](const ConvShape& s) {
    return with_algorithm(s.algorithm, [&](auto a) { return Convolution<Tile, a>::items(s); });
  };
  table.input_rows = [](const ConvShape& s, int64_t item) {
    return with_algorithm(s.algorithm, [&](auto a) { return Convolution<Tile, a>::input_rows(s, item); });
  };
  table.scratch = [](const ConvShape& s) {
    return with_algorithm(s.algorithm, [&](auto a) { return Convolution<Tile, a>::scratch(s); });
  };
  table.pointwise = Convolution<Tile, Algorithm::pointwise>::template convolve<I, O>;
  table.adjoint = Convolution<Tile, Algorithm::strided_gradient>::template convolve<T, T>;
  table.convolve = [](const ConvShape& s, const Window<T>& input, const Activation<T>& activation, const T* packed,
                      const T* bias, O* output, Moments* moments, int64_t item, T* scratch) {
    const auto convolve = s.algorithm == Algorithm::strided
                              ? Convolution<Tile, Algorithm::strided>::template convolve<T, O>
                              : Convolution<Tile, Algorithm::winograd>::template convolve<T, O>;
    convolve(s, input, activation, packed, bias, output, moments, item, scratch);
  };
}

template <class I, class O>
constexpr void add_gradients(LayerKernels<I, O>& table) {
  using Tile = LayerTile<O>;
  using Strided = StridedWeightGradient<Tile>;
  table.weight_gradient_items = Strided::items;
  table.weight_gradient_input_rows = Strided::input_rows;
  table.weight_gradient_grad_rows = Strided::grad_rows;
  table.weight_gradient_scratch = Strided::scratch;
  table.sums_size = Strided::sums_size;
  table.weight_gradient = Strided::sum;
  table.finish = Strided::finish;
  using Winograd = WinogradGradient<Tile>;
  table.winograd_gradient_items = Winograd::items;
  table.winograd_gradient_rows = Winograd::rows;
  table.winograd_gradient_input_rows = Winograd::input_rows;
  table.winograd_gradient_scratch = Winograd::scratch;
  table.winograd_sums_size = Winograd::sums_size;
  table.winograd_local_size = Winograd::local_size;
  table.winograd_gradient = Winograd::template gradient<O>;
  table.winograd_finish = Winograd::finish;
}

template <class Tile, class T = typename Tile::T>
static void multiply_matrices(int64_t rows, int64_t cols, int64_t depth, const T* a, int64_t lda, const T* b,
                              int64_t ldb, T* out, int64_t ldo) {
  for (int64_t tile = 0; tile < Tile::tiles(rows); ++tile) {
    const int64_t i = Tile::tile_begin(rows, tile), count = Tile::tile_begin(rows, tile + 1) - i;
    for (int64_t d = 0; d < depth; d += CHAIN)
      for (int64_t j = 0; j < cols; j += Tile::NR)
        Tile::upto(static_cast<int>(count), at_most(depth - d, CHAIN), a + i * lda + d, lda, b + d * ldb + j,
                   out + i * ldo + j, ldo, d > 0, ldb);
  }
}

template <class I, class O>
constexpr LayerKernels<I, O> make_layer_kernels() {
  using T = Computed<I>;
  using Point = PointwiseGradient<LayerTile<O>>;
  using Ring = RingGradient<TileOf<T>>;  // a border is little
  using Upsampled = Passes<LayerTile<O>, O>;
  LayerKernels<I, O> table{};
  add_channel_kernels(table);
  add_convolutions(table);
  add_gradients(table);
  table.pack_upsampled = [](const Shape& s, const T* weight, int64_t k0, int64_t k1, T* packed) {
    Upsampled::pack(s, weight, false, k0, k1, packed);
  };
  table.upsampled = Upsampled::forward;
  table.repeat_products = repeat_products<LayerTile<O>>;
  table.multiply = multiply_matrices<TileOf<T>>;
  table.pointwise_gradient_scratch = Point::scratch;
  table.pointwise_sums_size = Point::sums_size;
  table.pointwise_gradient = Point::template gradient<I, O>;
  table.ring_sums_size = Ring::sums_size;
  table.ring_lines_size = Ring::lines_size;
  table.ring_scratch = Ring::scratch;
  table.ring_gradient = Ring::template gradient<O>;
  table.add_ring_lines = Ring::add_lines;
  return table;
}

constexpr LayersInFull layers_in_full() {
  return {make_layer_kernels<float, float>(), make_layer_kernels<double, double>(),
          make_layer_kernels<BFloat16, float>()};
}
constexpr LayersTo16Bits layers_to_16_bits() {
  return {make_layer_kernels<float, BFloat16>(), make_layer_kernels<BFloat16, BFloat16>()};
}
