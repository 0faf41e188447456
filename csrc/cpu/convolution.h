// Convolutions as sums of products: fields of a block of sites -> products over channels -> outputs and their moments.
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
// Two dimensions are the tensor product, slot 4a + b.  The weights' gradients are the products of the fields with
// y0, y0 + y1, y0 - y1 and -y1 of the outputs' gradient.
//
// The adjoint of a convolution with stride 2, one dimension, y[i] = w0 x[2i] + w1 x[2i+1] + w2 x[2i+2] (x is padded):
//
//   dx[2i] = w0 g[i] + w2 g[i-1]      dx[2i+1] = w1 g[i]
#pragma once

#include "epilogue.h"
#include "moments.h"
#include "tile.h"
#include "transform.h"

template <Form F>
struct Scheme;

template <>
struct Scheme<Form::pointwise> {
  static constexpr int SLOTS = 1, FIELDS = 1, PRODUCTS = 1;
  static constexpr int64_t BLOCK = 256;
  static constexpr int field(int) { return 0; }
  static constexpr int product(int) { return 0; }
  static constexpr bool adds(int) { return false; }
};

template <>
struct Scheme<Form::strided> {
  static constexpr int SLOTS = 9, FIELDS = 9, PRODUCTS = 1;
  static constexpr int64_t BLOCK = 64;
  static constexpr int field(int slot) { return slot; }
  static constexpr int product(int) { return 0; }
  static constexpr bool adds(int slot) { return slot > 0; }
};

template <>
struct Scheme<Form::winograd> {
  static constexpr int SLOTS = 16, FIELDS = 16, PRODUCTS = 16;
  static constexpr int64_t BLOCK = 32;  // 16 fields of 128 channels take 256 kB
  static constexpr int field(int slot) { return slot; }
  static constexpr int product(int slot) { return slot; }
  static constexpr bool adds(int) { return false; }
};

template <>
struct Scheme<Form::strided_gradient> {
  static constexpr int SLOTS = 9, FIELDS = 4, PRODUCTS = 4;
  static constexpr int64_t BLOCK = 64;
  // Taps (a, b) by slot, those of one output together: even even, even odd, odd even, odd odd.  Fields: g[i][j],
  // g[i][j-1], g[i-1][j], g[i-1][j-1].
  static constexpr int taps[9] = {0, 2, 6, 8, 1, 7, 3, 5, 4};
  static constexpr int field(int slot) { return taps[slot] / 3 / 2 * 2 + taps[slot] % 3 / 2; }
  static constexpr int product(int slot) { return slot < 4 ? 0 : slot < 6 ? 1 : slot < 8 ? 2 : 3; }
  static constexpr bool adds(int slot) { return slot > 0 && product(slot) == product(slot - 1); }
};

// The four products of one dimension, from the lines d0 .. d3.
template <class A>
static inline void winograd_fields(A d0, A d1, A d2, A d3, A* out) {
  out[0] = d0 - d2;
  out[1] = d1 + d2;
  out[2] = d2 - d1;
  out[3] = d1 - d3;
}

template <class Tile, Form F>
struct Convolution {
  using T = typename Tile::T;
  using Vector = typename Tile::Vector;
  using S = Scheme<F>;
  static constexpr int NR = Tile::NR, LANES = Tile::LANES;
  static constexpr int64_t BLOCK = at_least(S::BLOCK, NR);
  static constexpr bool SQUARES = F == Form::winograd || F == Form::strided_gradient;
  static constexpr bool SPLIT = F == Form::winograd || F == Form::strided;

  // ---- weights

  static int64_t packed_size(const Lattice& s) { return S::SLOTS * s.inputs * s.outputs; }

  // (slot, outputs, inputs) for the outputs k0 .. k1, in double precision until they are stored.  Of an adjoint the
  // weights are (inputs, outputs, taps); Winograd's taps are turned about, as the adjoint of a convolution is one with
  // these.
  static constexpr int TAPS = F == Form::pointwise ? 1 : 9;
  static constexpr int64_t STRIP = 64;

  static void pack(const Lattice& s, const T* weight, bool adjoint, int64_t k0, int64_t k1, T* packed) {
    const int64_t slot = s.inputs * s.outputs, step = adjoint ? s.outputs * TAPS : TAPS;
    for (int64_t k = k0; k < k1; ++k)
      for (int64_t c0 = 0; c0 < s.inputs; c0 += STRIP) {
        const int64_t count = at_most(s.inputs - c0, STRIP);
        const T* from = weight + (adjoint ? k * TAPS : k * s.inputs * TAPS) + c0 * step;
        T* to = packed + k * s.inputs + c0;
        T w[TAPS][STRIP] = {};
        for (int64_t c = 0; c < count; ++c)
          for (int t = 0; t < TAPS; ++t) w[F == Form::winograd && adjoint ? TAPS - 1 - t : t][c] = from[c * step + t];
        if constexpr (F == Form::winograd) {
          double rows[3][4][STRIP], columns[4][STRIP];
          for (int a = 0; a < 3; ++a) weights_of(w[3 * a], w[3 * a + 1], w[3 * a + 2], rows[a]);
          for (int b = 0; b < 4; ++b) {
            weights_of(rows[0][b], rows[1][b], rows[2][b], columns);
            for (int a = 0; a < 4; ++a)
              for (int64_t c = 0; c < count; ++c) to[c + (4 * a + b) * slot] = static_cast<T>(columns[a][c]);
          }
        } else {
          for (int i = 0; i < TAPS; ++i) {
            int tap = i;
            if constexpr (F == Form::strided_gradient) tap = S::taps[i];
            copy(w[tap], count, to + i * slot);
          }
        }
      }
  }

  // Of a strip of weights.
  template <class A>
  static void weights_of(const A* w0, const A* w1, const A* w2, double (*out)[STRIP]) {
#pragma omp simd
    for (int64_t c = 0; c < STRIP; ++c) {
      const double outer = static_cast<double>(w0[c]) + w2[c];
      out[0][c] = w0[c];
      out[1][c] = 0.5 * (outer + w1[c]);
      out[2][c] = 0.5 * (outer - w1[c]);
      out[3][c] = w2[c];
    }
  }

  // ---- fields

  // Of the sites first .. last, in panels of WIDTH sites: [field][panel][channel][WIDTH].
  template <int WIDTH>
  static int64_t slot_of(const Lattice& s, int64_t count) {
    return field_slot(quotient_up(count, WIDTH) * s.inputs * WIDTH);
  }

  template <int WIDTH>
  static void fields(const Lattice& s, const Window<T>& input, const Activation<T>& activation, int64_t first,
                     int64_t last, T* out) {
    const int64_t panels = quotient_up(last - first, WIDTH), slot = slot_of<WIDTH>(s, last - first);
    if ((last - first) % WIDTH != 0)
      for (int f = 0; f < S::FIELDS; ++f) fill_zero(out + f * slot + (panels - 1) * s.inputs * WIDTH, s.inputs * WIDTH);
    const int64_t half = s.cols + 1, row = SPLIT ? 2 * half : F == Form::pointwise ? s.cols : s.cols + 1;
    const int64_t plane = input.rows.count * row;
    each_stretch({0, 0, s.rows, s.cols}, first, last, [&](int64_t i, int64_t j, int64_t site, int64_t length) {
      for (int64_t c = 0; c < s.inputs; ++c) {
        const T* from = input.data + c * plane + ((SPLIT ? 2 * i : i) - input.rows.first) * row + j;
        T* channel = out + c * WIDTH;
        if (F != Form::pointwise && c + 2 < s.inputs) {
          constexpr int ROWS = F == Form::winograd ? 4 : F == Form::strided ? 3 : 2;
          for (int r = 0; r < ROWS; ++r)
            for (int64_t h = 0; h < (SPLIT ? 2 : 1); ++h) prefetch(from + 2 * plane + r * row + h * half, length + 1);
        }
        const T scale = activation.scale == nullptr ? T(1) : activation.scale[c],
                shift = activation.scale == nullptr ? T(0) : activation.shift[c], slope = activation.slope;
        each_panel<WIDTH>(site - first, length, [&](int64_t panel, int64_t lane, int64_t t, auto part) {
          T* to = channel + panel * s.inputs * WIDTH + lane;
          const T* at = from + t;
          if constexpr (F == Form::pointwise) {
            if (activation.scale == nullptr) {
#pragma omp simd
              for (int64_t q = 0; q < part; ++q) to[q] = at[q];
            } else {
#pragma omp simd
              for (int64_t q = 0; q < part; ++q) {
                const T u = scale * at[q] + shift;
                to[q] = u > 0 ? u : slope * u;
              }
            }
          } else if constexpr (F == Form::strided) {
            for (int a = 0; a < 3; ++a) {
              const T* line = at + a * row;
              T* o = to + 3 * a * slot;
#pragma omp simd
              for (int64_t q = 0; q < part; ++q) {
                o[q] = line[q];
                o[q + slot] = line[q + half];
                o[q + 2 * slot] = line[q + 1];
              }
            }
          } else if constexpr (F == Form::strided_gradient) {
#pragma omp simd
            for (int64_t q = 0; q < part; ++q) {
              to[q] = at[q + row + 1];
              to[q + slot] = at[q + row];
              to[q + 2 * slot] = at[q + 1];
              to[q + 3 * slot] = at[q];
            }
          } else {
            const auto make = [&](auto load, int64_t q, auto store) {
              decltype(load(at)) lines[4][4], made[4];  // lines: [window column][field along H]
              for (int b = 0; b < 4; ++b) {
                const T* d = at + q + (b % 2) * half + b / 2;
                winograd_fields(load(d), load(d + row), load(d + 2 * row), load(d + 3 * row), lines[b]);
              }
#pragma GCC unroll 4
              for (int a = 0; a < 4; ++a) {
                winograd_fields(lines[0][a], lines[1][a], lines[2][a], lines[3][a], made);
#pragma GCC unroll 4
                for (int b = 0; b < 4; ++b) store(to + q + (4 * a + b) * slot, made[b]);
              }
            };
            const int64_t whole = part / LANES * LANES;
            for (int64_t q = 0; q < whole; q += LANES)
              make([](const T* from) { return Tile::load(from); }, q,
                   [](T* to, const Vector& value) { Tile::store(to, value); });
            for (int64_t q = whole; q < part; ++q)
              make([](const T* from) { return *from; }, q, [](T* to, T value) { *to = value; });
          }
        });
      }
    });
  }

  // ---- forward

  // Bands of rows of sites, cut by the shape alone: 64 or fewer items of one block or more.
  static Bands bands(const Lattice& s) {
    if (F == Form::pointwise) return {s.cols, rounded_up(at_least(4 * BLOCK, quotient_up(s.cols, 64)), BLOCK)};
    return {s.rows, at_least(quotient_up(4 * BLOCK, s.cols), quotient_up(s.rows, 64))};
  }
  static int64_t items(const Lattice& s) { return bands(s).count; }

  // Of the copy, for rows of sites.
  static Rows rows_of(const Lattice& s, const Bands& band, int64_t item) {
    if (F == Form::pointwise) return {0, 1};
    const int64_t begin = band.begin(item), count = band.end(item, s.rows) - begin;
    return SPLIT ? Rows{2 * begin, 2 * count + 2} : Rows{begin, count + 1};
  }
  static Rows rows_of(const Lattice& s, int64_t item) { return rows_of(s, bands(s), item); }

  static int64_t scratch(const Lattice& s) {
    return S::FIELDS * slot_of<NR>(s, BLOCK) + S::PRODUCTS * Tile::MR * BLOCK + MomentSums<Tile>::size(s.outputs);
  }

  static void convolve(const Lattice& s, const Window<T>& input, const Activation<T>& activation, const T* packed,
                       const T* bias, T* output, Moments* moments, int64_t item, T* scratch) {
    T *panel = scratch, *products = panel + S::FIELDS * slot_of<NR>(s, BLOCK);
    const MomentSums<Tile> sums = moments == nullptr
                                      ? MomentSums<Tile>()
                                      : MomentSums<Tile>(s.outputs, products + S::PRODUCTS * Tile::MR * BLOCK);
    const Bands band = bands(s);
    const int64_t across = F == Form::pointwise ? s.cols : s.rows, unit = F == Form::pointwise ? 1 : s.cols;
    const int64_t begin = band.begin(item) * unit, end = band.end(item, across) * unit;
    const bool stream = streams<T>(s.outputs * s.height * s.width, s.width);
    for (int64_t first = begin; first < end; first += BLOCK) {
      const int64_t last = at_most(end, first + BLOCK), panels = quotient_up(last - first, NR), width = panels * NR,
                    slot = slot_of<NR>(s, last - first);
      fields<NR>(s, input, activation, first, last, panel);
      for (int64_t tile = 0; tile < Tile::tiles(s.outputs); ++tile) {
        const int64_t k0 = Tile::tile_begin(s.outputs, tile), k1 = Tile::tile_begin(s.outputs, tile + 1);
        const int64_t product = (k1 - k0) * width;
        if (F == Form::pointwise && last < end)
          prefetch_ahead(input.data + last, s.cols, at_most(end - last, BLOCK), s.inputs, tile, Tile::tiles(s.outputs));
        for (int i = 0; i < S::SLOTS; ++i)
          for (int64_t d = 0; d < s.inputs; d += CHAIN)
            for (int64_t p = 0; p < panels; ++p)
              Tile::upto(static_cast<int>(k1 - k0), at_most(s.inputs - d, CHAIN),
                         packed + (i * s.outputs + k0) * s.inputs + d, s.inputs,
                         panel + S::field(i) * slot + (p * s.inputs + d) * NR,
                         products + S::product(i) * product + p * NR, width, d > 0 || S::adds(i));
        for (int64_t k = k0; k < k1; ++k)
          each_stretch({0, 0, s.rows, s.cols}, first, last, [&](int64_t i, int64_t j, int64_t site, int64_t length) {
            join(s, k, i, j, length, products + (k - k0) * width + (site - first), product,
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

  // Part `part` of `parts` of a block of `count` pixels of C channels, which lie too far apart for the hardware to
  // foresee them: asked for while products are made of the block before.
  static void prefetch_ahead(const T* from, int64_t plane, int64_t count, int64_t C, int64_t part, int64_t parts) {
    for (int64_t c = C * part / parts; c < C * (part + 1) / parts; ++c) prefetch(from + c * plane, count);
  }

  // The outputs of the sites j .. j + length of row i of one channel.
  static void join(const Lattice& s, int64_t k, int64_t i, int64_t j, int64_t length, const T* product, int64_t slot,
                   T bias, T* output, const MomentSums<Tile>& sums, bool stream) {
    T lines[2][at_least(2 * MAX_BLOCK, BLOCK)];
    if constexpr (!SQUARES) {
#pragma omp simd
      for (int64_t t = 0; t < length; ++t) lines[0][t] = product[t] + bias;
      put(lines[0], length, output + i * s.width + j, k, sums, stream);
    } else {
      const auto make = [&](auto load, int64_t t, auto store) {
        const auto m = [&](int a) { return load(product + a * slot + t); };
        if constexpr (F == Form::strided_gradient) {
          store(lines[0] + 2 * t, m(0), m(1));
          store(lines[1] + 2 * t, m(2), m(3));
        } else {
          const auto even = [&](int b) { return (m(b) + m(4 + b)) + m(8 + b); };
          const auto odd = [&](int b) { return (m(4 + b) - m(8 + b)) - m(12 + b); };
          const auto e1 = even(1), e2 = even(2), o1 = odd(1), o2 = odd(2);
          store(lines[0] + 2 * t, ((even(0) + e1) + e2) + bias, ((e1 - e2) - even(3)) + bias);
          store(lines[1] + 2 * t, ((odd(0) + o1) + o2) + bias, ((o1 - o2) - odd(3)) + bias);
        }
      };
      int64_t t = 0;
      for (; t + LANES <= length; t += LANES)
        make([](const T* from) { return Tile::load(from); }, t,
             [](T* to, const Vector& a, const Vector& b) {
               Vector pair[2];
               Tile::interleave(a, b, pair);
               Tile::store(to, pair[0]);
               Tile::store(to + LANES, pair[1]);
             });
      for (; t < length; ++t)
        make([](const T* from) { return *from; }, t, [](T* to, T a, T b) { to[0] = a, to[1] = b; });
      const int64_t count = at_most(2 * length, s.width - 2 * j);
      for (int64_t p = 0; p < 2 && 2 * i + p < s.height && count > 0; ++p)
        put(lines[p], count, output + (2 * i + p) * s.width + 2 * j, k, sums, stream);
    }
  }

  static void put(const T* line, int64_t count, T* to, int64_t k, const MomentSums<Tile>& sums, bool stream) {
    if (sums.lanes != nullptr) sums.add(k, line, count);
    write_line<Tile>(line, count, to, stream);
  }

  // ---- gradient of the weights, of strided and winograd

  static constexpr int64_t SUM_BLOCK = MAX_BLOCK;
  static constexpr int GRADIENTS = F == Form::winograd ? 16 : 1;

  static int64_t row_of_sums(const Lattice& s) { return rounded_up(s.outputs, NR); }
  static int64_t sums_size(const Lattice& s) { return S::SLOTS * s.inputs * row_of_sums(s); }
  static Bands sum_bands(const Lattice& s) {
    return {s.rows, quotient_up(at_least(SUM_BLOCK, at_most(1024, s.rows * s.cols / 8)), s.cols)};
  }
  static int64_t weight_gradient_items(const Lattice& s) { return sum_bands(s).count; }
  static Rows weight_gradient_rows(const Lattice& s, int64_t item, bool of_gradient) {
    const Bands band = sum_bands(s);
    if (!of_gradient) return rows_of(s, band, item);
    const int64_t begin = band.begin(item), count = band.end(item, s.rows) - begin;
    return F == Form::winograd ? Rows{2 * begin + 2, 2 * count} : Rows{begin + 1, count};
  }
  static int64_t weight_gradient_scratch(const Lattice& s) {
    return S::FIELDS * slot_of<SUM_BLOCK>(s, SUM_BLOCK) + (GRADIENTS + 4) * field_slot(row_of_sums(s) * SUM_BLOCK);
  }

  static void weight_gradient(const Lattice& s, const Window<T>& input, const Window<T>& gradient, T* sums,
                              int64_t item, T* scratch) {
    const int64_t K = row_of_sums(s), slot = slot_of<SUM_BLOCK>(s, SUM_BLOCK);
    T *rows = scratch, *panels = rows + S::FIELDS * slot, *turned = panels + GRADIENTS * field_slot(K * SUM_BLOCK);
    const Bands band = sum_bands(s);
    const int64_t begin = band.begin(item) * s.cols, end = band.end(item, s.rows) * s.cols;
    for (int64_t first = begin; first < end; first += SUM_BLOCK) {
      const int64_t last = at_most(end, first + SUM_BLOCK), count = last - first, panel = field_slot(K * count);
      fields<SUM_BLOCK>(s, input, {}, first, last, rows);
      turned_gradient(s, gradient, first, last, turned, panels);
      for (int i = 0; i < S::SLOTS; ++i)
        for (int64_t k = 0; k < K; k += NR)
          for (int64_t tile = 0; tile < Tile::tiles(s.inputs); ++tile) {
            const int64_t c0 = Tile::tile_begin(s.inputs, tile), c1 = Tile::tile_begin(s.inputs, tile + 1);
            Tile::upto(static_cast<int>(c1 - c0), count, rows + i * slot + c0 * SUM_BLOCK, SUM_BLOCK,
                       panels + (GRADIENTS > 1 ? i : 0) * panel + k * count, sums + (i * s.inputs + c0) * K + k, K,
                       first > begin);
          }
    }
  }

  // What the products' gradients are, with the output channels as vectors: [gradient][channel / NR][site][NR].
  static void turned_gradient(const Lattice& s, const Window<T>& gradient, int64_t first, int64_t last, T* turned,
                              T* out) {
    const int64_t K = row_of_sums(s), sites = last - first, panel = field_slot(K * sites);
    const bool squares = F == Form::winograd;
    const int64_t half = s.cols + 2, row = squares ? 2 * half : s.cols + 2, plane = row * gradient.rows.count;
    const T* from = gradient.data - gradient.rows.first * row;
    each_stretch({0, 0, s.rows, s.cols}, first, last, [&](int64_t i, int64_t j, int64_t site, int64_t length) {
      const int64_t line = K * length;
      if constexpr (F == Form::winograd) {
        for (int r = 0; r < 4; ++r)
          turn_line<Tile>(from + (2 * i + 2 + r / 2) * row + (r % 2) * half + j + 1, plane, s.outputs, length, K,
                          turned + r * line);
        for (int64_t k = 0; k < K; k += NR)
          for (int64_t t = 0; t < length; ++t) {
            const T* g = turned + t * K + k;
            T* to = out + (k / NR * sites + site - first + t) * NR;
            for (int v = 0; v < NR; v += LANES) {
              const Vector g00 = Tile::load(g + v), g01 = Tile::load(g + v + line), g10 = Tile::load(g + v + 2 * line),
                           g11 = Tile::load(g + v + 3 * line);
              const Vector left[4] = {g00, g00 + g10, g00 - g10, -g10}, right[4] = {g01, g01 + g11, g01 - g11, -g11};
              for (int a = 0; a < 4; ++a) {
                T* o = to + 4 * a * panel + v;
                Tile::store(o, left[a]);
                Tile::store(o + panel, left[a] + right[a]);
                Tile::store(o + 2 * panel, left[a] - right[a]);
                Tile::store(o + 3 * panel, -right[a]);
              }
            }
          }
      } else {
        for (int64_t k = 0; k < K; k += NR)
          turn_line<Tile>(from + k * plane + (i + 1) * row + j + 1, plane, at_most(NR, s.outputs - k), length, NR,
                          out + (k / NR * sites + site - first) * NR);
      }
    });
  }

  // The gradient of the weights (outputs, inputs, 3, 3) of the inputs c0 .. c1.
  static void finish(const Lattice& s, const T* total, int64_t c0, int64_t c1, T* grad_weight) {
    const int64_t K = row_of_sums(s), slot = s.inputs * K;
    for (int64_t c = c0; c < c1; ++c)
      for (int64_t k0 = 0; k0 < s.outputs; k0 += STRIP) {
        const int64_t count = at_most(s.outputs - k0, STRIP);
        const T* in = total + c * K + k0;
        T w[9][STRIP];
        if constexpr (F == Form::winograd) {
          T rows[4][3][STRIP];
          for (int a = 0; a < 4; ++a) taps_of(in + 4 * a * slot, slot, count, rows[a][0], STRIP);
          for (int b = 0; b < 3; ++b) taps_of(rows[0][b], 3 * STRIP, count, w[b], 3 * STRIP);
        } else {
          for (int i = 0; i < 9; ++i) copy(in + i * slot, count, w[i]);
        }
        for (int64_t k = 0; k < count; ++k)
          for (int i = 0; i < 9; ++i) grad_weight[((k0 + k) * s.inputs + c) * 9 + i] = w[i][k];
      }
  }

  // The adjoint of weights_of, from four lines to three.
  static void taps_of(const T* m, int64_t step, int64_t count, T* out, int64_t out_step) {
    const T half = static_cast<T>(0.5);
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) {
      const T m0 = m[k], m1 = m[k + step], m2 = m[k + 2 * step], m3 = m[k + 3 * step];
      out[k] = m0 + half * (m1 + m2);
      out[k + out_step] = half * (m1 - m2);
      out[k + 2 * out_step] = half * (m1 + m2) + m3;
    }
  }
};

// All gradients of a convolution with one tap, in one pass over the image: a block of the outputs' gradient, formed
// once, is both the matrix whose rows meet the turned input (weights) and the panel that the weights meet (input).
template <class Tile>
struct Pointwise {
  using T = typename Tile::T;
  using Vector = typename Tile::Vector;
  using Forward = Convolution<Tile, Form::pointwise>;
  static constexpr int NR = Tile::NR, LANES = Tile::LANES;
  static constexpr int64_t BLOCK = 128, LD = BLOCK + 16;  // as no multiple of 4096 bytes lies between rows

  static int64_t row_of_sums(const Lattice& s) { return rounded_up(s.inputs, NR); }
  static int64_t sums_size(const Lattice& s) { return s.outputs * row_of_sums(s) + s.outputs; }
  static int64_t scratch(const Lattice& s) {
    return (s.outputs + s.inputs) * LD + row_of_sums(s) * BLOCK + Tile::MR * BLOCK;
  }

  static void gradient(const Lattice& s, const T* grad, const T* output, const T* constant, const T* factor,
                       const T* input, const Activation<T>& activation, const double* mean, const T* packed,
                       T* grad_input, double* input_sums, T* sums, int64_t item, T* scratch) {
    const int64_t K = s.outputs, C = s.inputs, plane = s.cols, row = row_of_sums(s);
    T *g = scratch, *x = g + K * LD, *panels = x + C * LD, *products = panels + row * BLOCK;
    T* bias = sums + K * row;
    const Bands band = Forward::bands(s);
    const int64_t begin = band.begin(item), end = band.end(item, plane);
    const bool stream = streams<T>(C * plane, plane);
    fill_zero(bias, K);
    if (input_sums != nullptr) fill_zero(input_sums, 2 * C);
    for (int64_t first = begin; first < end; first += BLOCK) {
      const int64_t count = at_most(end - first, BLOCK), width = rounded_up(count, NR);
      for (int64_t k = 0; k < K; ++k) {
        const T *from = grad + k * plane + first, *made = output == nullptr ? nullptr : output + k * plane + first;
        T* to = g + k * LD;
        bias[k] += raw_gradient<Tile>(from, made, constant[k], factor[k], count, to);
        for (int64_t t = count; t < width; ++t) to[t] = 0;
      }
      for (int64_t c = 0; c < C; ++c) {
        const T* from = input + c * plane + first;
        T* to = x + c * LD;
        if (activation.scale == nullptr)
          copy(from, count, to);
        else {
          const T scale = activation.scale[c], shift = activation.shift[c], slope = activation.slope;
#pragma omp simd
          for (int64_t t = 0; t < count; ++t) {
            const T u = scale * from[t] + shift;
            to[t] = u > 0 ? u : slope * u;
          }
        }
      }
      const int64_t next = first + BLOCK, ahead = at_most(end - next, BLOCK);
      for (int64_t c = 0; c < row; c += NR) {
        turn_line<Tile>(x + c * LD, LD, at_most(NR, C - c), count, NR, panels + c * count);
        for (int64_t tile = 0; tile < Tile::tiles(K); ++tile) {
          const int64_t k0 = Tile::tile_begin(K, tile), k1 = Tile::tile_begin(K, tile + 1);
          if (ahead > 0) {
            const int64_t part = c / NR * Tile::tiles(K) + tile, parts = row / NR * Tile::tiles(K);
            Forward::prefetch_ahead(grad + next, plane, ahead, K, part, parts);
            if (output != nullptr) Forward::prefetch_ahead(output + next, plane, ahead, K, part, parts);
            Forward::prefetch_ahead(input + next, plane, ahead, C, part, parts);
          }
          for (int64_t t = 0; t < count; t += CHAIN)
            Tile::upto(static_cast<int>(k1 - k0), at_most(count - t, CHAIN), g + k0 * LD + t, LD,
                       panels + c * count + t * NR, sums + k0 * row + c, row, first > begin || t > 0);
        }
      }
      if (grad_input == nullptr) continue;
      for (int64_t tile = 0; tile < Tile::tiles(C); ++tile) {
        const int64_t c0 = Tile::tile_begin(C, tile), c1 = Tile::tile_begin(C, tile + 1);
        for (int64_t d = 0; d < K; d += CHAIN)
          for (int64_t p = 0; p < width; p += NR)
            Tile::upto(static_cast<int>(c1 - c0), at_most(K - d, CHAIN), packed + c0 * K + d, K, g + d * LD + p,
                       products + p, BLOCK, d > 0, LD);
        for (int64_t c = c0; c < c1; ++c) {
          T *made = products + (c - c0) * BLOCK, *to = grad_input + c * plane + first;
          if (activation.scale == nullptr) {
            write_line<Tile>(made, count, to, stream);
            continue;
          }
          const T* from = input + c * plane + first;
          const T m = static_cast<T>(mean[c]), scale = activation.scale[c], shift = activation.shift[c],
                  slope = activation.slope;
          Vector plain{}, with{};
          int64_t t = 0;
          for (; t + LANES <= count; t += LANES) {
            const Vector at = Tile::load(from + t), arriving = Tile::load(made + t);
            const Vector d = scale * at + shift > 0 ? arriving : slope * arriving;
            plain += d;
            with += d * (at - m);
            Tile::store(made + t, scale * d);
          }
          double sums[2] = {Tile::sum(plain), Tile::sum(with)};
          for (; t < count; ++t) {
            const T d = scale * from[t] + shift > 0 ? made[t] : slope * made[t];
            sums[0] += d;
            sums[1] += d * (from[t] - m);
            made[t] = scale * d;
          }
          input_sums[2 * c] += sums[0];
          input_sums[2 * c + 1] += sums[1];
          write_line<Tile>(made, count, to, stream);
        }
      }
    }
    Tile::fence();
  }
};
