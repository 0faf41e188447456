// The algebra of the convolutions of layers.h: each is a sum of products of fields.  A field is a linear function of
// the pixels about a site, for all input channels; a product multiplies a field by a matrix of weights.
//
// Winograd's F(2, 3), one dimension: two outputs y0 y1 of four inputs d0 .. d3 and three taps w0 w1 w2, by four
// products
//
//   field            weight                  y0 = m0 + m1 + m2
//   d0 - d2          w0                      y1 = m1 - m2 - m3
//   d1 + d2          (w0 + w1 + w2) / 2
//   d2 - d1          (w0 - w1 + w2) / 2
//   d1 - d3          w2
//
// Of a channel that is upsampled by two the four inputs are x[i-1] x[i] x[i] x[i+1], the third field is zero, and the
// others are x[i-1] - x[i], 2 x[i] and x[i] - x[i+1].
//
// Two dimensions are the tensor product, slot 4a + b.  The weights' gradients are the products of the fields with
// y0, y0 + y1, y0 - y1 and -y1 of the outputs' gradient.
//
// The adjoint of a convolution with stride 2, one dimension, y[i] = w0 x[2i] + w1 x[2i+1] + w2 x[2i+2] (x is padded):
//
//   dx[2i] = w0 g[i] + w2 g[i-1]      dx[2i+1] = w1 g[i]
#pragma once

#include "tile.h"
#include "transform.h"

// An algorithm in numbers.  Slot i multiplies the weights of slot i by field(i), and the result goes to product(i); if
// accumulates(i), it is added to what is there.  BLOCK sites are worked on at a time, of winograd with many
// channels 32.
template <Algorithm A>
struct Scheme;

template <>
struct Scheme<Algorithm::pointwise> {
  static constexpr int SLOTS = 1, FIELDS = 1, PRODUCTS = 1;
  static constexpr int64_t BLOCK = 256;
  static constexpr int field(int) { return 0; }
  static constexpr int product(int) { return 0; }
  static constexpr bool accumulates(int) { return false; }
};

template <>
struct Scheme<Algorithm::strided> {
  static constexpr int SLOTS = 9, FIELDS = 9, PRODUCTS = 1;
  static constexpr int64_t BLOCK = 64;
  static constexpr int field(int slot) { return slot; }
  static constexpr int product(int) { return 0; }
  static constexpr bool accumulates(int slot) { return slot > 0; }
};

template <>
struct Scheme<Algorithm::winograd> {
  static constexpr int SLOTS = 16, FIELDS = 16, PRODUCTS = 16;
  static constexpr int64_t BLOCK = 64;  // 16 fields of 64 channels take 256 kB
  static constexpr int field(int slot) { return slot; }
  static constexpr int product(int slot) { return slot; }
  static constexpr bool accumulates(int) { return false; }
  // Whether the field of an upsampled channel is zero, and the slots of its other fields, a and b of 0, 1, 2.
  static constexpr bool vanishes_upsampled(int slot) { return slot / 4 == 2 || slot % 4 == 2; }
  static constexpr int upsampled_slot(int a, int b) { return 4 * (a + a / 2) + (b + b / 2); }
};

template <>
struct Scheme<Algorithm::strided_gradient> {
  static constexpr int SLOTS = 9, FIELDS = 4, PRODUCTS = 4;
  static constexpr int64_t BLOCK = 64;
  // The tap 3a + b of each slot; the slots of one output are neighbours, in the order even even, even odd, odd even,
  // odd odd.  The fields are g[i][j], g[i][j-1], g[i-1][j] and g[i-1][j-1].
  static constexpr int taps[9] = {0, 2, 6, 8, 1, 7, 3, 5, 4};
  static constexpr int field(int slot) { return taps[slot] / 3 / 2 * 2 + taps[slot] % 3 / 2; }
  static constexpr int product(int slot) { return slot < 4 ? 0 : slot < 6 ? 1 : slot < 8 ? 2 : 3; }
  static constexpr bool accumulates(int slot) { return slot > 0 && product(slot) == product(slot - 1); }
};

// These say whether a site is a square of 2x2 outputs, and whether the input is a split copy.
template <Algorithm A>
constexpr bool HAS_SQUARES = A == Algorithm::winograd || A == Algorithm::strided_gradient;
template <Algorithm A>
constexpr bool READS_SPLIT = A == Algorithm::winograd || A == Algorithm::strided;

// The layout of a padded copy of a convolution's input: half a split row, a row, and the plane of one channel.
template <Algorithm A>
struct InputLayout {
  int64_t half, row, plane;

  InputLayout(const ConvShape& s, const Rows& rows)
      : half(s.cols + 1),
        row(READS_SPLIT<A>              ? 2 * half
            : A == Algorithm::pointwise ? s.cols
                                        : s.cols + 1),
        plane(rows.count * row) {}
};

// The rows of the input that the sites of a band of rows read.
template <Algorithm A>
static Rows rows_read(const ConvShape& s, const Bands& band, int64_t item) {
  if (A == Algorithm::pointwise) return {0, 1};
  const int64_t begin = band.begin(item), count = band.end(item, s.rows) - begin;
  return READS_SPLIT<A> ? Rows{2 * begin, 2 * count + 2} : Rows{begin, count + 1};
}
