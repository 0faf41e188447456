// The transforms: they make the operands (fields) of the nine products.  They only add, and they alone handle borders.
//
// One dimension, nearest, a site i of the low-resolution image, taps w0 w1 w2, S = w0 + w1 + w2, D[i] = x[i] - x[i-1]:
//
//   y[2i]   = S x[i] - w0 D[i]             three products, S x[i], -w0 D[i] and w2 D[i+1], for two outputs
//   y[2i+1] = S x[i] + w2 D[i+1]
//
// Two dimensions are the tensor product.  Slot 3a + b holds functional a along H and b along W of each of
//
//            fields of x            weights          the outputs it is added to
//   0        x[i]                   w0 + w1 + w2     both
//   1        x[i] - x[i-1]          -w0              the even one
//   2        x[i+1] - x[i]          w2               the odd one
//
// with x[-1] and x[H] the nearest pixel (reflect and replicate are the same after upsampling by two) or zero.
//
// Gradients, g = dL/dy.  Each x[i] is in the fields of three sites, so its gradient would be a sum over the results of
// neighbouring sites.  With the differences taken of the operands instead, it is one sum of nine products of its own
// site:
//
//   dx[i] = S (g[2i] + g[2i+1]) - w0 (g[2i] - g[2i+2]) + w2 (g[2i-1] - g[2i+1])
//
// with g zero outside of the image.  Where the padding makes D[0] and D[H] zero, g[0] is left out of the second term
// and g[2H-1] of the third.  The weights' gradients are the products of the fields of x with g[2i] + g[2i+1], g[2i] and
// g[2i+1].
//
// Bilinear is nearest with replicated borders, blurred along H and W by [1 2 1]/4 with replicated borders.  The blur is
// its own adjoint, so gradients are blurred while they are loaded.
//
// The sites of a region are numbered along its rows; a panel holds NR of them: [slot][panel][channel][NR].
#pragma once

#include "tile.h"

struct Region {
  int64_t row, col, rows, cols;
};

template <int N>
struct Constant {
  constexpr operator int64_t() const { return N; }
};

// Calls f(i, j, site, length) for each stretch of sites first..last that lies in one row.
template <class F>
static inline void each_stretch(const Region& region, int64_t first, int64_t last, F f) {
  for (int64_t s = first; s < last;) {
    const int64_t i = s / region.cols, j = s % region.cols;
    const int64_t length = region.cols - j < last - s ? region.cols - j : last - s;
    f(region.row + i, region.col + j, s, length);
    s += length;
  }
}

template <class T>
static inline void fill_zero(T* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = 0;
}

template <class T>
static inline void copy(const T* from, int64_t count, T* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = from[i];
}

// Sets a pixel beyond the border: to zero, or to its neighbour in the image.
template <class T>
static inline void border(T* out, const T* neighbour, int64_t count, bool zeros) {
  for (int64_t i = 0; i < count; ++i) out[i] = zeros ? 0 : neighbour[i];
}

// Fills the last panel of each slot with zeros if `sites` do not fill it.
template <int NR, class T>
static inline void clear_last_panel(int64_t sites, int64_t channels, T* out) {
  const int64_t panels = (sites + NR - 1) / NR;
  for (int slot = 0; sites % NR != 0 && slot < 9; ++slot)
    fill_zero(out + slot * field_slot(panels * channels * NR) + (panels - 1) * channels * NR, channels * NR);
}

// Makes nine fields of `length` elements from three lines, in which the neighbours along W are `step` elements away.
template <class T, class Length, class Step>
static inline void nine_fields(const T* up, const T* mid, const T* down, Length length, Step step, T* out,
                               int64_t slot) {
#pragma omp simd
  for (int64_t t = 0; t < length; ++t) {
    const int64_t left = t - step, right = t + step;
    const T centre = mid[t], above = mid[t] - up[t], below = down[t] - mid[t];
    out[t] = centre;
    out[t + slot] = centre - mid[left];
    out[t + 2 * slot] = mid[right] - centre;
    out[t + 3 * slot] = above;
    out[t + 4 * slot] = above - (mid[left] - up[left]);
    out[t + 5 * slot] = (mid[right] - up[right]) - above;
    out[t + 6 * slot] = below;
    out[t + 7 * slot] = below - (down[left] - mid[left]);
    out[t + 8 * slot] = (down[right] - mid[right]) - below;
  }
}

// Divides a stretch of sites by panels and calls f(panel, lane, t, length) for each part; `length` is a compile-time
// constant for whole panels.
template <int NR, class F>
static inline void each_panel(int64_t site, int64_t length, F f) {
  for (int64_t t = 0; t < length;) {
    const int64_t lane = (site + t) % NR;
    if (lane == 0 && length - t >= NR) {
      f((site + t) / NR, 0, t, Constant<NR>());
      t += NR;
    } else {
      const int64_t part = NR - lane < length - t ? NR - lane : length - t;
      f((site + t) / NR, lane, t, part);
      t += part;
    }
  }
}

// Makes the fields of the sites first .. last of a region of one image (C, H, W), the last panel filled up with zeros.
template <int NR, class T>
static void input_fields(const T* image, const Shape& s, const Region& region, int64_t first, int64_t last, T* out) {
  const bool zeros = s.padding == Padding::zeros && !s.bilinear;
  const int64_t panels = (last - first + NR - 1) / NR, slot = field_slot(panels * s.C * NR), plane = s.H * s.W;
  clear_last_panel<NR>(last - first, s.C, out);
  static const T nothing[MAX_BLOCK + 2] = {};
  each_stretch(region, first, last, [&](int64_t i, int64_t j, int64_t site, int64_t length) {
    const bool top = i == 0, bottom = i == s.H - 1;
    for (int64_t c = 0; c < s.C; ++c) {
      const T* mid = image + c * plane + i * s.W + j;
      for (int64_t r = top ? 0 : -1; c + 2 < s.C && r < (bottom ? 1 : 2); ++r)
        prefetch(mid + 2 * plane + r * s.W, length);
      const T *up = top ? (zeros ? nothing + 1 : mid) : mid - s.W,
              *down = bottom ? (zeros ? nothing + 1 : mid) : mid + s.W;
      // Neighbours beyond the left and the right border are read from the rows before and after, and corrected below;
      // only at the two ends of the image would these reads leave its memory.
      T padded[3][MAX_BLOCK + 2];
      if ((c == 0 && i <= 1) || (c == s.C - 1 && i >= s.H - 2)) {
        const T* rows[3] = {up, mid, down};
        for (int a = 0; a < 3; ++a) {
          padded[a][0] = padded[a][length + 1] = 0;
          for (int64_t t = j > 0 ? -1 : 0; t < (j + length < s.W ? length + 1 : length); ++t)
            padded[a][t + 1] = rows[a][t];
        }
        up = padded[0] + 1, mid = padded[1] + 1, down = padded[2] + 1;
      }
      T* channel = out + c * NR;
      each_panel<NR>(site - first, length, [&](int64_t panel, int64_t lane, int64_t t, auto part) {
        nine_fields(up + t, mid + t, down + t, part, Constant<1>(), channel + panel * s.C * NR + lane, slot);
      });
      const auto correct = [&](int64_t t, int at, T sign) {
        const int64_t lane = site - first + t;
        T* o = channel + lane / NR * s.C * NR + lane % NR;
        for (int a = 0; a < 3; ++a) o[(3 * a + at) * slot] = zeros ? sign * o[3 * a * slot] : 0;
      };
      if (j == 0) correct(0, 1, 1);
      if (j + length == s.W) correct(length - 1, 2, -1);
    }
  });
}

// The gradient of one channel, (2H, 2W), about the sites j - 1 .. j + length of row i, already combined along H: three
// lines of the even columns and three of the odd ones, zero outside of the image, for bilinear blurred along H and W.
template <class T>
struct GradientLines {
  T even[3][MAX_BLOCK + 2], odd[3][MAX_BLOCK + 2];  // element 0 is site j - 1, whose even column is not set
};

// With b[r] the rows of the gradient (bilinear: blurred along H), `combine` makes the three lines from b[2i-1] ..
// b[2i+2], which are zero outside of the image.  Blurring along W commutes with that, so three lines are blurred, not
// four.
template <class T, class Combine>
static inline void gradient_lines(const T* grad, const Shape& s, int64_t i, int64_t j, int64_t length, Combine combine,
                                  GradientLines<T>& lines) {
  const int64_t H = 2 * s.H, W = 2 * s.W, col = 2 * j - 2, count = 2 * length + 4;
  const auto row = [&](int64_t r) { return grad + (r < 0 ? 0 : r >= H ? H - 1 : r) * W + col; };
  const T above = i > 0 ? 1 : 0, below = i + 1 < s.H ? 1 : 0;
  const T *g0 = row(2 * i - 1), *g1 = row(2 * i), *g2 = row(2 * i + 1), *g3 = row(2 * i + 2);
  const int64_t begin = j > 0 ? 0 : 2, end = j + length < s.W ? count : count - 2;  // those inside the image
  T h[3][2 * MAX_BLOCK + 4];
  if (s.bilinear) {
    const T *first = row(2 * i - 2), *last = row(2 * i + 3);
#pragma omp simd
    for (int64_t t = begin; t < end; ++t) {
      const T b0 = above * ((first[t] + g1[t]) + 2 * g0[t]), b1 = (g0[t] + g2[t]) + 2 * g1[t],
              b2 = (g1[t] + g3[t]) + 2 * g2[t], b3 = below * ((g2[t] + last[t]) + 2 * g3[t]);
      combine(b0, b1, b2, b3, h[0][t], h[1][t], h[2][t]);
    }
  } else {
#pragma omp simd
    for (int64_t t = begin; t < end; ++t)
      combine(above * g0[t], g1[t], g2[t], below * g3[t], h[0][t], h[1][t], h[2][t]);
  }
  for (int a = 0; a < 3; ++a) {
    T *even = lines.even[a], *odd = lines.odd[a];
#pragma omp simd
    for (int64_t t = 0; t < length + 2; ++t) {
      even[t] = h[a][2 * t];
      odd[t] = h[a][2 * t + 1];
    }
    if (s.bilinear) {
      if (begin > 0) odd[0] = even[1];
      if (end < count) even[length + 1] = odd[length];
      T blurred[2][MAX_BLOCK + 2];
      const T share = static_cast<T>(0.0625);
#pragma omp simd
      for (int64_t t = 0; t < length + 1; ++t) {
        blurred[0][t] = ((odd[t] + odd[t + 1]) + 2 * even[t + 1]) * share;
        blurred[1][t] = ((even[t] + even[t + 1]) + 2 * odd[t]) * share;
      }
      copy(blurred[0], length + 1, even + 1);
      copy(blurred[1], length + 1, odd);
    }
    if (begin > 0) odd[0] = 0;
    if (end < count) even[length + 1] = 0;
  }
}

// Prefetches the part of one channel's gradient that gradient_lines will read.
template <class T>
static inline void prefetch_gradient(const T* grad, const Shape& s, int64_t first, int64_t last, int64_t col,
                                     int64_t count) {
  if (s.bilinear) --first, ++last;
  for (int64_t r = first > 0 ? first : 0; r < last && r < 2 * s.H; ++r) prefetch(grad + r * 2 * s.W + col, count);
}

// Makes the operands of the data gradient, in panels over the output channels, for the sites first .. last of a region.
template <int NR, class T>
static void gradient_fields(const T* grad, const Shape& s, const Region& region, int64_t first, int64_t last, T* out) {
  const bool zeros = s.padding == Padding::zeros && !s.bilinear;
  const int64_t panels = (last - first + NR - 1) / NR, slot = field_slot(panels * s.K * NR);
  clear_last_panel<NR>(last - first, s.K, out);
  each_stretch(region, first, last, [&](int64_t i, int64_t j, int64_t site, int64_t length) {
    const T upper = zeros || i > 0 ? 1 : 0, lower = zeros || i + 1 < s.H ? 1 : 0;
    for (int64_t k = 0; k < s.K; ++k) {
      GradientLines<T> lines;
      if (k + 2 < s.K) prefetch_gradient(grad + (k + 2) * 4 * s.H * s.W, s, 2 * i - 1, 2 * i + 3, 2 * j, 2 * length);
      gradient_lines(
          grad + k * 4 * s.H * s.W, s, i, j, length,
          [=](T b0, T b1, T b2, T b3, T& h0, T& h1, T& h2) {
            h0 = b1 + b2;
            h1 = upper * b1 - b3;
            h2 = b0 - lower * b2;
          },
          lines);
      for (int a = 0; a < 3; ++a) {
        T* channel = out + 3 * a * slot + k * NR;
        const T *even = lines.even[a] + 1, *odd = lines.odd[a] + 1;
        each_panel<NR>(site - first, length, [&](int64_t panel, int64_t lane, int64_t t, auto part) {
          T* o = channel + panel * s.K * NR + lane;
          const T *e = even + t, *d = odd + t;
#pragma omp simd
          for (int64_t q = 0; q < part; ++q) {
            o[q] = e[q] + d[q];
            o[q + slot] = e[q] - e[q + 1];
            o[q + 2 * slot] = d[q - 1] - d[q];
          }
        });
        if (zeros) continue;
        const auto at = [&](int64_t t) {
          return channel + (site - first + t) / NR * s.K * NR + (site - first + t) % NR;
        };
        if (j == 0) at(0)[slot] = -even[1];
        if (j + length == s.W) at(length - 1)[2 * slot] = odd[length - 2];
      }
    }
  });
}

// Makes the gradients of the nine products of the sites first .. last of a region, by rows: [slot][k][site].
template <class T>
static void product_gradients(const T* grad, const Shape& s, const Region& region, int64_t first, int64_t last,
                              T* out) {
  const int64_t size = last - first, slot = field_slot(s.K * size);
  for (int64_t k = 0; k < s.K; ++k) {
    T* row = out + k * size;
    each_stretch(region, first, last, [&](int64_t i, int64_t j, int64_t site, int64_t length) {
      if (k + 2 < s.K) prefetch_gradient(grad + (k + 2) * 4 * s.H * s.W, s, 2 * i, 2 * i + 2, 2 * j, 2 * length);
      GradientLines<T> lines;
      gradient_lines(
          grad + k * 4 * s.H * s.W, s, i, j, length,
          [](T, T b1, T b2, T, T& h0, T& h1, T& h2) {
            h0 = b1 + b2;
            h1 = b1;
            h2 = b2;
          },
          lines);
      for (int a = 0; a < 3; ++a) {
        T* o = row + 3 * a * slot + (site - first);
        const T *even = lines.even[a] + 1, *odd = lines.odd[a] + 1;
#pragma omp simd
        for (int64_t t = 0; t < length; ++t) {
          o[t] = even[t] + odd[t];
          o[t + slot] = even[t];
          o[t + 2 * slot] = odd[t];
        }
      }
    });
  }
}

// Transposes a line of `count` pixels of C channels, `plane` apart, to [pixel][row of whole vectors], zero beyond C.
template <class Tile, class T = typename Tile::T>
static void transpose_line(const T* in, int64_t plane, int64_t C, int64_t count, int64_t row, T* out) {
  constexpr int64_t LANES = Tile::LANES;
  const int64_t whole = count / LANES * LANES;
  for (int64_t c = 0; c < row; c += LANES)
    for (int64_t t = 0; t < whole; t += LANES)
      Tile::transpose(in + c * plane + t, plane, clamped(C - c, 0, LANES), out + t * row + c, row);
  for (int64_t t = whole; t < count; ++t) {
    for (int64_t c = 0; c < C; ++c) out[t * row + c] = in[c * plane + t];
    fill_zero(out + t * row + C, row - C);
  }
}

// input_fields with the channels as vectors, for products that sum over the sites: [slot][channel / NR][site][NR].
// Three lines are transposed into `transposed`, which holds 3 (MAX_BLOCK + 2) pixels, and nine fields made of them.
template <class Tile, class T = typename Tile::T>
static void transposed_fields(const T* image, const Shape& s, const Region& region, int64_t first, int64_t last,
                              T* transposed, T* out) {
  constexpr int64_t NR = Tile::NR;
  const bool zeros = s.padding == Padding::zeros && !s.bilinear;
  const int64_t row = rounded_up(s.C, NR), sites = last - first, slot = field_slot(row * sites), plane = s.H * s.W;
  each_stretch(region, first, last, [&](int64_t i, int64_t j, int64_t site, int64_t length) {
    const int64_t line = (length + 2) * row;
    for (int64_t r = 0; r < 3; ++r) {  // lines i - 1, i, i + 1 of the columns j - 1 .. j + length
      T* to = transposed + r * line;
      const int64_t at = i + r - 1;
      if (at < 0 || at >= s.H) {
        if (zeros)
          fill_zero(to, line);
        else if (r == 2)
          copy(transposed + line, line, to);  // line i; for r = 0 it is copied below, once line i is made
        continue;
      }
      const int64_t from = j > 0 ? j - 1 : j, until = j + length < s.W ? j + length + 1 : j + length;
      transpose_line<Tile>(image + at * s.W + from, plane, s.C, until - from, row, to + (from - (j - 1)) * row);
      if (j == 0) border(to, to + row, row, zeros);
      if (j + length == s.W) border(to + (length + 1) * row, to + length * row, row, zeros);
      if (r == 1 && i == 0 && !zeros) copy(to, line, transposed);
    }
    for (int64_t c = 0; c < row; c += NR)
      for (int64_t t = 0; t < length; ++t) {
        const T *up = transposed + (t + 1) * row + c, *mid = up + line, *down = mid + line;
        nine_fields(up, mid, down, Constant<NR>(), row, out + (c / NR * sites + site - first + t) * NR, slot);
      }
  });
}

// Packs the nine weights of a weight (K, C, 3, 3) for the output channels k0 .. k1: (9, K, C), or (9, C, K) transposed.
template <class T>
static void pack_weight(const T* weight, int64_t K, int64_t C, bool transposed, int64_t k0, int64_t k1, T* out) {
  const int64_t slot = K * C, step = transposed ? K : 1;
  for (int64_t k = k0; k < k1; ++k)
    for (int64_t c0 = 0; c0 < C; c0 += MAX_BLOCK) {
      const int64_t count = at_most(C - c0, MAX_BLOCK);
      T w[9][MAX_BLOCK], packed[9][MAX_BLOCK];
      for (int64_t c = 0; c < count; ++c)
        for (int t = 0; t < 9; ++t) w[t][c] = weight[(k * C + c0 + c) * 9 + t];
#pragma omp simd
      for (int64_t c = 0; c < count; ++c) {
        const auto tap = [&](int t) { return static_cast<double>(w[t][c]); };
        const double left = (tap(0) + tap(3)) + tap(6), right = (tap(2) + tap(5)) + tap(8);
        const double top = (tap(0) + tap(1)) + tap(2), bottom = (tap(6) + tap(7)) + tap(8);
        packed[0][c] = static_cast<T>((top + ((tap(3) + tap(4)) + tap(5))) + bottom);
        packed[1][c] = static_cast<T>(-left);
        packed[2][c] = static_cast<T>(right);
        packed[3][c] = static_cast<T>(-top);
        packed[4][c] = w[0][c];
        packed[5][c] = -w[2][c];
        packed[6][c] = static_cast<T>(bottom);
        packed[7][c] = -w[6][c];
        packed[8][c] = w[8][c];
      }
      T* o = transposed ? out + c0 * K + k : out + k * C + c0;
      for (int a = 0; a < 9; ++a)
        for (int64_t c = 0; c < count; ++c) o[a * slot + c * step] = packed[a][c];
    }
}

// The adjoint of pack_weight: from the sums (9, K, ldc) of the products' gradients to the gradient (K, C, 3, 3), for
// the output channels k0 .. k1.
template <class T>
static void unpack_weight_gradient(const T* sums, int64_t K, int64_t C, int64_t ldc, int64_t k0, int64_t k1,
                                   T* grad_weight) {
  for (int64_t k = k0; k < k1; ++k) {
    for (int64_t c = 0; c < C; ++c) {
      const T* in = sums + k * ldc + c;
      T* out = grad_weight + (k * C + c) * 9;
      T along_w[3][3];
      for (int a = 0; a < 3; ++a) {
        const T s = in[(3 * a) * K * ldc];
        along_w[a][0] = s - in[(3 * a + 1) * K * ldc];
        along_w[a][1] = s;
        along_w[a][2] = s + in[(3 * a + 2) * K * ldc];
      }
      for (int b = 0; b < 3; ++b) {
        out[b] = along_w[0][b] - along_w[1][b];
        out[3 + b] = along_w[0][b];
        out[6 + b] = along_w[0][b] + along_w[2][b];
      }
    }
  }
}
