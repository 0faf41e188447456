// The passes of upsample_conv2d over a band of rows, made of transform, micro-kernel and epilogue.
//
// A band is computed in blocks of sites, whose fields stay in the second-level cache:
//
//   forward          fields of x -> nine products -> outputs
//   data gradient    fields of g -> sum of nine products -> gradient
//   weight gradient  transposed fields of x, and the products' gradients -> nine sums over the sites
//
// Bilinear blurs the outputs of nearest as they are made, row by row; for that a band also computes most of the row
// above it and of the row below it.
#pragma once

#include "epilogue.h"
#include "ring.h"
#include "skip_conv.h"
#include "tile.h"
#include "transform.h"

constexpr int64_t BLOCK = MAX_BLOCK;

template <class Tile, class O = typename Tile::T>  // O: how the outputs are stored
struct Passes {
  using T = typename Tile::T;
  static constexpr int NR = Tile::NR;
  static constexpr int64_t PRODUCTS = 9 * Tile::MR * BLOCK;

  static int64_t packed_size(const Shape& s) { return 9 * s.K * s.C; }
  static void pack(const Shape& s, const T* weight, bool transposed, int64_t k0, int64_t k1, T* packed) {
    pack_weight(weight, s.K, s.C, transposed, k0, k1, packed);
    for (int64_t row = 9 * k0; Tile::PAIRS && !transposed && row < 9 * k1; ++row) {
      T* at = packed + (row % 9 * s.K + row / 9) * s.C;
      Tile::pair_row(at, s.C, at);
    }
  }

  // ---- forward

  // Outputs are written past the caches if these would not keep them until they are read.
  static bool streams(const Shape& s) { return 4 * s.N * s.K * s.H * s.W * int64_t(sizeof(O)) >= STREAMED; }

  // Bands have at least one block and otherwise 1/64 of the rows.  For bilinear, where each band computes most of two
  // more rows, they have 32 rows, or fewer if some threads would have no band.
  static Bands forward_bands(const Shape& s) {
    const int64_t block = quotient_up(BLOCK, s.W);
    return {s.H, at_least(block, s.bilinear ? at_most(32, quotient_up(s.N * s.H, s.threads)) : quotient_up(s.H, 64))};
  }
  // Bilinear also divides the columns into strips, so that the lines that Blur keeps stay below 640 kB for any width.
  static Bands strips(const Shape& s) { return {s.W, s.bilinear ? at_least(16, 163840 / (s.K * 4) - 10) : s.W}; }
  static int64_t kept_line(const Shape& s) { return rounded_up(2 * (at_most(s.W, strips(s).rows + 2)), 16) + 16; }

  static int64_t forward_items(const Shape& s) { return s.N * forward_bands(s).count * strips(s).count; }

  static int64_t skip_size(const Shape& s, int64_t skip_channels) {
    return skip_channels < 0 ? 0 : rounded_up(SkipConvOutputs<Tile>::size(s, skip_channels), 16);
  }
  static int64_t forward_scratch(const Shape& s, int64_t skip_channels) {
    const int64_t ring = (3 * s.C + s.K) * NR, fields = 9 * field_slot(s.C * BLOCK);
    return skip_size(s, skip_channels) +
           at_least(ring, fields + PRODUCTS + (s.bilinear ? Blur<Tile>::size(s.K, kept_line(s)) : 0));
  }

  static void forward(const Shape& s, const T* input, const T* packed, const T* bias, O* output, int64_t item,
                      T* scratch, const SkipConv<T>* skip, Moments* moments) {
    const Bands bands = forward_bands(s), strip = strips(s);
    const int64_t across = item % strip.count, left = strip.begin(across), right = strip.end(across, s.W);
    const int64_t n = item / strip.count / bands.count, band = item / strip.count % bands.count;
    const int64_t top = bands.begin(band), bottom = bands.end(band, s.H);
    const Region region{top, left, bottom - top, right - left};
    ForwardOperands operands{
        s, input + n * s.C * s.H * s.W, packed, bias, output + n * s.K * 4 * s.H * s.W, region, nullptr, scratch};
    if (skip == nullptr) {
      if constexpr (std::is_same_v<O, T>) forward_region<false>(operands);
    } else {
      SkipConvOutputs<Tile> outputs(s, *skip, streams(s), scratch);
      operands.skip = &outputs;
      operands.scratch = scratch + skip_size(s, skip->channels);
      forward_region<true>(operands);
      for (int64_t k = 0; k < s.K; ++k) moments[k] = outputs.sums.moments(k, 4 * region.rows * region.cols);
    }
    Tile::fence();
  }

  // A region of one image, and where its outputs are written.
  struct ForwardOperands {
    const Shape& s;
    const T *image, *packed, *bias;
    O* output;
    Region region;
    SkipConvOutputs<Tile>* skip;
    T* scratch;

    T bias_of(int64_t k) const { return bias == nullptr ? T(0) : bias[k]; }
    O* channel(int64_t k) const { return output + k * 4 * s.H * s.W; }
  };

  // If SKIP, which is for bilinear alone, the outputs are formed in lines, and `skip` adds its part to these and writes
  // them.
  template <bool SKIP>
  static void forward_region(const ForwardOperands& o) {
    if constexpr (!SKIP)
      if (!o.s.bilinear) return forward_nearest(o);
    forward_bilinear<SKIP>(o);
    if (has_ring(o.s)) forward_ring<SKIP>(o);
  }

  // Makes the nine products of the sites of a region, in stretches, and calls on_block(first, last) for each block of
  // sites, in it on_tile(k0, k1) for each tile of output channels, and in that
  // on_stretch(k, i, j, length, product, slot) for each channel and stretch of sites.
  template <class OnBlock, class OnTile, class OnStretch>
  static void each_product(const ForwardOperands& o, const Region& region, int mask, OnBlock on_block, OnTile on_tile,
                           OnStretch on_stretch) {
    const Shape& s = o.s;
    T *fields = o.scratch, *products = o.scratch + 9 * field_slot(s.C * BLOCK);
    const int64_t sites = region.rows * region.cols;
    for (int64_t first = 0; first < sites; first += BLOCK) {
      const int64_t last = at_most(sites, first + BLOCK), panels = quotient_up(last - first, NR), width = panels * NR;
      input_fields<NR>(o.image, s, region, first, last, fields);
      for (int slot = 0; Tile::PAIRS && slot < 9; ++slot)
        for (int64_t p = 0; p < panels; ++p)
          Tile::pair_panel(fields + slot * field_slot(panels * s.C * NR) + p * s.C * NR, NR, s.C, NR);
      on_block(first, last);
      for (int64_t tile = 0; tile < Tile::tiles(s.K); ++tile) {
        const int64_t k0 = Tile::tile_begin(s.K, tile), k1 = Tile::tile_begin(s.K, tile + 1), slot = (k1 - k0) * width;
        nine_products<Tile>(o.packed, s.K, s.C, fields, panels, tile, products, slot, mask);
        on_tile(k0, k1);
        for (int64_t k = k0; k < k1; ++k)
          each_stretch(region, first, last, [&](int64_t i, int64_t j, int64_t site, int64_t length) {
            on_stretch(k, i, j, length, products + (k - k0) * width + (site - first), slot);
          });
      }
    }
  }

  static void forward_nearest(const ForwardOperands& o) {
    const Shape& s = o.s;
    each_product(
        o, o.region, 7, [](int64_t, int64_t) {}, [](int64_t, int64_t) {},
        [&](int64_t k, int64_t i, int64_t j, int64_t length, const T* product, int64_t slot) {
          T* even = o.channel(k) + 4 * i * s.W + 2 * j;
          combine_products<Tile>(product, slot, length, o.bias_of(k), even, even + 2 * s.W, streams(s));
        });
  }

  template <bool SKIP>
  static void forward_bilinear(const ForwardOperands& o) {
    const Shape& s = o.s;
    const int64_t top = o.region.row, bottom = top + o.region.rows, left = o.region.col, right = left + o.region.cols;
    const int64_t from = at_least(0, left - 1), until = at_most(s.W, right + 1), line = kept_line(s);
    T* kept = o.scratch + 9 * field_slot(s.C * BLOCK) + PRODUCTS;
    const Blur<Tile> blur{
        s.H, top, bottom, from, until - from, left, right, line, !SKIP && streams(s), kept, kept + 2 * s.K * line};
    int64_t tile = 0, piece = 0;  // the first channel of the tile; the next piece to be written
    const auto on_tile = [&](int64_t k0, int64_t k1) {
      if constexpr (SKIP) o.skip->multiply(tile = k0, k1);
    };
    const auto on_stretch = [&](int64_t k, int64_t i, int64_t j, int64_t length, const T* product, int64_t slot) {
      if constexpr (!SKIP) {
        blur(k, i, j, length, product, slot, o.bias_of(k), o.channel(k) + 4 * i * s.W, 2 * s.W);
      } else {
        constexpr int64_t PITCH = 2 * MAX_BLOCK + 2 * Blur<Tile>::CARRIED;
        T lines[3][PITCH];  // rows 2i - 1, 2i and 2i + 1
        const auto window = blur.window(i, j, length);
        blur(k, i, j, length, product, slot, o.bias_of(k), lines[1] - window.begin, PITCH);
        if (window.start >= window.stop) return;
        for (int64_t r = window.first; r < window.last; ++r) {
          o.skip->write(piece, k, k - tile, lines[r - 2 * i + 1] + (window.start - window.begin), o.channel(k));
          piece = (piece + 1) % o.skip->pieces;
        }
      }
    };
    const auto rows = [&](int64_t first_row, int64_t last_row, int mask) {
      const Region wider{first_row, from, last_row - first_row, until - from};
      const auto on_block = [&](int64_t first, int64_t last) {
        if constexpr (!SKIP) return;
        o.skip->begin();
        each_stretch(wider, first, last, [&](int64_t i, int64_t j, int64_t, int64_t length) {
          const auto window = blur.window(i, j, length);
          for (int64_t r = window.first; r < window.last; ++r)
            if (window.start < window.stop) o.skip->add_piece(r, window.start, window.stop - window.start);
        });
      };
      each_product(o, wider, mask, on_block, on_tile, on_stretch);
    };
    // Only the odd outputs of the row above the band are needed, and only the even ones of the row below it.
    if (top > 0) rows(top - 1, top, 5);
    rows(top, bottom, 7);
    if (bottom < s.H) rows(bottom, bottom + 1, 3);
  }

  template <bool SKIP>
  static void forward_ring(const ForwardOperands& o) {
    const Shape& s = o.s;
    const int64_t top = o.region.row, bottom = top + o.region.rows, left = o.region.col, right = left + o.region.cols;
    const auto add = [&](const Side& side, int64_t first, int64_t last) {
      ring_forward<Tile>(o.image, s, o.packed, side, first, last, o.output, o.scratch,
                         SKIP ? o.skip->sums : MomentSums<Tile>());
    };
    for (int index = 0; index < 4; ++index) {
      const Side side = side_of(s, index);
      if (side.vertical && (side.end ? right == s.W : left == 0))
        add(side, 2 * top, 2 * bottom);
      else if (!side.vertical && (side.end ? bottom == s.H : top == 0))
        add(side, 2 * left, 2 * right);
    }
  }

  // ---- data gradient

  // Bands as those of nearest in the forward pass, with a ring of at least 7 rows, whose ring fills one panel of 16.
  static Bands gradient_bands(const Shape& s) {
    return {s.H, at_least(has_ring(s) ? 7 : 1, at_least(quotient_up(BLOCK, s.W), quotient_up(s.H, 64)))};
  }
  static int64_t data_gradient_items(const Shape& s) { return s.N * gradient_bands(s).count; }
  static int64_t data_gradient_scratch(const Shape& s) {
    return at_least(9 * field_slot(s.K * BLOCK) + Tile::MR * BLOCK, (3 * s.K + s.C) * NR);
  }

  static void data_gradient(const Shape& s, const T* grad, const T* packed, T* grad_input, int64_t item, T* scratch) {
    const Bands bands = gradient_bands(s);
    const int64_t n = item / bands.count, top = bands.begin(item % bands.count),
                  bottom = bands.end(item % bands.count, s.H), plane = s.H * s.W;
    const Region region{top, 0, bottom - top, s.W};
    const T* g = grad + n * s.K * 4 * plane;
    T *dx = grad_input + n * s.C * plane, *fields = scratch, *sums = scratch + 9 * field_slot(s.K * BLOCK);
    const int64_t sites = region.rows * region.cols;
    for (int64_t first = 0; first < sites; first += BLOCK) {
      const int64_t last = at_most(sites, first + BLOCK), panels = quotient_up(last - first, NR), width = panels * NR;
      gradient_fields<NR>(g, s, region, first, last, fields);
      for (int64_t tile = 0; tile < Tile::tiles(s.C); ++tile) {
        nine_products<Tile>(packed, s.C, s.K, fields, panels, tile, sums, 0);
        const int64_t c0 = Tile::tile_begin(s.C, tile), c1 = Tile::tile_begin(s.C, tile + 1);
        for (int64_t c = c0; c < c1; ++c)
          copy(sums + (c - c0) * width, last - first, dx + c * plane + top * s.W + first);
      }
    }
    if (!has_ring(s)) return;
    for (int index = 0; index < 4; ++index) {
      const Side side = side_of(s, index);
      const auto here = [&](int64_t row) { return row >= top && row < bottom; };
      if (!side.vertical && !here(side.near / s.W) && !(s.padding == Padding::reflect && here(side.far / s.W)))
        continue;
      const auto add = [&](int64_t c, int line, int64_t at, T value) {
        const int64_t offset = (line == 0 ? side.near : side.far) + at * side.step;
        if (here(offset / s.W)) dx[c * plane + offset] += value;
      };
      const int64_t first = side.vertical ? at_least(2 * top - 1, 0) : -1,
                    last = side.vertical ? at_most(2 * bottom + 1, 2 * s.H) : 2 * s.W + 1;
      ring_data_gradient<Tile>(s, packed, side, first, last, gradient_of(g, s, side), scratch, add);
    }
  }
  static auto gradient_of(const T* grad, const Shape& s, const Side& side) {
    return [=, plane = 4 * s.H * s.W](int64_t k, int64_t position) {
      return grad[k * plane + side.output + position * side.output_step];
    };
  }

  // ---- weight gradient

  static int64_t row_of_sums(const Shape& s) { return rounded_up(s.C, NR); }
  // The sums of the nine slots (9, K, C rounded up), then those of the bias.
  static int64_t sums_size(const Shape& s) { return 9 * s.K * row_of_sums(s) + s.K; }
  // Bands have 64 to 1024 sites: to add the sums of a band to the total costs as much as about five sites.
  static Bands weight_bands(const Shape& s) {
    return {s.H, quotient_up(at_least(BLOCK, at_most(1024, s.H * s.W / 8)), s.W)};
  }
  static int64_t weight_gradient_items(const Shape& s) { return s.N * weight_bands(s).count; }
  static int64_t weight_gradient_scratch(const Shape& s) {
    return 9 * (field_slot(row_of_sums(s) * BLOCK) + field_slot(s.K * BLOCK)) + 3 * row_of_sums(s) * (BLOCK + 2);
  }

  // sums[k][c] (+)= sum over sites of gradient[k][site] * transposed[c / NR][site][c % NR]
  static void add_products(const Shape& s, const T* gradient, const T* transposed, int64_t sites, T* sums,
                           bool accumulate) {
    const int64_t row = row_of_sums(s);
    for (int64_t c = 0; c < s.C; c += NR)
      for (int64_t t = 0; t < Tile::tiles(s.K); ++t) {
        const int64_t k = Tile::tile_begin(s.K, t), end = Tile::tile_begin(s.K, t + 1);
        Tile::upto(static_cast<int>(end - k), sites, gradient + k * sites, sites, transposed + c * sites,
                   sums + k * row + c, row, accumulate);
      }
  }

  static void weight_gradient(const Shape& s, const T* grad, const T* input, T* sums, int64_t item, T* scratch) {
    const Bands bands = weight_bands(s);
    const int64_t n = item / bands.count, top = bands.begin(item % bands.count),
                  bottom = bands.end(item % bands.count, s.H), plane = s.H * s.W, slot = s.K * row_of_sums(s);
    const Region region{top, 0, bottom - top, s.W};
    const T *g = grad + n * s.K * 4 * plane, *x = input + n * s.C * plane;
    T *fields = scratch, *gradients = fields + 9 * field_slot(row_of_sums(s) * BLOCK),
      *transposed = gradients + 9 * field_slot(s.K * BLOCK), *bias = sums + 9 * slot;
    fill_zero(bias, s.K);
    const int64_t sites = region.rows * region.cols;
    for (int64_t first = 0; first < sites; first += BLOCK) {
      const int64_t last = at_most(sites, first + BLOCK), count = last - first;
      transposed_fields<Tile>(x, s, region, first, last, transposed, fields);
      product_gradients(g, s, region, first, last, gradients);
      for (int a = 0; a < 9; ++a)
        add_products(s, gradients + a * field_slot(s.K * count), fields + a * field_slot(row_of_sums(s) * count), count,
                     sums + a * slot, first > 0);
      // The gradients of slot 0 are the sums over the four outputs of a site.  A blur with replicated borders does not
      // change their total, so it is the gradient of the bias.
      for (int64_t k = 0; k < s.K; ++k) bias[k] += sum_of(gradients + k * count, count);
    }
    if (!has_ring(s)) return;
    for (int index = 0; index < 4; ++index) {
      const Side side = side_of(s, index);
      if (!side.vertical && !(side.end ? bottom == s.H : top == 0)) continue;
      ring_weight_gradient(s, gradient_of(g, s, side), x, side, side.vertical ? 2 * top : 0,
                           side.vertical ? 2 * bottom : 2 * s.W, sums, scratch);
    }
  }

  static int64_t ring_weight_scratch(const Shape& s) { return (3 * s.C + row_of_sums(s) + s.K) * NR; }

  // gradient(k, position): that of an output of the side.
  template <class Gradient>
  static void ring_weight_gradient(const Shape& s, Gradient gradient, const T* x, const Side& side, int64_t first,
                                   int64_t last, T* sums, T* scratch) {
    T *fields = scratch, *transposed = fields + 3 * s.C * NR, *gradients = transposed + row_of_sums(s) * NR;
    for (int64_t begin = first; begin < last; begin += NR) {
      const int64_t end = at_most(last, begin + NR);
      ring_fields<NR>(x, s, side, begin, end, fields);
      for (int64_t k = 0; k < s.K; ++k)
        for (int64_t t = begin; t < begin + NR; ++t) gradients[k * NR + (t - begin)] = t < end ? gradient(k, t) : 0;
      for (int a = 0; a < 3; ++a) {
        for (int64_t c = 0; c < s.C; c += NR)
          transpose_line<Tile>(fields + (a * s.C + c) * NR, NR, at_most(NR, s.C - c), NR, NR, transposed + c * NR);
        add_products(s, gradients, transposed, NR, sums + side.slots[a] * s.K * row_of_sums(s), true);
      }
    }
  }

  // Sums in eight strands, which fit a vector, and adds these in pairs.
  static T sum_of(const T* values, int64_t count) {
    T strand[8] = {};
    int64_t t = 0;
    for (; t + 8 <= count; t += 8)
      for (int i = 0; i < 8; ++i) strand[i] += values[t + i];
    for (; t < count; ++t) strand[t % 8] += values[t];
    return ((strand[0] + strand[1]) + (strand[2] + strand[3])) + ((strand[4] + strand[5]) + (strand[6] + strand[7]));
  }

  static void finish(const Shape& s, const T* total, int64_t k0, int64_t k1, T* grad_weight, T* grad_bias) {
    if (grad_weight != nullptr) unpack_weight_gradient(total, s.K, s.C, row_of_sums(s), k0, k1, grad_weight);
    if (grad_bias != nullptr) copy(total + 9 * s.K * row_of_sums(s) + k0, k1 - k0, grad_bias + k0);
  }
};
