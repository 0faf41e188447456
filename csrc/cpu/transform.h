// The transforms: what the nine products are taken of.  Adds only; borders are dealt with here and nowhere else.
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
// Gradients, g = dL/dy.  As each x[i] is in the fields of three sites, its gradient is moved from the products' results
// to their operands, and is then one sum of nine products with no neighbours:
//
//   dx[i] = S (g[2i] + g[2i+1]) - w0 (g[2i] - g[2i+2]) + w2 (g[2i-1] - g[2i+1])
//
// with g zero outside of the image; where D[0] and D[W] are zero by padding, g[0] and g[2W-1] are left out of the
// second and third.  The weights' gradients are products of the fields of x with g[2i] + g[2i+1], g[2i] and g[2i+1].
//
// Bilinear is nearest with replicated borders, blurred along H and W by [1 2 1]/4 with replicated borders.  The blur is
// its own adjoint, so gradients are blurred while they are loaded.
//
// Sites of a region are numbered along its rows; a panel holds NR of them: [slot][panel][channel][NR].
#pragma once

#include "tile.h"

constexpr int64_t MAX_BLOCK = 64;  // sites worked on at a time, at most

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

// Zeros in what the last panel of each slot has beyond `sites`.
template <int NR, class T>
static inline void clear_last_panel(int64_t sites, int64_t channels, T* out) {
  const int64_t panels = (sites + NR - 1) / NR;
  for (int slot = 0; sites % NR != 0 && slot < 9; ++slot)
    fill_zero(out + slot * field_slot(panels * channels * NR) + (panels - 1) * channels * NR, channels * NR);
}

// Nine fields of `length` sites of one channel from three rows, each with a neighbour on either side.
template <class T, class Length>
static inline void fields_of(const T* up, const T* mid, const T* down, Length length, T* out, int64_t slot) {
#pragma omp simd
  for (int64_t t = 0; t < length; ++t) {
    const T centre = mid[t], above = mid[t] - up[t], below = down[t] - mid[t];
    out[t] = centre;
    out[t + slot] = centre - mid[t - 1];
    out[t + 2 * slot] = mid[t + 1] - centre;
    out[t + 3 * slot] = above;
    out[t + 4 * slot] = above - (mid[t - 1] - up[t - 1]);
    out[t + 5 * slot] = (mid[t + 1] - up[t + 1]) - above;
    out[t + 6 * slot] = below;
    out[t + 7 * slot] = below - (down[t - 1] - mid[t - 1]);
    out[t + 8 * slot] = (down[t + 1] - mid[t + 1]) - below;
  }
}

// Sum and differences along W, g from column 2j - 1 on.
template <class T, class Length>
static inline void differences_of(const T* g, Length length, T* out, int64_t slot) {
#pragma omp simd
  for (int64_t t = 0; t < length; ++t) {
    out[t] = g[2 * t + 1] + g[2 * t + 2];
    out[t + slot] = g[2 * t + 1] - g[2 * t + 3];
    out[t + 2 * slot] = g[2 * t] - g[2 * t + 2];
  }
}

// Calls f(panel, lane, t, length) for the parts of a stretch that lie in one panel each; `length` is a constant for
// whole panels.
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

// The fields of the sites first .. last of a region of one image (C, H, W); the last panel is filled up with zeros.
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
      // Neighbours beyond the left and right border are read from the rows around, and put right below; only at the two
      // ends of the image is there nothing to read.
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
        fields_of(up + t, mid + t, down + t, part, channel + panel * s.C * NR + lane, slot);
      });
      const auto border = [&](int64_t t, int at, T sign) {
        const int64_t lane = site - first + t;
        T* o = channel + lane / NR * s.C * NR + lane % NR;
        for (int a = 0; a < 3; ++a) o[(3 * a + at) * slot] = zeros ? sign * o[3 * a * slot] : 0;
      };
      if (j == 0) border(0, 1, 1);
      if (j + length == s.W) border(length - 1, 2, -1);
    }
  });
}

// Columns col .. col + count of row `row` of one channel's gradient (2H, 2W), zero outside of the image; in the
// gradient itself where they can be had there, else in `out`.
template <class T>
static inline const T* gradient_row(const T* grad, const Shape& s, int64_t row, int64_t col, int64_t count, T* out) {
  const int64_t H = 2 * s.H, W = 2 * s.W;
  if (row < 0 || row >= H) {
    fill_zero(out, count);
    return out;
  }
  const int64_t begin = col < 0 ? -col : 0, end = col + count > W ? W - col : count;  // those inside the image
  const T* mid = grad + row * W + col;
  if (!s.bilinear && end - begin == count) return mid;
  for (int64_t t = 0; t < begin; ++t) out[t] = 0;
  for (int64_t t = end; t < count; ++t) out[t] = 0;
  if (!s.bilinear) {
    for (int64_t t = begin; t < end; ++t) out[t] = mid[t];
    return out;
  }
  const T *up = row > 0 ? mid - W : mid, *down = row + 1 < H ? mid + W : mid;
  const int64_t left = col + begin > 0 ? begin - 1 : begin, right = col + end < W ? end + 1 : end;
  T blurred[2 * MAX_BLOCK + 4];  // along H, from column col - 1 on
  for (int64_t t = left; t < right; ++t) blurred[t + 1] = (up[t] + down[t]) + 2 * mid[t];
  if (left == begin) blurred[begin] = blurred[begin + 1];
  if (right == end) blurred[end + 1] = blurred[end];
  for (int64_t t = begin; t < end; ++t)
    out[t] = ((blurred[t] + blurred[t + 2]) + 2 * blurred[t + 1]) * static_cast<T>(0.0625);
  return out;
}

// The part of rows first .. last of one channel's gradient that gradient_row will read.
template <class T>
static inline void prefetch_gradient(const T* grad, const Shape& s, int64_t first, int64_t last, int64_t col,
                                     int64_t count) {
  if (s.bilinear) --first, ++last;
  for (int64_t r = first > 0 ? first : 0; r < last && r < 2 * s.H; ++r) prefetch(grad + r * 2 * s.W + col, count);
}

// The operands of the data gradient, in panels over the output channels, for the sites first .. last of a region.
template <int NR, class T>
static void gradient_fields(const T* grad, const Shape& s, const Region& region, int64_t first, int64_t last, T* out) {
  const bool zeros = s.padding == Padding::zeros && !s.bilinear;
  const int64_t panels = (last - first + NR - 1) / NR, slot = field_slot(panels * s.K * NR);
  clear_last_panel<NR>(last - first, s.K, out);
  each_stretch(region, first, last, [&](int64_t i, int64_t j, int64_t site, int64_t length) {
    const T even = zeros || i > 0 ? 1 : 0, odd = zeros || i + 1 < s.H ? 1 : 0;
    for (int64_t k = 0; k < s.K; ++k) {
      T rows[4][2 * MAX_BLOCK + 2], along_h[3][2 * MAX_BLOCK + 2];
      if (k + 2 < s.K) prefetch_gradient(grad + (k + 2) * 4 * s.H * s.W, s, 2 * i - 1, 2 * i + 3, 2 * j, 2 * length);
      const T* g[4];  // rows 2i - 1 .. 2i + 2 from column 2j - 1 on
      for (int r = 0; r < 4; ++r)
        g[r] = gradient_row(grad + k * 4 * s.H * s.W, s, 2 * i - 1 + r, 2 * j - 1, 2 * length + 2, rows[r]);
#pragma omp simd
      for (int64_t t = 0; t < 2 * length + 2; ++t) {
        along_h[0][t] = g[1][t] + g[2][t];
        along_h[1][t] = even * g[1][t] - g[3][t];
        along_h[2][t] = g[0][t] - odd * g[2][t];
      }
      for (int a = 0; a < 3; ++a) {
        T* channel = out + 3 * a * slot + k * NR;
        const T* h = along_h[a];
        each_panel<NR>(site - first, length, [&](int64_t panel, int64_t lane, int64_t t, auto part) {
          differences_of(h + 2 * t, part, channel + panel * s.K * NR + lane, slot);
        });
        if (zeros) continue;
        const auto at = [&](int64_t t) {
          return channel + (site - first + t) / NR * s.K * NR + (site - first + t) % NR;
        };
        if (j == 0) at(0)[slot] = -h[3];
        if (j + length == s.W) at(length - 1)[2 * slot] = h[2 * length - 2];
      }
    }
  });
}

// The gradients of the nine products of sites first .. last of a region, by rows: [slot][k][size]; zero from `last` on.
template <class T>
static void product_gradients(const T* grad, const Shape& s, const Region& region, int64_t first, int64_t last,
                              int64_t size, T* out) {
  const int64_t slot = field_slot(s.K * size);
  for (int64_t k = 0; k < s.K; ++k) {
    T* row = out + k * size;
    for (int a = 0; a < 9; ++a) fill_zero(row + a * slot + (last - first), size - (last - first));
    each_stretch(region, first, last, [&](int64_t i, int64_t j, int64_t site, int64_t length) {
      if (k + 2 < s.K) prefetch_gradient(grad + (k + 2) * 4 * s.H * s.W, s, 2 * i, 2 * i + 2, 2 * j, 2 * length);
      T rows[2][2 * MAX_BLOCK];
      const T* g[2];
      for (int p = 0; p < 2; ++p)
        g[p] = gradient_row(grad + k * 4 * s.H * s.W, s, 2 * i + p, 2 * j, 2 * length, rows[p]);
      T* o = row + (site - first);
#pragma omp simd
      for (int64_t t = 0; t < length; ++t) {
        const T a = g[0][2 * t], b = g[0][2 * t + 1], c = g[1][2 * t], d = g[1][2 * t + 1];
        o[t] = (a + b) + (c + d);
        o[t + slot] = a + c;
        o[t + 2 * slot] = b + d;
        o[t + 3 * slot] = a + b;
        o[t + 4 * slot] = a;
        o[t + 5 * slot] = b;
        o[t + 6 * slot] = c + d;
        o[t + 7 * slot] = c;
        o[t + 8 * slot] = d;
      }
    });
  }
}

// Panels of one slot [panel][channel][NR sites] turned into panels of channels [channel / NR][site][NR channels].
template <int NR, class T>
static void turn_panels(const T* in, int64_t channels, int64_t panels, T* out) {
  for (int64_t c = 0; c < channels; c += NR) {
    const int64_t count = channels - c < NR ? channels - c : NR;
    T* block = out + c * panels * NR;
    if (count < NR) fill_zero(block, panels * NR * NR);
    for (int64_t p = 0; p < panels; ++p)
      for (int64_t t = 0; t < NR; ++t)
        for (int64_t i = 0; i < count; ++i) block[(p * NR + t) * NR + i] = in[(p * channels + c + i) * NR + t];
  }
}

// The nine weights (9, K, C), or (9, C, K) transposed, of rows k .. of a weight (K, C, 3, 3).
template <class T>
static void pack_weight(const T* weight, int64_t K, int64_t C, bool transposed, T* out) {
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t c = 0; c < C; ++c) {
      double w[3][3], along_h[3][3];
      for (int t = 0; t < 9; ++t) w[t / 3][t % 3] = static_cast<double>(weight[(k * C + c) * 9 + t]);
      for (int b = 0; b < 3; ++b) {
        along_h[0][b] = (w[0][b] + w[1][b]) + w[2][b];
        along_h[1][b] = -w[0][b];
        along_h[2][b] = w[2][b];
      }
      T* o = out + (transposed ? c * K + k : k * C + c);
      for (int a = 0; a < 3; ++a) {
        o[(3 * a) * K * C] = static_cast<T>((along_h[a][0] + along_h[a][1]) + along_h[a][2]);
        o[(3 * a + 1) * K * C] = static_cast<T>(-along_h[a][0]);
        o[(3 * a + 2) * K * C] = static_cast<T>(along_h[a][2]);
      }
    }
  }
}

// The adjoint of pack_weight: the sums (9, K, ldc) of the products' gradients give the gradient (K, C, 3, 3).
template <class T>
static void unpack_weight_gradient(const T* sums, int64_t K, int64_t C, int64_t ldc, T* grad_weight) {
  for (int64_t k = 0; k < K; ++k) {
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
