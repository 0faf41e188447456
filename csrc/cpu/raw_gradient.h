// The gradient of a raw output, with the part that comes through its statistics (RawGradient in layers.h), as it is
// read.
#pragma once

#include "tile.h"

// to = g + constant + factor y (y may be null), the gradient of a raw output, and returns its sum.
template <class Tile, class S, class T = typename Tile::T>
static inline T raw_gradient(const S* g, const S* y, T constant, T factor, int64_t count, T* to) {
  using Vector = typename Tile::Vector;
  Vector all{};
  int64_t t = 0;
  for (; t + Tile::LANES <= count; t += Tile::LANES) {
    Vector value = Tile::load(g + t);
    if (y != nullptr) value += constant + factor * Tile::load(y + t);
    all += value;
    Tile::store(to + t, value);
  }
  T sum = Tile::sum(all);
  for (; t < count; ++t) {
    to[t] = y == nullptr ? value_of(g[t]) : value_of(g[t]) + (constant + factor * value_of(y[t]));
    sum += to[t];
  }
  return sum;
}

// The same for one value, at an offset in the tensors.
template <class S, class T = Computed<S>>
static inline T raw_gradient_at(const RawGradient<S>& raw, int64_t k, int64_t offset) {
  const T g = value_of(raw.grad[offset]);
  return raw.output == nullptr ? g : g + (raw.constant[k] + raw.factor[k] * value_of(raw.output[offset]));
}
