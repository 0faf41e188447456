// What the ring of outputs (ring.h) adds to the backward pass of norm_upsample_conv2d after bilinear upsampling: each
// of its four sides is an item.  The gradient of the outputs is formed as it is read (RawGradient).
#pragma once

#include "bands.h"
#include "raw_gradient.h"

template <class Tile>
struct RingGradient {
  using T = typename Tile::T;
  using Operator = Passes<Tile>;

  // The sums of the nine slots, as UpsampleKernels::finish takes them.
  static int64_t sums_size(const Shape& s) { return Operator::sums_size(s); }
  // The gradients of the two lines of the deep image along a side, (2, C, size).
  static int64_t lines_size(const Shape& s) { return 2 * s.C * at_least(s.H, s.W); }
  static int64_t scratch(const Shape& s) {
    return at_least(Operator::ring_weight_scratch(s), (3 * s.K + s.C) * Tile::NR);
  }

  // deep: (C, H + 2, W + 2), with a border.  packed: the nine weights, transposed.
  template <class O>
  static void gradient(const Shape& s, const RawGradient<O>& raw, const T* deep, const T* packed, T* sums, T* lines,
                       int64_t index, T* scratch) {
    const int64_t pitch = s.W + 2, corner = pitch + 1;
    const Side side = side_of(s, static_cast<int>(index), pitch, (s.H + 2) * pitch);
    const int64_t size = 2 * side.size, beyond = side.vertical ? 0 : 1;
    const auto gradient_at = [&](int64_t k, int64_t position) {
      return raw_gradient_at(raw, k, 4 * k * s.H * s.W + side.output + position * side.output_step);
    };
    fill_zero(sums, sums_size(s));
    fill_zero(lines, lines_size(s));
    Operator::ring_weight_gradient(s, gradient_at, deep + corner, side, 0, size, sums, scratch);
    ring_data_gradient<Tile>(
        s, packed, side, -beyond, size + beyond, gradient_at, scratch,
        [&](int64_t c, int line, int64_t at, T value) { lines[(line * s.C + c) * side.size + at] += value; });
  }

  // Adds the lines of all sides to the gradient of a channel, (H, W).
  static void add_lines(const Shape& s, const T* lines, int64_t channel, T* image) {
    for (int index = 0; index < 4; ++index) {
      const Side side = side_of(s, index);
      for (int line = 0; line < 2; ++line) {
        const T* from = lines + index * lines_size(s) + (line * s.C + channel) * side.size;
        T* to = image + (line == 0 ? side.near : side.far);
        for (int64_t at = 0; at < side.size; ++at) to[at * side.step] += from[at];
      }
    }
  }
};
