// The kernels of upsample_conv2d, as templates.  Each kernels_<instruction set>.cpp includes this file inside an
// unnamed namespace: it is compiled with flags of its own, so the linker must not share any of its functions with other
// files.
#pragma once

#include "bands.h"

// The tile of the instruction set that the file is compiled for: rows of two vectors, as many as the registers hold
// besides those for the operands.
#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, TILE_ROWS = 12;  // 24 of 32 registers hold sums
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32, TILE_ROWS = 6;  // 12 of 16
#else
constexpr int VECTOR_BYTES = 16, TILE_ROWS = 4;  // 8 of 16
#endif
template <class T>
using TileOf = Tile<T, VECTOR_BYTES / sizeof(T), TILE_ROWS, 2>;

// The tile of layers whose output is stored as O.
#if defined(__AVX512BF16__)
template <class O>
using LayerTile = Tile<Computed<O>, VECTOR_BYTES / sizeof(Computed<O>), TILE_ROWS, 2, std::is_same_v<O, BFloat16>>;
#else
template <class O>
using LayerTile = TileOf<Computed<O>>;
#endif

template <class T>
constexpr UpsampleKernels<T> make_upsample_kernels() {
  using P = Passes<TileOf<T>>;
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
