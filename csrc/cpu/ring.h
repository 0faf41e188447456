// The outermost ring of outputs of bilinear.  Bilinear is computed with replicated borders.  With zeros or reflection
// the ring differs, by a one-dimensional convolution along each of the four sides of
//
//   e = (the value of the padding) - (the nearest pixel of the upsampled image)
//
// with the three taps that reach over that side.  In terms of the nine weights of the products (slots 3a + b,
// transform.h) it is, for the bottom,
//
//   w20 e[j-1] + w21 e[j] + w22 e[j+1] = W20 e[j] + W21 (e[j] - e[j-1]) + W22 (e[j+1] - e[j])
//
// which is the transform of transform.h in one dimension; for the top and the left the sign is reversed.  The corners
// of the padding belong to the top and the bottom; on the left and the right e is zero there.
//
// Along a side, `near` is the border line of the low-resolution image and `far` the one beside it.  The upsampled image
// has the lines  u0 = up(near)  and  u1 = up((3 near + far) / 4),  so e = -u0 for zeros and u1 - u0 for reflect, where
// at the corners u1 is reflected and u0 repeated.
#pragma once

#include "moments.h"
#include "tile.h"
#include "transform.h"

struct Side {
  bool vertical;        // left or right
  bool end;             // bottom or right
  int64_t size;         // pixels of the low-resolution line
  int64_t plane;        // of a channel of the low-resolution image
  int64_t near, far;    // offsets of the lines in it
  int64_t step;         // from pixel to pixel of these lines
  int64_t output;       // offset of the line in a channel of the output
  int64_t output_step;  // from pixel to pixel of it
  int slots[3];
};

static inline bool has_ring(const Shape& s) { return s.bilinear && s.padding != Padding::replicate; }

// Rows of the low-resolution image are `pitch` apart, its channels `plane`.
static inline Side side_of(const Shape& s, int index, int64_t pitch, int64_t plane) {
  const bool vertical = index >= 2, end = index % 2 == 1;
  const int64_t size = vertical ? s.W : s.H, next = size > 1 ? 1 : 0, last = size - 1, across = vertical ? 1 : pitch;
  const int slot = end ? 2 : 1, first_slot = vertical ? slot : 3 * slot, step_of_slots = vertical ? 3 : 1;
  return {vertical,
          end,
          vertical ? s.H : s.W,
          plane,
          (end ? last : 0) * across,
          (end ? last - next : next) * across,
          vertical ? pitch : 1,
          (end ? 2 * size - 1 : 0) * (vertical ? 1 : 2 * s.W),
          vertical ? 2 * s.W : 1,
          {first_slot, first_slot + step_of_slots, first_slot + 2 * step_of_slots}};
}
static inline Side side_of(const Shape& s, int index) { return side_of(s, index, s.W, s.H * s.W); }

// The bilinear upsampling at `position` is 3/4 of pixel `main` and 1/4 of pixel `other`.
struct Upsampled {
  int64_t main, other;
  Upsampled(int64_t position, int64_t size) : main(position / 2), other(position % 2 ? main + 1 : main - 1) {
    if (other < 0) other = 0;
    if (other >= size) other = size - 1;
  }
};

// e at a position in -1 .. 2 size is u1 at `reflected` (zeros: nothing) less u0 at `repeated`.
struct Padded {
  int64_t repeated, reflected;
  Padded(int64_t position, int64_t size) : repeated(position), reflected(position) {
    if (position < 0) repeated = 0, reflected = 1;
    if (position >= 2 * size) repeated = 2 * size - 1, reflected = 2 * size - 2;
  }
};

// Returns e at a corner of the padding.
template <class T>
static inline T corner_value(const T* channel, const Shape& s, const Side& side, int64_t position) {
  const T three = static_cast<T>(0.75), one = static_cast<T>(0.25);
  const Padded at(position, side.size);
  const Upsampled u0(at.repeated, side.size);
  const T *near = channel + side.near, *far = channel + side.far;
  const int64_t main = u0.main * side.step, other = u0.other * side.step;
  if (s.padding == Padding::zeros) return -(three * near[main] + one * near[other]);
  const Upsampled u1(at.reflected, side.size);
  const T u1_main = three * near[u1.main * side.step] + one * far[u1.main * side.step];
  const T u1_other = three * near[u1.other * side.step] + one * far[u1.other * side.step];
  return (three * u1_main + one * u1_other) - (three * near[main] + one * near[other]);
}

// Inside the image e is the upsampling of a low-resolution line v.  Returns v: -near for zeros, (far - near) / 4 for
// reflect.
template <class T>
static inline T line_value(const T* channel, const Shape& s, const Side& side, int64_t at) {
  const T near = channel[side.near + at * side.step];
  return s.padding == Padding::zeros ? -near : static_cast<T>(0.25) * (channel[side.far + at * side.step] - near);
}

// Computes e with its sign at the positions first - 1 .. first + NR of one channel; `first` is even.  Outside of the
// image e is zero, except at the corners, which belong to the top and the bottom.
template <int NR, class T>
static inline void ring_line(const T* channel, const Shape& s, const Side& side, int64_t first, T* e) {
  const T sign = side.end ? 1 : -1, quarter = sign * static_cast<T>(0.25);
  const int64_t size = 2 * side.size, origin = first / 2 - 2;  // v[0] is pixel `origin`
  T v[NR / 2 + 4];
  for (int64_t q = 0; q < NR / 2 + 4; ++q) {
    const int64_t at = origin + q;
    v[q] = line_value(channel, s, side, at < 0 ? 0 : at < side.size ? at : side.size - 1);
  }
  // up[0] is position first - 2.  Twice a number and a quarter of it are exact, so the bits do not depend on whether
  // the compiler contracts to multiply-adds, which it decides separately for vectors and for the remaining elements.
  T up[NR + 4];
  for (int64_t q = 1; q < NR / 2 + 3; ++q) {
    up[2 * q - 2] = quarter * ((v[q] + v[q - 1]) + 2 * v[q]);
    up[2 * q - 1] = quarter * ((v[q] + v[q + 1]) + 2 * v[q]);
  }
  for (int64_t t = 0; t < NR + 2; ++t) {
    const int64_t position = first - 1 + t;
    e[t] = position >= 0 && position < size ? up[t + 1] : 0;
  }
  for (int64_t position : {int64_t(-1), size})
    if (!side.vertical && position >= first - 1 && position <= first + NR)
      e[position - (first - 1)] = sign * corner_value(channel, s, side, position);
}

// Makes the three fields of e at the positions first .. last, at most NR, of all channels: [3][C][NR], zero from `last`
// on.
template <int NR, class T>
static void ring_fields(const T* image, const Shape& s, const Side& side, int64_t first, int64_t last, T* out) {
  const int64_t slot = s.C * NR, length = last - first;
  for (int64_t c = 0; c < s.C; ++c) {
    T e[NR + 2];
    ring_line<NR>(image + c * side.plane, s, side, first, e);
    T* o = out + c * NR;
    for (int64_t t = 0; t < NR; ++t) {
      const bool in = t < length;
      o[t] = in ? e[t + 1] : 0;
      o[t + slot] = in ? e[t + 1] - e[t] : 0;
      o[t + 2 * slot] = in ? e[t + 2] - e[t + 1] : 0;
    }
  }
}

// out[row][NR] = sum over the three slots of weight[slot][row][depth] * fields[slot][depth][NR]
template <class Tile, class T = typename Tile::T>
static void ring_products(const T* weight, const Side& side, int64_t rows, int64_t depth, T* fields, T* out) {
  for (int a = 0; a < 3; ++a) {
    Tile::pair_panel(fields + a * depth * Tile::NR, Tile::NR, depth, Tile::NR);
    for (int64_t t = 0; t < Tile::tiles(rows); ++t) {
      const int64_t row = Tile::tile_begin(rows, t), end = Tile::tile_begin(rows, t + 1);
      Tile::upto(static_cast<int>(end - row), depth, weight + (side.slots[a] * rows + row) * depth, depth,
                 fields + a * depth * Tile::NR, out + row * Tile::NR, Tile::NR, a > 0);
    }
  }
}

// Adds the ring's part to the positions first .. last of one side of an output image (K, 2H, 2W), and corrects its
// moments.
template <class Tile, class O, class T = typename Tile::T>
static void ring_forward(const T* image, const Shape& s, const T* packed, const Side& side, int64_t first, int64_t last,
                         O* output, T* scratch, const MomentSums<Tile>& moments = {}) {
  constexpr int NR = Tile::NR;
  T *fields = scratch, *sums = scratch + 3 * s.C * NR;
  for (int64_t begin = first; begin < last; begin += NR) {
    const int64_t end = begin + NR < last ? begin + NR : last;
    ring_fields<NR>(image, s, side, begin, end, fields);
    ring_products<Tile>(packed, side, s.K, s.C, fields, sums);
    for (int64_t k = 0; k < s.K; ++k) {
      O* to = output + k * 4 * s.H * s.W + side.output;
      for (int64_t t = begin; t < end; ++t) {
        const T was = value_of(to[t * side.output_step]), is = was + sums[k * NR + (t - begin)];
        to[t * side.output_step] = stored<O>(is);
        if (moments.lanes != nullptr) moments.replace(k, was, is);
      }
    }
  }
}

// The gradients of the outputs at the positions first - 1 .. first + NR of a side, of channel k, with the sign of the
// side; zero outside of the image.  gradient(k, position) returns one.
template <int NR, class T, class Gradient>
static inline void ring_gradient_line(const Side& side, int64_t first, int64_t k, Gradient gradient, T* g) {
  const T sign = side.end ? 1 : -1;
  for (int64_t t = 0; t < NR + 2; ++t) {
    const int64_t position = first - 1 + t;
    g[t] = position >= 0 && position < 2 * side.size ? sign * gradient(k, position) : 0;
  }
}

// Passes the gradient of an input that comes through e, from the positions first .. last of a side, to
// add(c, line, at, value): channel, the border line (0) or the one beside it (1), pixel of the line.
template <class Tile, class Gradient, class Add, class T = typename Tile::T>
static void ring_data_gradient(const Shape& s, const T* packed, const Side& side, int64_t first, int64_t last,
                               Gradient gradient, T* scratch, Add add) {
  constexpr int NR = Tile::NR;
  const T three = static_cast<T>(0.75), one = static_cast<T>(0.25);
  const bool zeros = s.padding == Padding::zeros;
  const int64_t size = 2 * side.size, slot = s.K * NR;
  const auto corner = [&](int64_t c, int64_t position, T value) {
    const Padded at(position, side.size);
    const Upsampled u0(at.repeated, side.size), u1(at.reflected, side.size);
    add(c, 0, u0.main, -three * value);
    add(c, 0, u0.other, -one * value);
    if (zeros) return;
    add(c, 0, u1.main, three * three * value);
    add(c, 0, u1.other, three * one * value);
    add(c, 1, u1.main, one * three * value);
    add(c, 1, u1.other, one * one * value);
  };
  T *fields = scratch, *sums = scratch + 3 * slot;
  for (int64_t begin = first; begin < last; begin += NR) {
    const int64_t end = begin + NR < last ? begin + NR : last;
    for (int64_t k = 0; k < s.K; ++k) {
      T g[NR + 2];
      ring_gradient_line<NR>(side, begin, k, gradient, g);
      T* o = fields + k * NR;
      for (int64_t t = 0; t < NR; ++t) {
        o[t] = g[t + 1];
        o[t + slot] = g[t + 1] - g[t + 2];
        o[t + 2 * slot] = g[t] - g[t + 1];
      }
    }
    ring_products<Tile>(packed, side, s.C, s.K, fields, sums);
    for (int64_t c = 0; c < s.C; ++c) {
      const int64_t origin = (begin + 1) / 2 - 2;
      T v[NR / 2 + 4] = {};  // the gradient of the line whose upsampling is e
      for (int64_t t = begin; t < end; ++t) {
        const T value = sums[c * NR + (t - begin)];
        if (t < 0 || t >= size) {
          corner(c, t, value);
          continue;
        }
        const Upsampled u(t, side.size);
        v[u.main - origin] += three * value;
        v[u.other - origin] += one * value;
      }
      for (int64_t q = 0; q < NR / 2 + 4; ++q) {
        const int64_t at = origin + q;
        if (at < 0 || at >= side.size) continue;
        add(c, 0, at, zeros ? -v[q] : -one * v[q]);
        if (!zeros) add(c, 1, at, one * v[q]);
      }
    }
  }
}
