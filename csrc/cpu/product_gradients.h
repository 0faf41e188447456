// The gradients of the products of a winograd convolution (winograd_gradient.h), dM = A dy A^T of each site, in rows:
// [slot][k][LD], filled up with zeros to whole panels.
#pragma once

#include "algorithms.h"
#include "raw_gradient.h"
#include "transform.h"

template <class Tile>
struct ProductGradients {
  using T = typename Tile::T;
  static constexpr int NR = Tile::NR, SLOTS = Scheme<Algorithm::winograd>::SLOTS;
  static constexpr int64_t LD = MAX_BLOCK + 16;  // so that rows are not a power of two apart
  static constexpr int64_t AHEAD = 1;  // channels that are prefetched: more compete for the same lines of the cache

  // Makes dM, and from the blurred gradient that of upsampled channels if the shape blurs; adds the sums of G to
  // `bias`.
  template <class O>
  static void make(const ConvShape& s, const RawGradient<O>& raw, int64_t first, int64_t last, T* out, T* blurred,
                   T* bias) {
    const int64_t slot = field_slot(s.outputs * LD), count = last - first;
    each_stretch({0, 0, s.rows, s.cols}, first, last, [&](int64_t i, int64_t j, int64_t site, int64_t length) {
      const RowsOfGradient<O> rows{s, raw, j, length, at_most(2 * length, s.width - 2 * j)};
      for (int64_t k = 0; k < s.outputs; ++k) {
        const int64_t at = k * LD + (site - first);
        T lines[4][ROW];
        if (s.blurs) rows.load(k, 2 * i - 1, lines[0]);
        for (int64_t p = 0; p < 2; ++p) bias[k] += rows.load(k, 2 * i + p, lines[1 + p]);
        if (!s.blurs || s.inputs > s.upsampled)
          square_adjoint<false>(lines[1] + HALO, lines[2] + HALO, length, out + at, slot);
        if (!s.blurs) continue;
        rows.load(k, 2 * i + 2, lines[3]);
        blur(lines, length);
        square_adjoint<true>(lines[1] + HALO, lines[2] + HALO, length, blurred + at, slot);
      }
    });
    if (count % NR == 0) return;
    const auto fill_up = [&](T* made) {
      for (int i = 0; i < SLOTS; ++i)
        for (int64_t k = 0; k < s.outputs; ++k)
          fill_zero(made + i * slot + k * LD + count, rounded_up(count, NR) - count);
    };
    fill_up(out);
    if (s.blurs) fill_up(blurred);
  }

 private:
  // A part of a row of G: `length` sites from site j on, and beside it a pixel on either side, at HALO - 1.
  static constexpr int64_t HALO = Tile::LANES, ROW = 2 * MAX_BLOCK + 2 * HALO;
  template <class O>
  struct RowsOfGradient {
    const ConvShape& s;
    const RawGradient<O>& raw;
    int64_t j, length, width;  // width: pixels inside the image

    // Makes row r of channel k; returns its sum, without the pixels beside it.  Rows beyond the image are zero, or, for
    // a blur, which needs the pixels beside it too, the nearest row.
    T load(int64_t k, int64_t r, T* to) const {
      const int64_t plane = s.height * s.width, row = s.blurs ? clamped(r, 0, s.height - 1) : r,
                    filled = row < s.height ? width : 0, at = k * plane + row * s.width + 2 * j;
      const O* y = raw.output == nullptr ? nullptr : raw.output + at;
      if (k + AHEAD < s.outputs) prefetch(raw.grad + at + AHEAD * plane, filled);
      if (k + AHEAD < s.outputs && y != nullptr) prefetch(y + AHEAD * plane, filled);
      T sum = 0;
      if (filled > 0) sum = raw_gradient<Tile>(raw.grad + at, y, raw.constant[k], raw.factor[k], width, to + HALO);
      if (filled < 2 * length) fill_zero(to + HALO + filled, 2 * length - filled);
      if (!s.blurs) return sum;
      const int64_t left = j > 0 ? -1 : 0, right = 2 * (j + length) < s.width ? 2 * length : 2 * length - 1;
      to[HALO - 1] = raw_gradient_at(raw, k, at + left);
      to[HALO + 2 * length] = raw_gradient_at(raw, k, at + right);
      return sum;
    }
  };

  // The middle two of four rows, blurred by [1 2 1]/4 along H and W.
  static void blur(T (*lines)[ROW], int64_t length) {
    T(*to)[ROW] = lines + 1;
    const T share = static_cast<T>(0.0625);
    T down[2][ROW];
#pragma omp simd
    for (int64_t t = HALO - 1; t < HALO + 2 * length + 1; ++t) {
      down[0][t] = (lines[0][t] + lines[2][t]) + 2 * lines[1][t];
      down[1][t] = (lines[1][t] + lines[3][t]) + 2 * lines[2][t];
    }
    for (int p = 0; p < 2; ++p)
#pragma omp simd
      for (int64_t t = HALO; t < HALO + 2 * length; ++t)
        to[p][t] = ((down[p][t - 1] + down[p][t + 1]) + 2 * down[p][t]) * share;
  }

  // y0, y0 + y1, y0 - y1 and -y1 along H, then along W, of the four pixels of each square; for upsampled channels
  // without y0 - y1, whose fields vanish.
  template <bool UPSAMPLED>
  static void square_adjoint(const T* upper, const T* lower, int64_t length, T* to, int64_t slot) {
#pragma omp simd
    for (int64_t t = 0; t < length; ++t) {
      const T g00 = upper[2 * t], g01 = upper[2 * t + 1], g10 = lower[2 * t], g11 = lower[2 * t + 1];
      const auto put = [&](int a, T left, T right) {
        T* o = to + 4 * a * slot + t;
        o[0] = left;
        o[slot] = left + right;
        if constexpr (!UPSAMPLED) o[2 * slot] = left - right;
        o[3 * slot] = -right;
      };
      put(0, g00, g01);
      put(1, g00 + g10, g01 + g11);
      if constexpr (!UPSAMPLED) put(2, g00 - g10, g01 - g11);
      put(3, -g10, -g11);
    }
  }
};
