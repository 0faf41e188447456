// The kernels of layers.h, as templates; see passes.h.
#pragma once

#include "passes.h"
//
#include "channels.h"
#include "conv_weight_gradient.h"
#include "convolution.h"
#include "pointwise.h"
#include "skip_conv_gradient.h"

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

// Does the same for the algorithms that have a pass for the gradient of their weights.
template <class F>
static auto with_summed_algorithm(Algorithm algorithm, F f) {
  return algorithm == Algorithm::winograd ? f(std::integral_constant<Algorithm, Algorithm::winograd>())
                                          : f(std::integral_constant<Algorithm, Algorithm::strided>());
}

template <class T>
constexpr void add_channel_kernels(LayerKernels<T>& table) {
  using C = Channels<T>;
  table.pad = C::pad;
  table.pad_gradient = C::pad_gradient;
  table.pad_adjoint = C::pad_adjoint;
  table.norm_act = C::norm_act;
  table.norm_act_gradient = C::norm_act_gradient;
  table.upsampled_moments = C::upsampled_moments;
  table.norm_sums = C::norm_sums;
  table.norm_gradient = C::norm_gradient;
}

template <class T>
constexpr void add_convolutions(LayerKernels<T>& table) {
  using Tile = TileOf<T>;
  table.packed_size = [](const ConvShape& s) {
    return with_algorithm(s.algorithm, [&](auto a) { return ConvWeights<T, a>::packed_size(s); });
  };
  table.pack = [](const ConvShape& s, const T* weight, bool adjoint, int64_t k0, int64_t k1, T* packed) {
    with_algorithm(s.algorithm, [&](auto a) { ConvWeights<T, a>::pack(s, weight, adjoint, k0, k1, packed); });
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
  table.convolve = [](const ConvShape& s, const Window<T>& input, const Activation<T>& activation, const T* packed,
                      const T* bias, T* output, Moments* moments, int64_t item, T* scratch) {
    with_algorithm(s.algorithm, [&](auto a) {
      Convolution<Tile, a>::convolve(s, input, activation, packed, bias, output, moments, item, scratch);
    });
  };
}

template <class T>
constexpr void add_weight_gradients(LayerKernels<T>& table) {
  using Tile = TileOf<T>;
  table.weight_gradient_items = [](const ConvShape& s) {
    return with_summed_algorithm(s.algorithm, [&](auto a) { return ConvWeightGradient<Tile, a>::items(s); });
  };
  table.weight_gradient_input_rows = [](const ConvShape& s, int64_t item) {
    return with_summed_algorithm(s.algorithm, [&](auto a) { return ConvWeightGradient<Tile, a>::input_rows(s, item); });
  };
  table.weight_gradient_grad_rows = [](const ConvShape& s, int64_t item) {
    return with_summed_algorithm(s.algorithm, [&](auto a) { return ConvWeightGradient<Tile, a>::grad_rows(s, item); });
  };
  table.weight_gradient_scratch = [](const ConvShape& s) {
    return with_summed_algorithm(s.algorithm, [&](auto a) { return ConvWeightGradient<Tile, a>::scratch(s); });
  };
  table.sums_size = [](const ConvShape& s) {
    return with_summed_algorithm(s.algorithm, [&](auto a) { return ConvWeightGradient<Tile, a>::sums_size(s); });
  };
  table.weight_gradient = [](const ConvShape& s, const Window<T>& input, const Window<T>& gradient, T* sums,
                             int64_t item, T* scratch) {
    with_summed_algorithm(s.algorithm,
                          [&](auto a) { ConvWeightGradient<Tile, a>::sum(s, input, gradient, sums, item, scratch); });
  };
  table.finish = [](const ConvShape& s, const T* total, int64_t c0, int64_t c1, T* grad_weight) {
    with_summed_algorithm(s.algorithm,
                          [&](auto a) { ConvWeightGradient<Tile, a>::finish(s, total, c0, c1, grad_weight); });
  };
}

template <class T>
constexpr LayerKernels<T> make_layer_kernels() {
  using Point = PointwiseGradient<TileOf<T>>;
  using Skip = SkipConvGradient<TileOf<T>>;
  LayerKernels<T> table{};
  add_channel_kernels(table);
  add_convolutions(table);
  add_weight_gradients(table);
  table.pointwise_gradient_scratch = Point::scratch;
  table.pointwise_sums_size = Point::sums_size;
  table.pointwise_gradient = Point::gradient;
  table.skip_gradient_items = Skip::items;
  table.skip_gradient_rows = Skip::rows;
  table.skip_gradient_scratch = Skip::scratch;
  table.skip_gradient_sums_size = Skip::sums_size;
  table.skip_gradient = Skip::gradient;
  return table;
}
