// Which pixel is meant: the arithmetic of borders, phases, tiles and parts, for the GPU and for the tests alike.
#pragma once

#include "layers.h"
#include "platform.cuh"

namespace dip_fast::cuda {

// Pixel of a line of `size` that stands at `at`, at most one beside it; -1 where there is a zero.
DIP_FAST_HD int padded(int at, int size, Padding padding) {
  if (at >= 0 && at < size) return at;
  if (padding == Padding::zeros) return -1;
  if (padding == Padding::replicate) return at < 0 ? 0 : size - 1;
  return at < 0 ? -at : 2 * size - 2 - at;
}

// What pixel i of a line of `size` counts in pixel r of the line upsampled by two.
DIP_FAST_HD float upsampled_from(int r, int i, int size, bool bilinear) {
  const int own = r >> 1;
  if (!bilinear) return own == i ? 1.f : 0.f;
  const int other = r & 1 ? own + 1 : own - 1;
  const int clamped = other < 0 ? 0 : other < size ? other : size - 1;
  return (own == i ? 0.75f : 0.f) + (clamped == i ? 0.25f : 0.f);
}

// What the gradient of output o counts in that of pixel i of a line of `size` before upsampling and padding, through
// tap t of three: the adjoint of both.  Only outputs 2i - 2 .. 2i + 3 do.
DIP_FAST_HD float field_weight(int o, int i, int t, int size, bool bilinear, Padding padding) {
  if (o < 0 || o >= 2 * size) return 0.f;
  const int r = padded(o + t - 1, 2 * size, padding);
  return r < 0 ? 0.f : upsampled_from(r, i, size, bilinear);
}

// A pixel at the border of an image, by the side it is on (top, bottom, left, right) and its place there.
struct Border {
  int side, at;  // side -1: none
};
DIP_FAST_HD Border border_of(int row, int column, int height, int width) {
  if (row == 0 || row == height - 1) return {row == 0 ? 0 : 1, column};
  if (column == 0 || column == width - 1) return {column == 0 ? 2 : 3, row};
  return {-1, 0};
}
struct Place {
  int row, column;  // may be outside of the image
};
DIP_FAST_HD Place at_border(int side, int at, int height, int width) {
  if (side < 2) return {side == 0 ? 0 : height - 1, at};
  return {at, side == 2 ? 0 : width - 1};
}

// The outputs of a convolution that read pixel i of a line through tap t: its padding reads some pixels twice.
struct Readers {
  int first, second;  // -1: none
};
DIP_FAST_HD Readers readers(int i, int t, int size, int outputs, int stride, int pad, Padding padding) {
  Readers result{-1, -1};
  const int at = i + pad - t;
  const int halving = stride - 1;  // 0 or 1
  if (at >= 0 && (at & halving) == 0 && at >> halving < outputs) result.first = at >> halving;
  if (pad == 0 || padding == Padding::zeros) return result;
  const int last = outputs - 1, after = last * stride + t - pad;
  if (t == 0 && padded(-1, size, padding) == i) result.second = 0;
  if (after >= size && padded(after, size, padding) == i) result.second = last;
  return result;
}

// A list of numbers below 8, three bits each, that stays in a register.
struct Digits {
  unsigned bits, count;
  DIP_FAST_HD int at(int i) const { return int(bits >> (3 * i) & 7); }
  DIP_FAST_HD void add(int digit) { bits |= unsigned(digit) << (3 * count++); }
};

// Parts of a sum over `total` sites: each tile of sites is cut into parts of `rows`.
DIP_FAST_HD int64_t sites_of_part(int64_t part, int64_t rows, int64_t total) {
  const int64_t left = total - part * rows;
  return left < 0 ? 0 : left < rows ? left : rows;
}

DIP_FAST_HD constexpr int quotient_up(int64_t a, int64_t b) { return int((a + b - 1) / b); }
DIP_FAST_HD constexpr int rounded_up(int a, int b) { return quotient_up(a, b) * b; }

}  // namespace dip_fast::cuda
