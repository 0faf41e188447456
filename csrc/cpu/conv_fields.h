// The fields of a block of sites (algorithms.h), in panels of WIDTH sites: [field][panel][channel][WIDTH].
#pragma once

#include "algorithms.h"

// Winograd's four fields of one dimension, from the lines d0 .. d3.
template <class V>
static inline void winograd_transform(V d0, V d1, V d2, V d3, V* out) {
  out[0] = d0 - d2;
  out[1] = d1 + d2;
  out[2] = d2 - d1;
  out[3] = d1 - d3;
}

template <class V>
static inline void winograd_adjoint(V f0, V f1, V f2, V f3, V* out) {
  out[0] = f0;
  out[1] = (f1 - f2) + f3;
  out[2] = (f1 + f2) - f0;
  out[3] = -f3;
}

// Those of an upsampled channel, from three lines of the small image.
template <class V>
static inline void upsampled_transform(V left, V middle, V right, V* out) {
  out[0] = left - middle;
  out[1] = middle + middle;
  out[2] = middle - right;
}
template <class V>
static inline void upsampled_adjoint(V f0, V f1, V f2, V* out) {
  out[0] = f0;
  out[1] = ((f1 + f1) - f0) + f2;
  out[2] = -f2;
}

template <class Tile, Algorithm A>
struct ConvFields {
  using T = typename Tile::T;
  using Vector = typename Tile::Vector;
  using S = Scheme<A>;
  using Layout = InputLayout<A>;
  static constexpr int LANES = Tile::LANES;

  // The distance of two fields of `count` sites.
  template <int WIDTH>
  static int64_t slot_size(const ConvShape& s, int64_t count) {
    return field_slot(quotient_up(count, WIDTH) * s.inputs * WIDTH);
  }

  // Makes the fields of the sites first .. last.  The last panel is filled up with zeros.
  template <int WIDTH, class Read>
  static void make(const ConvShape& s, const Window<Read>& input, const Activation<T>& activation, int64_t first,
                   int64_t last, T* out) {
    const int64_t panels = quotient_up(last - first, WIDTH), slot = slot_size<WIDTH>(s, last - first);
    if ((last - first) % WIDTH != 0)
      for (int f = 0; f < S::FIELDS; ++f) fill_zero(out + f * slot + (panels - 1) * s.inputs * WIDTH, s.inputs * WIDTH);
    const Layout layout(s, input.rows);
    each_stretch({0, 0, s.rows, s.cols}, first, last, [&](int64_t i, int64_t j, int64_t site, int64_t length) {
      const int64_t plain = s.inputs - s.upsampled;
      for (int64_t c = 0; c < plain; ++c) {
        const Read* from =
            input.data + c * layout.plane + ((READS_SPLIT<A> ? 2 * i : i) - input.rows.first) * layout.row + j;
        T* channel = out + c * WIDTH;
        if (A == Algorithm::pointwise && c + 4 < plain) prefetch(from + 4 * layout.plane, length);
        if (A != Algorithm::pointwise && c + 2 < plain) prefetch_rows(from + 2 * layout.plane, layout, length + 1);
        const T scale = activation.scale == nullptr ? T(1) : activation.scale[c],
                shift = activation.scale == nullptr ? T(0) : activation.shift[c], slope = activation.slope;
        each_panel<WIDTH>(site - first, length, [&](int64_t panel, int64_t lane, int64_t t, auto part) {
          T* to = channel + panel * s.inputs * WIDTH + lane;
          const Read* at = from + t;
          if constexpr (A == Algorithm::pointwise)
            pixels(at, part, activation.scale != nullptr, scale, shift, slope, to);
          else if constexpr (A == Algorithm::strided)
            strided(at, part, layout, to, slot);
          else if constexpr (A == Algorithm::strided_gradient)
            strided_gradient(at, part, layout, to, slot);
          else
            winograd(at, part, layout, to, slot);
        });
      }
      if constexpr (A == Algorithm::winograd)
        for (int64_t c = 0; c < s.upsampled; ++c) {
          const int64_t pitch = s.cols + 2, plane = (s.rows + 2) * pitch;
          const T* from = input.upsampled + c * plane + i * pitch + j;
          for (int r = 0; r < 3 && c + 2 < s.upsampled; ++r) prefetch(from + 2 * plane + r * pitch, length + 2);
          T* channel = out + (plain + c) * WIDTH;
          each_panel<WIDTH>(site - first, length, [&](int64_t panel, int64_t lane, int64_t t, auto part) {
            upsampled(from + t, part, pitch, channel + panel * s.inputs * WIDTH + lane, slot);
          });
        }
    });
  }

 private:
  // The rows that the windows of a stretch of sites cover.
  template <class Read>
  static void prefetch_rows(const Read* from, const Layout& layout, int64_t count) {
    constexpr int ROWS = A == Algorithm::winograd ? 4 : A == Algorithm::strided ? 3 : 2;
    for (int r = 0; r < ROWS; ++r)
      for (int64_t h = 0; h < (READS_SPLIT<A> ? 2 : 1); ++h) prefetch(from + r * layout.row + h * layout.half, count);
  }

  // The functions below make the fields of `part` sites of one channel that lie in one panel.  They are inlined into
  // the lambda that calls them, so that `part` is a constant there for whole panels.

  template <class Read, class Length>
  [[gnu::always_inline]] static inline void pixels(const Read* at, Length part, bool activates, T scale, T shift,
                                                   T slope, T* to) {
    if (!activates) {
#pragma omp simd
      for (int64_t q = 0; q < part; ++q) to[q] = value_of(at[q]);
    } else {
#pragma omp simd
      for (int64_t q = 0; q < part; ++q) {
        const T u = scale * value_of(at[q]) + shift;
        to[q] = u > 0 ? u : slope * u;
      }
    }
  }

  // The nine pixels of each window.
  template <class Length>
  [[gnu::always_inline]] static inline void strided(const T* at, Length part, const Layout& layout, T* to,
                                                    int64_t slot) {
    const int64_t half = layout.half, row = layout.row;
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
  }

  // The four neighbouring pixels of the gradient.
  template <class Length>
  [[gnu::always_inline]] static inline void strided_gradient(const T* at, Length part, const Layout& layout, T* to,
                                                             int64_t slot) {
    const int64_t row = layout.row;
#pragma omp simd
    for (int64_t q = 0; q < part; ++q) {
      to[q] = at[q + row + 1];
      to[q + slot] = at[q + row];
      to[q + 2 * slot] = at[q + 1];
      to[q + 3 * slot] = at[q];
    }
  }

  template <class Length>
  [[gnu::always_inline]] static inline void winograd(const T* at, Length part, const Layout& layout, T* to,
                                                     int64_t slot) {
    const int64_t half = layout.half, row = layout.row;
    const auto transform = [&](auto load, int64_t q, auto store) {
      decltype(load(at)) lines[4][4], made[4];  // lines: [window column][field along H]
      for (int b = 0; b < 4; ++b) {
        const T* d = at + q + (b % 2) * half + b / 2;
        winograd_transform(load(d), load(d + row), load(d + 2 * row), load(d + 3 * row), lines[b]);
      }
#pragma GCC unroll 4
      for (int a = 0; a < 4; ++a) {
        winograd_transform(lines[0][a], lines[1][a], lines[2][a], lines[3][a], made);
#pragma GCC unroll 4
        for (int b = 0; b < 4; ++b) store(to + q + (4 * a + b) * slot, made[b]);
      }
    };
    by_vectors(part, transform);
  }

  template <class Length>
  [[gnu::always_inline]] static inline void upsampled(const T* at, Length part, int64_t pitch, T* to, int64_t slot) {
    by_vectors(part, [&](auto load, int64_t q, auto store) {
      decltype(load(at)) lines[3][3], made[3];
      for (int b = 0; b < 3; ++b) {
        const T* d = at + q + b;
        upsampled_transform(load(d), load(d + pitch), load(d + 2 * pitch), lines[b]);
      }
#pragma GCC unroll 3
      for (int a = 0; a < 3; ++a) {
        upsampled_transform(lines[0][a], lines[1][a], lines[2][a], made);
#pragma GCC unroll 3
        for (int b = 0; b < 3; ++b) store(to + q + S::upsampled_slot(a, b) * slot, made[b]);
      }
    });
  }

  // Calls transform(load, q, store) for whole vectors of sites, then for single ones.
  template <class Length, class F>
  [[gnu::always_inline]] static inline void by_vectors(Length part, F transform) {
    const int64_t whole = part / LANES * LANES;
    for (int64_t q = 0; q < whole; q += LANES)
      transform([](const T* from) { return Tile::load(from); }, q,
                [](T* to, const Vector& value) { Tile::store(to, value); });
    for (int64_t q = whole; q < part; ++q)
      transform([](const T* from) { return *from; }, q, [](T* to, T value) { *to = value; });
  }
};
