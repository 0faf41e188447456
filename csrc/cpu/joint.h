// Beside upsample_conv2d: a thin convolution of a full-resolution image, added where the outputs are formed, and the
// moments of the outputs.
//
// y = upsample_conv2d(x) + conv(q),  q of few channels S: one product of depth 9 S for each output pixel.
#pragma once

#include "epilogue.h"
#include "moments.h"
#include "tile.h"
#include "transform.h"

template <class Tile>
struct Joint {
  using T = typename Tile::T;
  static constexpr int NR = Tile::NR;
  // A block of 64 sites completes at most three rows of 2 * 64 columns and of what waited from the stretch before, at
  // its begin and its end.
  static constexpr int64_t PIXELS = rounded_up(3 * (2 * MAX_BLOCK + 4 * (Tile::LANES + 2)), NR);

  struct Piece {  // of one row of the output
    int64_t row, col, count, at;
  };

  const Shape& s;
  SkipConv<T> beside;
  MomentSums<Tile> sums;
  bool stream;
  T *panel, *products;
  int64_t pieces = 0, pixels = 0;
  Piece piece[3 * MAX_BLOCK + 3];

  static int64_t depth_of(int64_t channels) { return 9 * channels; }
  static int64_t size(const Shape& s, int64_t channels) {
    return MomentSums<Tile>::size(s.K) + depth_of(channels) * PIXELS + Tile::MR * PIXELS;
  }

  Joint(const Shape& shape, const SkipConv<T>& with, bool past, T* scratch)
      : s(shape), beside(with), sums(shape.K, scratch), stream(past) {
    panel = scratch + MomentSums<Tile>::size(s.K);
    products = panel + depth_of(beside.channels) * PIXELS;
    fill_zero(panel, depth_of(beside.channels) * PIXELS);
  }

  void begin() { pieces = pixels = 0; }

  // `count` pixels of the output will be written.
  void add(int64_t row, int64_t col, int64_t count) {
    piece[pieces++] = {row, col, count, pixels};
    const int64_t depth = depth_of(beside.channels), pitch = 2 * s.W + 2, plane = (2 * s.H + 2) * pitch;
    for (int64_t c = 0; c < beside.channels; ++c)
      for (int64_t tap = 0; tap < 9; ++tap) {
        const T* from = beside.image + c * plane + (row + tap / 3) * pitch + col + tap % 3;
        T* to = panel + (9 * c + tap) * NR;
        each_panel<NR>(pixels, count, [&](int64_t p, int64_t lane, int64_t t, auto part) {
          T* o = to + p * depth * NR + lane;
#pragma omp simd
          for (int64_t q = 0; q < part; ++q) o[q] = from[t + q];
        });
      }
    pixels += count;
  }

  // The thin products of the output channels k0 .. k1 for all pieces.
  void multiply(int64_t k0, int64_t k1) {
    const int64_t depth = depth_of(beside.channels);
    for (int64_t d = 0; d < depth; d += CHAIN)
      for (int64_t p = 0; p < quotient_up(pixels, NR); ++p)
        Tile::upto(static_cast<int>(k1 - k0), at_most(depth - d, CHAIN), beside.weight + k0 * depth + d, depth,
                   panel + (p * depth + d) * NR, products + p * NR, PIXELS, d > 0);
  }

  // Writes piece `index` of channel k, the row-th of those that were multiplied; `output` is that channel's.
  void put(int64_t index, int64_t k, int64_t row, T* line, T* output) const {
    const Piece& at = piece[index];
    if (beside.channels > 0) {
      const T* more = products + row * PIXELS + at.at;
#pragma omp simd
      for (int64_t t = 0; t < at.count; ++t) line[t] += more[t];
    }
    sums.add(k, line, at.count);
    write_line<Tile>(line, at.count, output + at.row * 2 * s.W + at.col, stream);
  }
};

// The first part of the way back: the gradient of the outputs' raw values, g + constant + factor y, written out, and
// the gradients of the thin convolution and of the bias, which read it once.
template <class Tile>
struct JointGradient {
  using T = typename Tile::T;
  static constexpr int NR = Tile::NR, LANES = Tile::LANES;
  static constexpr int64_t SEGMENT = 128, LD = SEGMENT + 16;

  static int64_t row_of_sums(int64_t channels) { return rounded_up(9 * channels, NR); }
  static int64_t sums_size(const Shape& s, int64_t channels) { return s.K * (row_of_sums(channels) + 1); }
  static Bands bands(const Shape& s) { return {2 * s.H, at_least(2, quotient_up(2 * s.H, 32))}; }
  static int64_t items(const Shape& s) { return bands(s).count; }
  static int64_t rows(const Shape& s) { return bands(s).rows; }
  static int64_t scratch(const Shape& s, int64_t channels) {
    return (s.K + 2 * 9 * channels) * LD + row_of_sums(channels) * SEGMENT;
  }

  // local: the gradient of the rows of the padded image that the item's rows read, (S, rows + 2, 2W + 2).
  static void gradient(const Shape& s, const T* grad, const T* output, const T* constant, const T* factor,
                       const SkipConv<T>& beside, T* full, T* sums, T* local, int64_t item, T* scratch) {
    const int64_t S = beside.channels, D = 9 * S, row = row_of_sums(S), width = 2 * s.W, plane = 2 * s.H * width;
    const int64_t pitch = width + 2, padded = (2 * s.H + 2) * pitch;
    const Bands band = bands(s);
    const int64_t top = band.begin(item), bottom = band.end(item, 2 * s.H), part = (band.rows + 2) * pitch;
    const bool stream = streams<T>(s.K * plane, width);
    T *g = scratch, *fields = g + s.K * LD, *made = fields + D * LD, *panels = made + D * LD;
    fill_zero(sums, sums_size(s, S));
    fill_zero(local, S * part);
    for (int64_t r = top; r < bottom; ++r)
      for (int64_t first = 0; first < width; first += SEGMENT) {
        const int64_t count = at_most(width - first, SEGMENT), filled = rounded_up(count, NR);
        for (int64_t k = 0; k < s.K; ++k) {
          const int64_t at = k * plane + r * width + first;
          T* to = g + k * LD;
          if (k + 2 < s.K) prefetch(grad + at + 2 * plane, count);
          if (output != nullptr && k + 2 < s.K) prefetch(output + at + 2 * plane, count);
          sums[s.K * row + k] += raw_gradient<Tile>(grad + at, output == nullptr ? nullptr : output + at, constant[k],
                                                    factor[k], count, to);
          fill_zero(to + count, filled - count);
          if (full != nullptr) write_line<Tile>(to, count, full + at, stream);
        }
        if (S == 0) continue;
        for (int64_t d = 0; d < D; ++d)
          copy(beside.image + d / 9 * padded + (r + d % 9 / 3) * pitch + first + d % 3, count, fields + d * LD);
        for (int64_t c = 0; c < row; c += NR)
          turn_line<Tile>(fields + c * LD, LD, at_most(NR, D - c), count, NR, panels + c * count);
        for (int64_t c = 0; c < row; c += NR)
          for (int64_t tile = 0; tile < Tile::tiles(s.K); ++tile) {
            const int64_t k0 = Tile::tile_begin(s.K, tile), k1 = Tile::tile_begin(s.K, tile + 1);
            for (int64_t t = 0; t < count; t += CHAIN)
              Tile::upto(static_cast<int>(k1 - k0), at_most(count - t, CHAIN), g + k0 * LD + t, LD,
                         panels + c * count + t * NR, sums + k0 * row + c, row, true);
          }
        for (int64_t tile = 0; tile < Tile::tiles(D); ++tile) {
          const int64_t d0 = Tile::tile_begin(D, tile), d1 = Tile::tile_begin(D, tile + 1);
          for (int64_t k = 0; k < s.K; k += CHAIN)
            for (int64_t p = 0; p < filled; p += NR)
              Tile::upto(static_cast<int>(d1 - d0), at_most(s.K - k, CHAIN), beside.weight + d0 * s.K + k, s.K,
                         g + k * LD + p, made + d0 * LD + p, LD, k > 0, LD);
        }
        for (int64_t d = 0; d < D; ++d) {
          T* to = local + d / 9 * part + (r - top + d % 9 / 3) * pitch + first + d % 3;
          const T* from = made + d * LD;
#pragma omp simd
          for (int64_t t = 0; t < count; ++t) to[t] += from[t];
        }
      }
    Tile::fence();
  }
};
