// All gradients of a winograd convolution, in one pass over the gradient of its outputs.
//
// With the fields F of the inputs, the products M[k] = sum over c of U[k][c] F[c] and the outputs y = A^T M A of each
// site (algorithms.h), slot by slot:
//
//   dM = A dy A^T      dU[k][c] = sum over sites of dM[k] F[c]      dF[c] = sum over k of U[k][c] dM[k]
//
// dM is made once for a block of sites.  It is the matrix that is multiplied by the transposed fields, and the panel
// that is multiplied by the weights.  dF goes back through the transform of the fields to the windows of the padded
// copies, which overlap: an item adds up those of its own rows, and Channels::bands_adjoint adds up the items.
//
// Bilinear upsampling is nearest whose outputs are blurred (transform.h).  The blur is its own adjoint, so the
// upsampled channels have products of their own then, made of the blurred gradient.
#pragma once

#include "conv_fields.h"
#include "product_gradients.h"

template <class Tile>
struct WinogradGradient {
  using T = typename Tile::T;
  using Vector = typename Tile::Vector;
  using S = Scheme<Algorithm::winograd>;
  using Layout = InputLayout<Algorithm::winograd>;
  static constexpr int NR = Tile::NR, LANES = Tile::LANES, SLOTS = S::SLOTS;
  static constexpr int64_t BLOCK = MAX_BLOCK, LD = ProductGradients<Tile>::LD;
  static constexpr int64_t PRODUCT = Tile::MR * BLOCK + 80, STRIP = 64;

  static int64_t plain(const ConvShape& s) { return s.inputs - s.upsampled; }
  static int64_t plain_row(const ConvShape& s) { return rounded_up(plain(s), LANES); }
  // The transposed fields of a site: its plain channels, then from `start` on the upsampled ones, in whole vectors.
  static int64_t start(const ConvShape& s) { return rounded_up(plain(s), Tile::REST); }
  static int64_t row(const ConvShape& s) {
    return s.upsampled == 0 ? plain_row(s) : rounded_up(start(s) + rounded_up(s.upsampled, LANES), LANES);
  }
  static int64_t row_of_sums(const ConvShape& s, int slot) {
    return start(s) + (S::vanishes_upsampled(slot) ? 0 : rounded_up(s.upsampled, Tile::REST));
  }

  // An item is a band of 64 to 1024 sites: to add its sums to the total costs as much as about five sites.
  static Bands bands(const ConvShape& s) {
    return {s.rows, quotient_up(at_least(BLOCK, at_most(1024, s.rows * s.cols / 8)), s.cols)};
  }
  static int64_t items(const ConvShape& s) { return bands(s).count; }
  static int64_t rows(const ConvShape& s) { return bands(s).rows; }
  static Rows input_rows(const ConvShape& s, int64_t item) { return rows_read<Algorithm::winograd>(s, bands(s), item); }

  // The gradients of the padded copies that an item computes: (plain, 2 rows + 2, 2 cols + 2), with even columns first,
  // and (upsampled, rows + 2, cols + 2).
  static int64_t plain_plane(const ConvShape& s) { return (2 * rows(s) + 2) * (2 * s.cols + 2); }
  static int64_t upsampled_plane(const ConvShape& s) { return (rows(s) + 2) * (s.cols + 2); }
  static int64_t local_size(const ConvShape& s) {
    return rounded_up(plain(s) * plain_plane(s) + s.upsampled * upsampled_plane(s), 16);
  }

  // The sums of the bias, then of each slot (outputs, row_of_sums).
  static int64_t sums_size(const ConvShape& s) { return sums_of(s, SLOTS); }
  static int64_t sums_of(const ConvShape& s, int slot) {
    int64_t at = rounded_up(s.outputs, 16);
    for (int i = 0; i < slot; ++i) at += s.outputs * row_of_sums(s, i);
    return at;
  }

  static int64_t transposed_size(const ConvShape& s) {
    return 8 * (BLOCK + 2) * at_least(plain_row(s), rounded_up(s.upsampled, LANES));
  }
  static int64_t made_size(const ConvShape& s) { return SLOTS * field_slot(s.outputs * LD); }
  // dM as the matrix: itself, or pairs of its sites.
  static constexpr int64_t ROW = Tile::place(LD);
  static int64_t rows_size(const ConvShape& s) { return SLOTS * field_slot(s.outputs * ROW); }
  static int64_t scratch(const ConvShape& s) {
    return (s.blurs ? 2 : 1) * (made_size(s) + (Tile::PAIRS ? rows_size(s) : 0)) +
           SLOTS * (field_slot(row(s) * BLOCK) + PRODUCT) + transposed_size(s);
  }

  // sums: those of the bias alone if not `of_weight`.  local: null if the inputs need no gradient.
  template <class O>
  static void gradient(const ConvShape& s, const RawGradient<O>& raw, const Window<T>& input, const T* packed, T* local,
                       bool of_weight, T* sums, int64_t item, T* scratch) {
    // Without a blur both kinds of channels have the same.
    T *made = scratch, *blurred = s.blurs ? made + made_size(s) : made, *fields = blurred + made_size(s),
      *products = fields + SLOTS * field_slot(row(s) * BLOCK), *transposed = products + SLOTS * PRODUCT;
    T *rows = made, *blurred_rows = blurred;
    if constexpr (Tile::PAIRS) {
      rows = transposed + transposed_size(s);
      blurred_rows = s.blurs ? rows + rows_size(s) : rows;
    }
    const Bands band = bands(s);
    const int64_t top = band.begin(item), begin = top * s.cols, end = band.end(item, s.rows) * s.cols;
    fill_zero(sums, s.outputs);
    if (local != nullptr) fill_zero(local, local_size(s));
    for (int64_t first = begin; first < end; first += BLOCK) {
      const int64_t last = at_most(end, first + BLOCK);
      ProductGradients<Tile>::make(s, raw, first, last, made, blurred, sums);
      pair_gradients(s, last - first, made, rows);
      if (s.blurs) pair_gradients(s, last - first, blurred, blurred_rows);
      if (of_weight) {
        plain_fields(s, input, first, last, transposed, fields);
        upsampled_fields(s, input, first, last, transposed, fields);
        for (int slot = 0; slot < SLOTS; ++slot) {
          const int64_t all = row_of_sums(s, slot), parted = s.blurs ? start(s) : all;
          Tile::pair_panel(fields + slot * field_slot(row(s) * BLOCK), row(s), last - first, all);
          const auto add = [&](const T* gradients, int64_t from, int64_t to) {
            add_weight_products(s, gradients + slot * field_slot(s.outputs * ROW),
                                fields + slot * field_slot(row(s) * BLOCK), from, to, all, last - first,
                                sums + sums_of(s, slot), first > begin);
          };
          add(rows, 0, parted);
          add(blurred_rows, parted, all);
        }
      }
      if (local != nullptr) add_input_gradients(s, packed, top, first, last, made, blurred, products, local);
    }
  }

  // From the total of the sums to the gradient of the weights (outputs, inputs, 3, 3), for the outputs k0 .. k1.
  static void finish(const ConvShape& s, const T* total, int64_t k0, int64_t k1, T* grad_weight) {
    static const T nothing[STRIP] = {};
    for (int64_t k = k0; k < k1; ++k)
      for (int64_t c = 0, next; c < s.inputs; c = next) {
        const bool upsampled = c >= plain(s);
        next = at_most(c + STRIP, upsampled ? s.inputs : plain(s));
        T lines[4][3][STRIP], taps[9][STRIP];
        const auto sum = [&](int slot) -> const T* {
          if (upsampled && S::vanishes_upsampled(slot)) return nothing;
          const int64_t column = upsampled ? start(s) + c - plain(s) : c;
          return total + sums_of(s, slot) + k * row_of_sums(s, slot) + column;
        };
        for (int a = 0; a < 4; ++a)
          weight_adjoint(sum(4 * a), sum(4 * a + 1), sum(4 * a + 2), sum(4 * a + 3), next - c, lines[a]);
        for (int b = 0; b < 3; ++b) {
          T column[3][STRIP];
          weight_adjoint(lines[0][b], lines[1][b], lines[2][b], lines[3][b], next - c, column);
          for (int a = 0; a < 3; ++a) copy(column[a], next - c, taps[3 * a + b]);
        }
        for (int64_t t = 0; t < next - c; ++t)
          for (int i = 0; i < 9; ++i) grad_weight[(k * s.inputs + c + t) * 9 + i] = taps[i][t];
      }
  }

 private:
  static void pair_gradients(const ConvShape& s, int64_t count, T* made, T* rows) {
    if constexpr (Tile::PAIRS)
      for (int i = 0; i < SLOTS; ++i) {
        T* of_slot = made + i * field_slot(s.outputs * LD);
        for (int64_t k = 0; k < s.outputs; ++k)
          Tile::pair_row(of_slot + k * LD, count, rows + i * field_slot(s.outputs * ROW) + k * ROW);
        Tile::pair_panel(of_slot, LD, s.outputs, rounded_up(count, NR));
      }
  }

  // The fields of the plain channels with the channels as vectors, [slot][site][row].
  static void plain_fields(const ConvShape& s, const Window<T>& input, int64_t first, int64_t last, T* transposed,
                           T* out) {
    const int64_t lanes = plain_row(s), slot = field_slot(row(s) * BLOCK), width = row(s);
    const Layout layout(s, input.rows);
    each_stretch({0, 0, s.rows, s.cols}, first, last, [&](int64_t i, int64_t j, int64_t site, int64_t length) {
      const T* from = input.data + (2 * i - input.rows.first) * layout.row + j;
      const int64_t line = (length + 1) * lanes;
      for (int r = 0; r < 4; ++r)
        for (int h = 0; h < 2; ++h)
          transpose_line<Tile>(from + r * layout.row + h * layout.half, layout.plane, plain(s), length + 1, lanes,
                               transposed + (2 * r + h) * line);
      for (int64_t c = 0; c < lanes; c += LANES)
        for (int64_t t = 0; t < length; ++t) {
          Vector columns[4][4], made[4];
#pragma GCC unroll 4
          for (int b = 0; b < 4; ++b) {
            const T* d = transposed + b % 2 * line + (t + b / 2) * lanes + c;
            winograd_transform(Tile::load(d), Tile::load(d + 2 * line), Tile::load(d + 4 * line),
                               Tile::load(d + 6 * line), columns[b]);
          }
          T* to = out + (site - first + t) * width + c;
#pragma GCC unroll 4
          for (int a = 0; a < 4; ++a) {
            winograd_transform(columns[0][a], columns[1][a], columns[2][a], columns[3][a], made);
#pragma GCC unroll 4
            for (int b = 0; b < 4; ++b) Tile::store(to + (4 * a + b) * slot, made[b]);
          }
        }
    });
  }

  // Those of the upsampled channels, beside them.
  static void upsampled_fields(const ConvShape& s, const Window<T>& input, int64_t first, int64_t last, T* transposed,
                               T* out) {
    const int64_t lanes = rounded_up(s.upsampled, LANES), slot = field_slot(row(s) * BLOCK), width = row(s),
                  pitch = s.cols + 2, plane = (s.rows + 2) * pitch;
    if (s.upsampled == 0) return;
    each_stretch({0, 0, s.rows, s.cols}, first, last, [&](int64_t i, int64_t j, int64_t site, int64_t length) {
      const int64_t line = (length + 2) * lanes;
      for (int r = 0; r < 3; ++r)
        transpose_line<Tile>(input.upsampled + (i + r) * pitch + j, plane, s.upsampled, length + 2, lanes,
                             transposed + r * line);
      for (int64_t c = 0; c < lanes; c += LANES)
        for (int64_t t = 0; t < length; ++t) {
          Vector columns[3][3], made[3];
#pragma GCC unroll 3
          for (int b = 0; b < 3; ++b) {
            const T* d = transposed + (t + b) * lanes + c;
            upsampled_transform(Tile::load(d), Tile::load(d + line), Tile::load(d + 2 * line), columns[b]);
          }
          T* to = out + (site - first + t) * width + start(s) + c;
#pragma GCC unroll 3
          for (int a = 0; a < 3; ++a) {
            upsampled_transform(columns[0][a], columns[1][a], columns[2][a], made);
#pragma GCC unroll 3
            for (int b = 0; b < 3; ++b) Tile::store(to + S::upsampled_slot(a, b) * slot, made[b]);
          }
        }
    });
  }

  // sums[k][c] (+)= sum over sites of rows[k][site] fields[site][c]      for c of the columns from .. to
  [[gnu::always_inline]] static inline void add_weight_products(const ConvShape& s, const T* rows, const T* fields,
                                                                int64_t from, int64_t to, int64_t row_of_sums,
                                                                int64_t count, T* sums, bool accumulate) {
    int64_t c = from;
    const auto multiply = [&](auto tile_of) {
      using Columns = decltype(tile_of);
      for (; to - c >= Columns::NR; c += Columns::NR)
        for (int64_t tile = 0; tile < Tile::tiles(s.outputs); ++tile) {
          const int64_t k0 = Tile::tile_begin(s.outputs, tile), k1 = Tile::tile_begin(s.outputs, tile + 1);
          Columns::upto(static_cast<int>(k1 - k0), count, rows + k0 * ROW, ROW, fields + c, sums + k0 * row_of_sums + c,
                        row_of_sums, accumulate, row(s));
        }
    };
    multiply(Tile());
    multiply(typename Tile::HalfTile());
    multiply(typename Tile::RestTile());
  }

  // dF of each tile of channels, and its windows.
  static void add_input_gradients(const ConvShape& s, const T* packed, int64_t top, int64_t first, int64_t last,
                                  const T* made, const T* blurred, T* products, T* local) {
    const int64_t K = s.outputs, slot = field_slot(K * LD), width = rounded_up(last - first, NR);
    for (const bool upsampled : {false, true}) {
      const int64_t channels = upsampled ? s.upsampled : plain(s), before = upsampled ? plain(s) : 0;
      const T* gradients = upsampled ? blurred : made;
      for (int64_t tile = 0; tile < Tile::tiles(channels); ++tile) {
        const int64_t c0 = Tile::tile_begin(channels, tile), c1 = Tile::tile_begin(channels, tile + 1);
        for (int i = 0; i < SLOTS; ++i) {
          if (upsampled && S::vanishes_upsampled(i)) continue;
          for (int64_t d = 0; d < K; d += CHAIN)
            for (int64_t p = 0; p < width; p += NR)
              Tile::upto(static_cast<int>(c1 - c0), at_most(K - d, CHAIN),
                         packed + (i * s.inputs + before + c0) * K + Tile::place(d), K,
                         gradients + i * slot + Tile::place(d) * LD + p, products + i * PRODUCT + p, BLOCK, d > 0, LD);
        }
        for (int64_t c = c0; c < c1; ++c)
          each_stretch({0, 0, s.rows, s.cols}, first, last, [&](int64_t i, int64_t j, int64_t site, int64_t length) {
            const T* product = products + (c - c0) * BLOCK + (site - first);
            if (upsampled)
              add_upsampled(product, length, s.cols + 2,
                            local + plain(s) * plain_plane(s) + c * upsampled_plane(s) + (i - top) * (s.cols + 2) + j);
            else
              add_window(product, length, s.cols + 1,
                         local + c * plain_plane(s) + 2 * (i - top) * (2 * s.cols + 2) + j);
          });
      }
    }
  }

  // Lines of a stretch's windows, by row and column of the window; column b of the window of site t stands at
  // t + shift(b), where it is added to the columns of other sites that are the same pixel.
  static constexpr int64_t LINE = MAX_BLOCK + 2 * LANES;

  // The adjoint of ConvFields::winograd; `to` is split, `half` between even and odd columns.
  static void add_window(const T* product, int64_t length, int64_t half, T* to) {
    T lines[4][4][LINE];
    for (int64_t t = 0; t < length; t += LANES) {
      Vector rows[4][4], pixels[4];
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b) {
        const T* m = product + b * PRODUCT + t;
        winograd_adjoint(Tile::load(m), Tile::load(m + 4 * PRODUCT), Tile::load(m + 8 * PRODUCT),
                         Tile::load(m + 12 * PRODUCT), rows[b]);
      }
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        winograd_adjoint(rows[0][r], rows[1][r], rows[2][r], rows[3][r], pixels);
#pragma GCC unroll 4
        for (int b = 0; b < 4; ++b) Tile::store(lines[r][b] + t + b / 2, pixels[b]);
      }
    }
    for (int r = 0; r < 4; ++r) {
      T *even = to + 2 * r * half, *odd = even + half, (*line)[LINE] = lines[r];
      line[0][length] = line[1][length] = line[2][0] = line[3][0] = 0;
#pragma omp simd
      for (int64_t t = 0; t <= length; ++t) {
        even[t] += line[0][t] + line[2][t];
        odd[t] += line[1][t] + line[3][t];
      }
    }
  }

  // The adjoint of ConvFields::upsampled; rows of `to` are `pitch` apart.
  static void add_upsampled(const T* product, int64_t length, int64_t pitch, T* to) {
    T lines[3][3][LINE];
    for (int64_t t = 0; t < length; t += LANES) {
      Vector rows[3][3], pixels[3];
#pragma GCC unroll 3
      for (int b = 0; b < 3; ++b) {
        const auto m = [&](int a) { return Tile::load(product + S::upsampled_slot(a, b) * PRODUCT + t); };
        upsampled_adjoint(m(0), m(1), m(2), rows[b]);
      }
#pragma GCC unroll 3
      for (int r = 0; r < 3; ++r) {
        upsampled_adjoint(rows[0][r], rows[1][r], rows[2][r], pixels);
#pragma GCC unroll 3
        for (int b = 0; b < 3; ++b) Tile::store(lines[r][b] + t + b, pixels[b]);
      }
    }
    for (int r = 0; r < 3; ++r) {
      T* row = to + r * pitch;
      T(*line)[LINE] = lines[r];
      line[0][length] = line[0][length + 1] = line[1][0] = line[1][length + 1] = line[2][0] = line[2][1] = 0;
#pragma omp simd
      for (int64_t t = 0; t < length + 2; ++t) row[t] += (line[0][t] + line[2][t]) + line[1][t];
    }
  }

  // The adjoint of ConvWeights::transform: from four lines of sums to those of three taps.
  static void weight_adjoint(const T* m0, const T* m1, const T* m2, const T* m3, int64_t count, T (*out)[STRIP]) {
    const T half = static_cast<T>(0.5);
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) {
      out[0][c] = m0[c] + half * (m1[c] + m2[c]);
      out[1][c] = half * (m1[c] - m2[c]);
      out[2][c] = half * (m1[c] + m2[c]) + m3[c];
    }
  }
};
