// Index arithmetic of borders, phases and parts.  The kernels, the host code and the tests share these functions.
#pragma once

#include "layers.h"
#include "platform.cuh"

namespace dip_fast::cuda {

// The pixel that a convolution reads at position `at` of a line of `size` pixels, where -1 <= at <= size; -1: a zero.
DIP_FAST_HD int padded_index(int at, int size, Padding padding) {
  // Chosen without branches: threads of a warp differ in what is inside.
  const int repeated = at < 0 ? 0 : size - 1, reflected = at < 0 ? -at : 2 * size - 2 - at;
  const int outside = padding == Padding::zeros ? -1 : padding == Padding::replicate ? repeated : reflected;
  return at >= 0 && at < size ? at : outside;
}

// U(r, i): the weight of pixel i of a line of `size` in pixel r of the same line upsampled by two.
DIP_FAST_HD float upsampling_weight(int r, int i, int size, bool bilinear) {
  const int own = r >> 1;
  if (!bilinear) return own == i ? 1.f : 0.f;
  const int other = r & 1 ? own + 1 : own - 1;
  const int clamped = other < 0 ? 0 : other < size ? other : size - 1;
  return (own == i ? 0.75f : 0.f) + (clamped == i ? 0.25f : 0.f);
}

// a_t(o, i) = U(P(o + t - 1), i), with P the padding: the weight of low-resolution pixel i in what output o reads
// through tap t of three.  It is zero but for outputs 2i - 2 .. 2i + 3.  As a matrix it upsamples, pads and shifts; its
// transpose takes gradients of outputs back to the low resolution.
DIP_FAST_HD float tap_grad_weight(int o, int i, int t, int size, bool bilinear, Padding padding) {
  if (o < 0 || o >= 2 * size) return 0.f;
  const int r = padded_index(o + t - 1, 2 * size, padding);
  return r < 0 ? 0.f : upsampling_weight(r, i, size, bilinear);
}

// A pixel on the border of an image: its side (0 top, 1 bottom, 2 left, 3 right) and its position along that side.
struct Border {
  int side, at;  // side -1: an inner pixel
};
DIP_FAST_HD Border border_of(int row, int column, int height, int width) {
  if (row == 0 || row == height - 1) return {row == 0 ? 0 : 1, column};
  if (column == 0 || column == width - 1) return {column == 0 ? 2 : 3, row};
  return {-1, 0};
}
struct Position {
  int row, column;  // may lie outside the image
};
DIP_FAST_HD Position border_position(int side, int at, int height, int width) {
  if (side < 2) return {side == 0 ? 0 : height - 1, at};
  return {at, side == 2 ? 0 : width - 1};
}

// The outputs of a convolution that read pixel i of a line through tap t: at most one in the interior.  Reflecting or
// replicating padding adds a second one next to the border.
struct OutputPair {
  int first, second;  // -1: none
};
DIP_FAST_HD OutputPair outputs_reading(int i, int t, int size, int outputs, int stride, int pad, Padding padding) {
  OutputPair result{-1, -1};
  const int at = i + pad - t;
  const int log2_stride = stride - 1;  // the stride is 1 or 2
  if (at >= 0 && (at & log2_stride) == 0 && at >> log2_stride < outputs) result.first = at >> log2_stride;
  if (pad == 0 || padding == Padding::zeros) return result;
  const int last = outputs - 1, after = last * stride + t - pad;
  if (t == 0 && padded_index(-1, size, padding) == i) result.second = 0;
  if (after >= size && padded_index(after, size, padding) == i) result.second = last;
  return result;
}

// depth / channels for quotients below 10 and channels below 2^16, in few instructions: half a channel is more than
// what the division rounds by.
DIP_FAST_HD int tap_of(int depth, int channels) { return int((float(depth) + 0.5f) * (1 / float(channels))); }

// A list of tap indices below 8, three bits each, packed so that it stays in a register.
struct TapList {
  unsigned bits, count;
  DIP_FAST_HD int at(int i) const { return int(bits >> (3 * i) & 7); }
  DIP_FAST_HD void add(int tap) { bits |= unsigned(tap) << (3 * count++); }
};

// How many of `total` sites fall into a part, where each part but the last has `rows`.
DIP_FAST_HD int64_t sites_in_part(int64_t part, int64_t rows, int64_t total) {
  const int64_t left = total - part * rows;
  return left < 0 ? 0 : left < rows ? left : rows;
}

DIP_FAST_HD constexpr int ceil_div(int64_t a, int64_t b) { return int((a + b - 1) / b); }
DIP_FAST_HD constexpr int round_up(int a, int b) { return ceil_div(a, b) * b; }

}  // namespace dip_fast::cuda
