// The passes over a band of rows, made of transform, micro-kernel and epilogue.
//
// A band is worked through in blocks of sites, whose fields stay in the second-level cache:
//
//   forward          fields of x -> nine products -> outputs
//   data gradient    fields of g -> sum of nine products -> gradient
//   weight gradient  fields of x, turned, and the products' gradients -> nine sums over the sites
//
// Bilinear keeps the outputs of the nearest form of a few rows, blurs them from there, and starts and ends a band one
// row outside of it.
#pragma once

#include "epilogue.h"
#include "ring.h"
#include "tile.h"
#include "transform.h"

constexpr int64_t BLOCK = MAX_BLOCK;
constexpr int64_t GROUP = 6;  // tiles of rows of which the products are kept at a time

static inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t quotient_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t rounded_up(int64_t a, int64_t b) { return quotient_up(a, b) * b; }

// Rows in bands: `rows` in each, the last may have fewer.
struct Bands {
  int64_t rows, count;
  Bands(int64_t height, int64_t wanted) : rows(at_most(height, wanted)), count(quotient_up(height, rows)) {}
  int64_t begin(int64_t band) const { return band * rows; }
  int64_t end(int64_t band, int64_t height) const { return at_most(height, (band + 1) * rows); }
};

template <class Tile>
struct Passes {
  using T = typename Tile::T;
  static constexpr int NR = Tile::NR;
  static constexpr int64_t PRODUCTS = 9 * GROUP * Tile::MR * BLOCK;

  static int64_t packed_size(const Shape& s) { return 9 * s.K * s.C; }
  static void pack(const Shape& s, const T* weight, bool transposed, T* packed) {
    pack_weight(weight, s.K, s.C, transposed, packed);
  }

  // ---- forward

  // Bands of at least one block and at most 1/64 of the rows; for bilinear of 32 rows, since each computes two more.
  static Bands forward_bands(const Shape& s) {
    return {s.H, s.bilinear ? at_least(32, quotient_up(BLOCK, s.W))
                            : at_least(quotient_up(BLOCK, s.W), quotient_up(s.H, 64))};
  }
  // Bilinear only: output channels in two parts, for which fields are computed twice, but no row; the rows kept then
  // stay in the second-level cache.
  static Bands parts(const Shape& s) { return {Tile::tiles(s.K), quotient_up(Tile::tiles(s.K), s.K >= 64 ? 2 : 1)}; }
  // Columns in strips, so that the rows kept stay below 640 kB whatever the width.
  static Bands strips(const Shape& s) {
    const int64_t channels = parts(s).rows * Tile::MR;
    return {s.W, at_least(16, 163840 / (channels * 8) / 2 - 2)};
  }
  static int64_t chunk_rows(const Shape& s) { return quotient_up(BLOCK, at_most(s.W, strips(s).rows)); }
  static int64_t kept_row(const Shape& s) { return rounded_up(2 * at_most(s.W, strips(s).rows + 2), 16) + 16; }
  static int64_t kept_rows(const Shape& s) { return 2 + 2 * chunk_rows(s); }

  static int64_t forward_items(const Shape& s) {
    const int64_t bands = s.N * forward_bands(s).count;
    return s.bilinear ? bands * parts(s).count * strips(s).count : bands;
  }

  static int64_t forward_scratch(const Shape& s) {
    const int64_t ring = (3 * s.C + s.K) * NR, fields = 9 * field_slot(s.C * BLOCK);
    if (!s.bilinear) return fields + PRODUCTS;
    const int64_t kept = parts(s).rows * Tile::MR * kept_rows(s) * kept_row(s);
    return at_least(ring, fields + PRODUCTS + kept + kept_row(s) + 2);
  }

  // The outputs of the nearest form for a region and tiles of channels; `to(k, i, j)` says where output (k, 2i, 2j)
  // goes and `step` the distance of rows there.
  template <class To>
  static void nearest(const Shape& s, const T* image, const T* packed, const T* bias, const Region& region,
                      int64_t first_tile, int64_t last_tile, int wanted, To to, int64_t step, T* scratch) {
    T *fields = scratch, *products = scratch + 9 * field_slot(s.C * BLOCK);
    const int64_t sites = region.rows * region.cols;
    for (int64_t first = 0; first < sites; first += BLOCK) {
      const int64_t last = at_most(sites, first + BLOCK), panels = quotient_up(last - first, NR), width = panels * NR;
      input_fields<NR>(image, s, region, first, last, fields);
      for (int64_t tile = first_tile; tile < last_tile; tile += GROUP) {
        const int64_t end = at_most(last_tile, tile + GROUP), k0 = Tile::tile_begin(s.K, tile),
                      k1 = Tile::tile_begin(s.K, end), slot = (k1 - k0) * width;
        nine_products<Tile>(packed, s.K, s.C, fields, panels, tile, end, products, slot, 128, wanted);
        for (int64_t k = k0; k < k1; ++k) {
          const T* product = products + (k - k0) * width;
          const T b = bias == nullptr ? 0 : bias[k];
          each_stretch(region, first, last, [&](int64_t i, int64_t j, int64_t site, int64_t length) {
            T* out = to(k, i, j);
            join_products(product + (site - first), slot, length, b, out, out + step);
          });
        }
      }
    }
  }

  static void forward(const Shape& s, const T* input, const T* packed, const T* bias, T* output, int64_t item,
                      T* scratch) {
    const Bands bands = forward_bands(s);
    const int64_t width = 2 * s.W, plane = 4 * s.H * s.W;
    if (!s.bilinear) {
      const int64_t n = item / bands.count, band = item % bands.count, top = bands.begin(band);
      T* out = output + n * s.K * plane;
      nearest(
          s, input + n * s.C * s.H * s.W, packed, bias, {top, 0, bands.end(band, s.H) - top, s.W}, 0, Tile::tiles(s.K),
          7, [&](int64_t k, int64_t i, int64_t j) { return out + k * plane + 2 * i * width + 2 * j; }, width, scratch);
      return;
    }
    const Bands part = parts(s), strip = strips(s);
    const int64_t tile = part.begin(item % part.count), last_tile = part.end(item % part.count, Tile::tiles(s.K));
    item /= part.count;
    const int64_t left = strip.begin(item % strip.count), right = strip.end(item % strip.count, s.W);
    item /= strip.count;
    const int64_t n = item / bands.count, band = item % bands.count;
    const int64_t top = bands.begin(band), bottom = bands.end(band, s.H);
    const T* image = input + n * s.C * s.H * s.W;
    output += n * s.K * plane;
    bilinear(s, image, packed, bias, top, bottom, left, right, tile, last_tile, output, scratch);
    if (!has_ring(s)) return;
    for (int index = 0; index < 4; ++index) {
      const Side side = side_of(s, index);
      if (side.vertical && (side.end ? right == s.W : left == 0))
        ring_forward<Tile>(image, s, packed, side, 2 * top, 2 * bottom, tile, last_tile, output, scratch);
      else if (!side.vertical && (side.end ? bottom == s.H : top == 0))
        ring_forward<Tile>(image, s, packed, side, 2 * left, 2 * right, tile, last_tile, output, scratch);
    }
  }

  static void bilinear(const Shape& s, const T* image, const T* packed, const T* bias, int64_t top, int64_t bottom,
                       int64_t left, int64_t right, int64_t tile, int64_t last_tile, T* output, T* scratch) {
    const int64_t width = 2 * s.W, plane = 4 * s.H * s.W;
    const int64_t k0 = Tile::tile_begin(s.K, tile), k1 = Tile::tile_begin(s.K, last_tile);
    // With the neighbours that the blur needs.
    const int64_t from_col = at_least(0, left - 1), to_col = at_most(s.W, right + 1), cols = to_col - from_col;
    const int64_t from_row = at_least(0, top - 1), to_row = at_most(s.H, bottom + 1);
    const int64_t row_size = kept_row(s), channel_size = kept_rows(s) * row_size, chunk = chunk_rows(s);
    T* kept = scratch + 9 * field_slot(s.C * BLOCK) + PRODUCTS;
    T* work = kept + (k1 - k0) * channel_size;
    int64_t next = 2 * top;  // the next row to write
    for (int64_t row = from_row, end; row < to_row; row = end) {
      // kept holds rows 2 row - 2 .. 2 end of the nearest form, of which the first two are from the chunk before.
      // Of the row above the band only the odd outputs are needed, and the even ones of that below.
      end = row < top ? top : row < bottom ? at_most(bottom, row + chunk) : to_row;
      const int wanted = row < top ? 5 : row < bottom ? 7 : 3;
      nearest(
          s, image, packed, nullptr, {row, from_col, end - row, cols}, tile, last_tile, wanted,
          [&](int64_t k, int64_t i, int64_t j) {
            return kept + (k - k0) * channel_size + (2 * (i - row) + 2) * row_size + 2 * (j - from_col);
          },
          row_size, scratch);
      const int64_t until = at_most(2 * bottom, end == s.H ? 2 * s.H : 2 * end - 1);
      for (int64_t k = k0; k < k1; ++k) {
        T* channel = kept + (k - k0) * channel_size + 2 * (left - from_col);
        const auto at = [&](int64_t r) {
          return channel + (at_least(0, at_most(2 * s.H - 1, r)) - (2 * row - 2)) * row_size;
        };
        for (int64_t r = next; r < until; ++r)
          blur_rows(at(r - 1), at(r), at(r + 1), 2 * (right - left), left == 0, right == s.W,
                    bias == nullptr ? T(0) : bias[k], work, output + k * plane + r * width + 2 * left);
        T *first = kept + (k - k0) * channel_size, *last = first + 2 * (end - row) * row_size;
        for (int64_t t = 0; t < 2 * row_size; ++t) first[t] = last[t];
      }
      next = at_least(next, until);
    }
  }

  // ---- data gradient

  // As forward; with a ring at least 7 rows, whose ring takes one panel of 16.
  static Bands gradient_bands(const Shape& s) {
    return {s.H, at_least(has_ring(s) ? 7 : 1, at_least(quotient_up(BLOCK, s.W), quotient_up(s.H, 64)))};
  }
  static int64_t data_gradient_items(const Shape& s) { return s.N * gradient_bands(s).count; }
  static int64_t data_gradient_scratch(const Shape& s) {
    return at_least(9 * field_slot(s.K * BLOCK) + GROUP * Tile::MR * BLOCK, (3 * s.K + s.C) * NR);
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
      for (int64_t tile = 0; tile < Tile::tiles(s.C); tile += GROUP) {
        const int64_t end = at_most(Tile::tiles(s.C), tile + GROUP);
        // The nine terms partly cancel: with sums of 128 the error would be 1.56 times that of PyTorch's layers.
        nine_products<Tile>(packed, s.C, s.K, fields, panels, tile, end, sums, 0, 64);
        const int64_t c0 = Tile::tile_begin(s.C, tile), c1 = Tile::tile_begin(s.C, end);
        for (int64_t c = c0; c < c1; ++c)
          for (int64_t t = first; t < last; ++t) dx[c * plane + top * s.W + t] = sums[(c - c0) * width + (t - first)];
      }
    }
    if (!has_ring(s)) return;
    for (int index = 0; index < 4; ++index) {
      const Side side = side_of(s, index);
      const auto here = [&](int64_t row) { return row >= top && row < bottom; };
      if (side.vertical || here(side.near / s.W) || (s.padding == Padding::reflect && here(side.far / s.W)))
        ring_data_gradient<Tile>(g, s, packed, side, top, bottom, dx, scratch);
    }
  }

  // ---- weight gradient

  static int64_t row_of_sums(const Shape& s) { return rounded_up(s.C, NR); }
  // Nine sums (9, K, C rounded up), then those of the bias.
  static int64_t sums_size(const Shape& s) { return 9 * s.K * row_of_sums(s) + s.K; }
  // Adding up the sums of a band costs as much as about five sites do; bands of 64 to 1024 sites.
  static Bands weight_bands(const Shape& s) {
    return {s.H, quotient_up(at_least(BLOCK, at_most(1024, s.H * s.W / 8)), s.W)};
  }
  static int64_t weight_gradient_items(const Shape& s) { return s.N * weight_bands(s).count; }
  static int64_t weight_gradient_scratch(const Shape& s) {
    return 9 * (field_slot(s.C * BLOCK) + field_slot(s.K * BLOCK)) + row_of_sums(s) * BLOCK;
  }

  // sums[slot][k][c] (+)= sum over sites of gradient[k][site] * turned[c / NR][site][c % NR]
  static void add_products(const Shape& s, const T* gradient, const T* turned, int64_t sites, T* sums,
                           bool accumulate) {
    const int64_t row = row_of_sums(s);
    for (int64_t c = 0; c < s.C; c += NR)
      for (int64_t t = 0; t < Tile::tiles(s.K); ++t) {
        const int64_t k = Tile::tile_begin(s.K, t), end = Tile::tile_begin(s.K, t + 1);
        Tile::upto(static_cast<int>(end - k), sites, gradient + k * sites, sites, turned + c * sites,
                   sums + k * row + c, row, accumulate);
      }
  }

  static void weight_gradient(const Shape& s, const T* grad, const T* input, T* sums, int64_t item, T* scratch) {
    const Bands bands = weight_bands(s);
    const int64_t n = item / bands.count, top = bands.begin(item % bands.count),
                  bottom = bands.end(item % bands.count, s.H), plane = s.H * s.W, slot = s.K * row_of_sums(s);
    const Region region{top, 0, bottom - top, s.W};
    const T *g = grad + n * s.K * 4 * plane, *x = input + n * s.C * plane;
    T *fields = scratch, *gradients = fields + 9 * field_slot(s.C * BLOCK),
      *turned = gradients + 9 * field_slot(s.K * BLOCK);
    const int64_t sites = region.rows * region.cols;
    for (int64_t first = 0; first < sites; first += BLOCK) {
      const int64_t last = at_most(sites, first + BLOCK), panels = quotient_up(last - first, NR), width = panels * NR;
      input_fields<NR>(x, s, region, first, last, fields);
      product_gradients(g, s, region, first, last, width, gradients);
      for (int a = 0; a < 9; ++a) {
        turn_panels<NR>(fields + a * field_slot(s.C * width), s.C, panels, turned);
        add_products(s, gradients + a * field_slot(s.K * width), turned, width, sums + a * slot, first > 0);
      }
    }
    T* bias = sums + 9 * slot;
    for (int64_t k = 0; k < s.K; ++k) {
      T sum = 0;
      for (int64_t r = 2 * top; r < 2 * bottom; ++r) sum += sum_of(g + k * 4 * plane + r * 2 * s.W, 2 * s.W);
      bias[k] = sum;
    }
    if (!has_ring(s)) return;
    for (int index = 0; index < 4; ++index) {
      const Side side = side_of(s, index);
      if (side.vertical)
        ring_weight_gradient(s, g, x, side, 2 * top, 2 * bottom, sums, scratch);
      else if (side.end ? bottom == s.H : top == 0)
        ring_weight_gradient(s, g, x, side, 0, 2 * s.W, sums, scratch);
    }
  }

  static void ring_weight_gradient(const Shape& s, const T* g, const T* x, const Side& side, int64_t first,
                                   int64_t last, T* sums, T* scratch) {
    T *fields = scratch, *turned = fields + 3 * s.C * NR, *gradients = turned + row_of_sums(s) * NR;
    for (int64_t begin = first; begin < last; begin += NR) {
      const int64_t end = at_most(last, begin + NR);
      ring_fields<NR>(x, s, side, begin, end, fields);
      for (int64_t k = 0; k < s.K; ++k)
        for (int64_t t = begin; t < begin + NR; ++t)
          gradients[k * NR + (t - begin)] = t < end ? g[k * 4 * s.H * s.W + side.output + t * side.output_step] : 0;
      for (int a = 0; a < 3; ++a) {
        turn_panels<NR>(fields + a * s.C * NR, s.C, 1, turned);
        add_products(s, gradients, turned, NR, sums + side.slots[a] * s.K * row_of_sums(s), true);
      }
    }
  }

  // In eight strands, which vectors can add at once, and pairwise from there.
  static T sum_of(const T* values, int64_t count) {
    T strand[8] = {};
    int64_t t = 0;
    for (; t + 8 <= count; t += 8)
      for (int i = 0; i < 8; ++i) strand[i] += values[t + i];
    for (; t < count; ++t) strand[t % 8] += values[t];
    return ((strand[0] + strand[1]) + (strand[2] + strand[3])) + ((strand[4] + strand[5]) + (strand[6] + strand[7]));
  }

  static void finish(const Shape& s, const T* total, T* grad_weight, T* grad_bias) {
    if (grad_weight != nullptr) unpack_weight_gradient(total, s.K, s.C, row_of_sums(s), grad_weight);
    for (int64_t k = 0; grad_bias != nullptr && k < s.K; ++k) grad_bias[k] = total[9 * s.K * row_of_sums(s) + k];
  }
};
