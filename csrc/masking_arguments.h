// The arguments of masked_crop and masked_window and their checks, which all devices share.  They are those of
// dip_fast/ops/masking.py, which the fake kernels and the definition use.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "arguments.h"

namespace dip_fast {

// Rows top .. top + height and columns left .. left + width of picture n, in one of eight orientations.
struct View {
  int64_t n, top, left, height, width, orientation;

  bool transposed() const { return orientation & 4; }
};

constexpr int64_t MAX_PLACE = int64_t(1) << 30, MAX_BLOCK = 64;

inline void check_masking(const at::Tensor& y, double keep, int64_t block, const at::Tensor& step) {
  TORCH_CHECK_TYPE(y.scalar_type() == at::kFloat, "y must be of dtype float32, got ", y.scalar_type());
  TORCH_CHECK_VALUE(y.dim() == 4 && y.numel() > 0, "y must be (N, C, H, W) with N, C, H, W >= 1, got ", y.sizes());
  TORCH_CHECK_VALUE(keep >= 0 && keep <= 1, "keep must be a probability, in [0, 1], got ", keep);
  TORCH_CHECK_VALUE(block >= 1 && block <= MAX_BLOCK, "block must be a number of pixels in 1 .. ", MAX_BLOCK, ", got ",
                    block);
  check_step(step, "y", y);
}

inline void check_crop(const at::Tensor& y, int64_t side, int64_t margin) {
  TORCH_CHECK_VALUE(margin >= 0 && margin <= MAX_PLACE, "margin must be in 0 .. 2**30, got ", margin);
  const int64_t H = y.size(2), W = y.size(3), most = std::min(H, W) + 2 * margin;
  TORCH_CHECK_VALUE(side >= 1 && side <= most, "side must be in 1 .. ", most, ", which pictures of ", H, "x", W,
                    " have with a margin of ", margin, ", got ", side, ": crop less, or allow a wider margin");
}

inline void check_view(const at::Tensor& y, const View& v) {
  TORCH_CHECK_VALUE(v.n >= 0 && v.n < y.size(0), "n must be one of the ", y.size(0), " pictures, counted from 0, got ",
                    v.n);
  TORCH_CHECK_VALUE(std::max(v.top, v.left) <= MAX_PLACE && std::min(v.top, v.left) >= -MAX_PLACE,
                    "top and left must be in -2**30 .. 2**30, got ", v.top, " and ", v.left);
  TORCH_CHECK_VALUE(std::min(v.height, v.width) >= 1 && std::max(v.height, v.width) <= MAX_PLACE,
                    "height and width must be in 1 .. 2**30, got ", v.height, " and ", v.width);
  TORCH_CHECK_VALUE(v.orientation >= 0 && v.orientation <= 7, "orientation must be in 0 .. 7, got ", v.orientation);
}

// A sample is kept if its random word is less than this.
inline uint64_t kept_below(double keep) { return uint64_t(std::ceil(keep * 0x1p32)); }

}  // namespace dip_fast
