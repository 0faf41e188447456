// Convolutions: fields of a block of sites -> products over the channels -> outputs and their moments (algorithms.h).
#pragma once

#include "conv_fields.h"
#include "conv_weights.h"
#include "epilogue.h"
#include "moments.h"
#include "thin_pointwise.h"

template <class Tile, Algorithm A>
struct Convolution {
  using T = typename Tile::T;
  using Vector = typename Tile::Vector;
  using S = Scheme<A>;
  using Fields = ConvFields<Tile, A>;
  using Thin = ThinPointwise<Tile>;
  static constexpr int NR = Tile::NR, LANES = Tile::LANES;
  static constexpr int64_t BLOCK = at_least(S::BLOCK, NR);
  static constexpr bool POINTWISE = A == Algorithm::pointwise, SQUARES = HAS_SQUARES<A>;

  static int64_t block(const ConvShape& s) {
    return A == Algorithm::winograd && s.inputs > 64 ? at_least(BLOCK / 2, NR) : BLOCK;
  }
  // Items are bands of rows of sites, cut by the shape alone: at most 32, as each also reads rows of its neighbours, of
  // at least 128 or 256 sites.  Those of pixels (pointwise) are at most 64.
  static Bands bands(const ConvShape& s) {
    if (POINTWISE) return {s.cols, rounded_up(at_least(4 * BLOCK, quotient_up(s.cols, 64)), BLOCK)};
    return {s.rows, at_least(quotient_up(A == Algorithm::winograd ? 128 : 256, s.cols), quotient_up(s.rows, 32))};
  }
  static int64_t items(const ConvShape& s) { return bands(s).count; }
  static Rows input_rows(const ConvShape& s, int64_t item) { return rows_read<A>(s, bands(s), item); }

  // What is made before the moments.
  static int64_t made_size(const ConvShape& s) {
    if (POINTWISE && Thin::is_thin(s)) return rounded_up(Thin::scratch(s), 16);
    return S::FIELDS * Fields::template slot_size<NR>(s, BLOCK) + S::PRODUCTS * Tile::MR * BLOCK;
  }
  static int64_t scratch(const ConvShape& s) { return made_size(s) + MomentSums<Tile>::size(s.outputs); }

  template <class Read, class Written>
  static void convolve(const ConvShape& s, const Window<Read>& input, const Activation<T>& activation, const T* packed,
                       const T* bias, Written* output, Moments* moments, int64_t item, T* scratch) {
    T *panel = scratch, *products = panel + S::FIELDS * Fields::template slot_size<NR>(s, BLOCK);
    const MomentSums<Tile> sums =
        moments == nullptr ? MomentSums<Tile>() : MomentSums<Tile>(s.outputs, scratch + made_size(s));
    const Bands band = bands(s);
    const int64_t across = POINTWISE ? s.cols : s.rows, unit = POINTWISE ? 1 : s.cols;
    const int64_t begin = band.begin(item) * unit, end = band.end(item, across) * unit;
    const bool stream = streams<Written>(s.outputs * s.height * s.width, s.width);
    const bool thin = POINTWISE && Thin::is_thin(s);
    if (thin) Thin::convolve(s, input.data, activation, packed, bias, output, sums, begin, end, stream, scratch);
    for (int64_t first = begin; first < end && !thin; first += block(s)) {
      const int64_t last = at_most(end, first + block(s)), panels = quotient_up(last - first, NR), width = panels * NR;
      Fields::template make<NR>(s, input, activation, first, last, panel);
      pair_fields(s, last - first, panel);
      for (int64_t tile = 0; tile < Tile::tiles(s.outputs); ++tile) {
        const int64_t k0 = Tile::tile_begin(s.outputs, tile), k1 = Tile::tile_begin(s.outputs, tile + 1);
        const int64_t product = (k1 - k0) * width;
        multiply(s, packed, panel, last - first, k0, k1, products);
        for (int64_t k = k0; k < k1; ++k)
          each_stretch({0, 0, s.rows, s.cols}, first, last, [&](int64_t i, int64_t j, int64_t site, int64_t length) {
            write_outputs(s, k, i, j, length, products + (k - k0) * width + (site - first), product,
                          bias == nullptr ? T(0) : bias[k], output + k * s.height * s.width, sums, stream);
          });
      }
    }
    if (moments != nullptr) {
      const int64_t rows = SQUARES ? at_most(s.height, 2 * end / unit) - 2 * begin / unit : 0;
      for (int64_t k = 0; k < s.outputs; ++k) moments[k] = sums.moments(k, SQUARES ? rows * s.width : end - begin);
    }
    Tile::fence();
  }

 private:
  // The inputs that a slot multiplies.
  static int64_t depth_of(const ConvShape& s, int slot) {
    if constexpr (A == Algorithm::winograd)
      if (S::vanishes_upsampled(slot)) return s.inputs - s.upsampled;
    return s.inputs;
  }

  static void pair_fields(const ConvShape& s, int64_t count, T* panel) {
    if constexpr (Tile::PAIRS)
      for (int f = 0; f < S::FIELDS; ++f)
        for (int64_t p = 0; p < quotient_up(count, NR); ++p)
          Tile::pair_panel(panel + f * Fields::template slot_size<NR>(s, count) + p * s.inputs * NR, NR,
                           A == Algorithm::winograd ? depth_of(s, f) : s.inputs, NR);
  }

  // products[product][k - k0][site] = the sums, over the slots of each product and the inputs, of weight times field.
  [[gnu::always_inline]] static inline void multiply(const ConvShape& s, const T* packed, const T* panel, int64_t count,
                                                     int64_t k0, int64_t k1, T* products) {
    const int64_t panels = quotient_up(count, NR), width = panels * NR, product = (k1 - k0) * width,
                  slot = Fields::template slot_size<NR>(s, count);
    for (int i = 0; i < S::SLOTS; ++i) {
      const int64_t depth = depth_of(s, i);
      int64_t d = 0;
      do {  // once for a depth of 0 too: the product is zero then
        for (int64_t p = 0; p < panels; ++p)
          Tile::upto(static_cast<int>(k1 - k0), at_most(depth - d, CHAIN),
                     packed + (i * s.outputs + k0) * s.inputs + Tile::place(d), s.inputs,
                     panel + S::field(i) * slot + (p * s.inputs + Tile::place(d)) * NR,
                     products + S::product(i) * product + p * NR, width, d > 0 || S::accumulates(i));
      } while ((d += CHAIN) < depth);
    }
  }

  // Writes the outputs of the sites j .. j + length of row i of channel k; `output` is that channel.
  template <class Written>
  static void write_outputs(const ConvShape& s, int64_t k, int64_t i, int64_t j, int64_t length, const T* product,
                            int64_t slot, T bias, Written* output, const MomentSums<Tile>& sums, bool stream) {
    T lines[2][at_least(2 * MAX_BLOCK, BLOCK)];
    if constexpr (!SQUARES) {
#pragma omp simd
      for (int64_t t = 0; t < length; ++t) lines[0][t] = product[t] + bias;
      write_row(lines[0], length, output + i * s.width + j, k, sums, stream);
    } else {
      int64_t t = 0;
      for (; t + LANES <= length; t += LANES)
        square([](const T* from) { return Tile::load(from); }, product + t, slot, bias, lines[0] + 2 * t,
               lines[1] + 2 * t,
               [](T* to, const Vector& a, const Vector& b) {
                 Vector pair[2];
                 Tile::interleave(a, b, pair);
                 Tile::store(to, pair[0]);
                 Tile::store(to + LANES, pair[1]);
               });
      for (; t < length; ++t)
        square([](const T* from) { return *from; }, product + t, slot, bias, lines[0] + 2 * t, lines[1] + 2 * t,
               [](T* to, T a, T b) { to[0] = a, to[1] = b; });
      const int64_t count = at_most(2 * length, s.width - 2 * j);
      for (int64_t p = 0; p < 2 && 2 * i + p < s.height && count > 0; ++p)
        write_row(lines[p], count, output + (2 * i + p) * s.width + 2 * j, k, sums, stream);
    }
  }

  // The 2x2 outputs of a site, or of a vector of sites, from the products.
  template <class Load, class Store>
  [[gnu::always_inline]] static inline void square(Load load, const T* product, int64_t slot, T bias, T* even, T* odd,
                                                   Store store) {
    const auto m = [&](int a) { return load(product + a * slot); };
    if constexpr (A == Algorithm::strided_gradient) {
      store(even, m(0), m(1));
      store(odd, m(2), m(3));
    } else {
      const auto upper = [&](int b) { return (m(b) + m(4 + b)) + m(8 + b); };
      const auto lower = [&](int b) { return (m(4 + b) - m(8 + b)) - m(12 + b); };
      const auto u1 = upper(1), u2 = upper(2), l1 = lower(1), l2 = lower(2);
      store(even, ((upper(0) + u1) + u2) + bias, ((u1 - u2) - upper(3)) + bias);
      store(odd, ((lower(0) + l1) + l2) + bias, ((l1 - l2) - lower(3)) + bias);
    }
  }

  template <class Written>
  static void write_row(const T* line, int64_t count, Written* to, int64_t k, const MomentSums<Tile>& sums,
                        bool stream) {
    if (sums.lanes != nullptr) sums.add(k, line, count);
    write_line<Tile>(line, count, to, stream);
  }
};
