// All kernels, as templates.  Each kernels_<isa>.cpp includes this file inside an unnamed namespace: compiled with
// flags of its own, nothing of it may be shared with another file by the linker.
#pragma once

#include "bands.h"

template <class Tile, class T = typename Tile::T>
constexpr Kernels<T> kernels_of() {
  using P = Passes<Tile>;
  return {P::packed_size,
          P::pack,
          P::forward_items,
          P::forward_scratch,
          P::forward,
          P::data_gradient_items,
          P::data_gradient_scratch,
          P::data_gradient,
          P::weight_gradient_items,
          P::weight_gradient_scratch,
          P::sums_size,
          P::weight_gradient,
          P::finish};
}
