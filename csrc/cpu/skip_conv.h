// The skip channels of norm_upsample_conv2d:  y = upsample_conv2d(x) + conv(q),  with q of few channels S.  conv(q) is
// one product of depth 9 S for each output pixel, added where the outputs are formed, together with the moments of the
// outputs.
#pragma once

#include "epilogue.h"
#include "moments.h"
#include "tile.h"
#include "transform.h"

// Adds conv(q) to the rows of outputs that a block of sites completes.  For each block: begin(), add_piece() for each
// piece of a row that will be written, then, for each tile of output channels, multiply() and write() for each piece.
template <class Tile>
struct SkipConvOutputs {
  using T = typename Tile::T;
  static constexpr int NR = Tile::NR;
  // A block of 64 sites completes at most three rows of 2 * 64 columns, and at its begin and its end the columns that
  // waited from the stretch before.
  static constexpr int64_t PIXELS = rounded_up(3 * (2 * MAX_BLOCK + 4 * (Tile::LANES + 2)), NR);

  struct Piece {  // `count` pixels of one row of the output, whose first is pixel `pixel` of the block
    int64_t row, col, count, pixel;
  };

  const Shape& s;
  SkipConv<T> skip;
  MomentSums<Tile> sums;
  bool stream;
  T *panel, *products;
  int64_t pieces = 0, pixels = 0;
  Piece piece[3 * MAX_BLOCK + 3];

  static int64_t depth_of(int64_t channels) { return 9 * channels; }
  static int64_t size(const Shape& s, int64_t channels) {
    return MomentSums<Tile>::size(s.K) + depth_of(channels) * PIXELS + Tile::MR * PIXELS;
  }

  SkipConvOutputs(const Shape& shape, const SkipConv<T>& conv, bool past_caches, T* scratch)
      : s(shape), skip(conv), sums(shape.K, scratch), stream(past_caches) {
    panel = scratch + MomentSums<Tile>::size(s.K);
    products = panel + depth_of(skip.channels) * PIXELS;
    fill_zero(panel, depth_of(skip.channels) * PIXELS);
  }

  void begin() { pieces = pixels = 0; }

  // Copies the windows of the pixels of a piece into the panel.
  void add_piece(int64_t row, int64_t col, int64_t count) {
    piece[pieces++] = {row, col, count, pixels};
    const int64_t depth = depth_of(skip.channels), pitch = 2 * s.W + 2, plane = (2 * s.H + 2) * pitch;
    for (int64_t c = 0; c < skip.channels; ++c)
      for (int64_t tap = 0; tap < 9; ++tap) {
        const T* from = skip.image + c * plane + (row + tap / 3) * pitch + col + tap % 3;
        T* to = panel + (9 * c + tap) * NR;
        each_panel<NR>(pixels, count, [&](int64_t p, int64_t lane, int64_t t, auto part) {
          T* o = to + p * depth * NR + lane;
#pragma omp simd
          for (int64_t q = 0; q < part; ++q) o[q] = from[t + q];
        });
      }
    pixels += count;
  }

  // conv(q) of all pieces, for the output channels k0 .. k1.
  void multiply(int64_t k0, int64_t k1) {
    const int64_t depth = depth_of(skip.channels);
    for (int64_t d = 0; d < depth; d += CHAIN)
      for (int64_t p = 0; p < quotient_up(pixels, NR); ++p)
        Tile::Unpaired::upto(static_cast<int>(k1 - k0), at_most(depth - d, CHAIN), skip.weight + k0 * depth + d, depth,
                             panel + (p * depth + d) * NR, products + p * NR, PIXELS, d > 0);
  }

  // Adds conv(q) to the line of piece `index` and writes it.  Channel k is the row-th that was multiplied; `output` is
  // that channel.
  template <class O>
  void write(int64_t index, int64_t k, int64_t row, T* line, O* output) const {
    const Piece& at = piece[index];
    if (skip.channels > 0) {
      const T* more = products + row * PIXELS + at.pixel;
#pragma omp simd
      for (int64_t t = 0; t < at.count; ++t) line[t] += more[t];
    }
    sums.add(k, line, at.count);
    write_line<Tile>(line, at.count, output + at.row * 2 * s.W + at.col, stream);
  }
};
