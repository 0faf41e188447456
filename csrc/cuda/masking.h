// Masked views on a GPU, as the bindings call them.  csrc/cpu/masking_kernel.h states the algebra.
#pragma once

#include "layers.h"

namespace dip_fast::cuda {

// A view of one of the pictures y, (N, C, H, W), its mask, and where both go.
struct MaskedView {
  const float* y = nullptr;
  int64_t N = 1, C = 1, H = 1, W = 1;
  // If `drawn`, the step decides on n, top, left and orientation.  Before it is turned the view has these sides.
  int64_t n = 0, top = 0, left = 0, height = 1, width = 1, orientation = 0;
  bool drawn = false;
  int64_t margin = 0;  // how far a drawn view may reach over the edges
  int64_t block = 1;
  uint64_t kept_below = 0;  // a sample is kept if its random word is less
  uint64_t seed = 0;
  const int64_t* step = nullptr;  // read on the GPU, so a captured CUDA graph sees its current value
  // The view with its holes filled and its mask, (2C, ...), and the view as it is, (C, ...).
  float *z = nullptr, *target = nullptr;
};

void mask(const MaskedView& view, Stream stream);

}  // namespace dip_fast::cuda
