// The kernels of layers.h, as templates; see passes.h.
#pragma once

#include "passes.h"
//
#include "channels.h"
#include "convolution.h"
#include "joint.h"

// Calls f with the convolution of a form.
template <class T, class F>
static auto of_form(Form form, F f) {
  using Tile = TileOf<T>;
  switch (form) {
    case Form::pointwise:
      return f(Convolution<Tile, Form::pointwise>());
    case Form::strided:
      return f(Convolution<Tile, Form::strided>());
    case Form::winograd:
      return f(Convolution<Tile, Form::winograd>());
    case Form::strided_gradient:
      return f(Convolution<Tile, Form::strided_gradient>());
  }
  __builtin_unreachable();
}

// The same of those that have a pass for the gradient of their weights.
template <class T, class F>
static auto of_sums(Form form, F f) {
  using Tile = TileOf<T>;
  return form == Form::winograd ? f(Convolution<Tile, Form::winograd>()) : f(Convolution<Tile, Form::strided>());
}

template <class T>
constexpr LayerKernels<T> make_layer_kernels() {
  using Tile = TileOf<T>;
  using C = Channels<T>;
  using Point = Pointwise<Tile>;
  using Join = JointGradient<Tile>;
  LayerKernels<T> table{};
  table.spread = C::spread;
  table.spread_gradient = C::spread_gradient;
  table.fold = C::fold;
  table.activate = C::activate;
  table.activate_gradient = C::activate_gradient;
  table.upsampled_moments = C::upsampled_moments;
  table.sums_with = C::sums_with;
  table.normalise_gradient = C::normalise_gradient;
  table.packed_size = [](const Lattice& s) {
    return of_form<T>(s.form, [&](auto conv) { return conv.packed_size(s); });
  };
  table.pack = [](const Lattice& s, const T* weight, bool adjoint, int64_t k0, int64_t k1, T* packed) {
    of_form<T>(s.form, [&](auto conv) { conv.pack(s, weight, adjoint, k0, k1, packed); });
  };
  table.items = [](const Lattice& s) { return of_form<T>(s.form, [&](auto conv) { return conv.items(s); }); };
  table.rows = [](const Lattice& s, int64_t item) {
    return of_form<T>(s.form, [&](auto conv) { return conv.rows_of(s, item); });
  };
  table.scratch = [](const Lattice& s) { return of_form<T>(s.form, [&](auto conv) { return conv.scratch(s); }); };
  table.convolve = [](const Lattice& s, const Window<T>& input, const Activation<T>& activation, const T* packed,
                      const T* bias, T* output, Moments* moments, int64_t item, T* scratch) {
    of_form<T>(s.form,
               [&](auto conv) { conv.convolve(s, input, activation, packed, bias, output, moments, item, scratch); });
  };
  table.weight_gradient_items = [](const Lattice& s) {
    return of_sums<T>(s.form, [&](auto conv) { return conv.weight_gradient_items(s); });
  };
  table.weight_gradient_rows = [](const Lattice& s, int64_t item, bool of_gradient) {
    return of_sums<T>(s.form, [&](auto conv) { return conv.weight_gradient_rows(s, item, of_gradient); });
  };
  table.weight_gradient_scratch = [](const Lattice& s) {
    return of_sums<T>(s.form, [&](auto conv) { return conv.weight_gradient_scratch(s); });
  };
  table.sums_size = [](const Lattice& s) { return of_sums<T>(s.form, [&](auto conv) { return conv.sums_size(s); }); };
  table.weight_gradient = [](const Lattice& s, const Window<T>& input, const Window<T>& gradient, T* sums, int64_t item,
                             T* scratch) {
    of_sums<T>(s.form, [&](auto conv) { conv.weight_gradient(s, input, gradient, sums, item, scratch); });
  };
  table.finish = [](const Lattice& s, const T* total, int64_t c0, int64_t c1, T* grad_weight) {
    of_sums<T>(s.form, [&](auto conv) { conv.finish(s, total, c0, c1, grad_weight); });
  };
  table.pointwise_gradient_scratch = Point::scratch;
  table.pointwise_sums_size = Point::sums_size;
  table.pointwise_gradient = Point::gradient;
  table.joint_items = Join::items;
  table.joint_rows = Join::rows;
  table.joint_scratch = Join::scratch;
  table.joint_sums_size = Join::sums_size;
  table.joint_gradient = Join::gradient;
  table.row_of_sums = Tile::NR;
  return table;
}
