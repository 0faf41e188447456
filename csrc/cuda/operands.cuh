// Where the left factor of a product comes from: rows are sites, and the depth goes over taps and channels, channels
// first.  Each operand gives `width` neighbouring numbers of a row, four where channels come in fours.
#pragma once

#include "index.cuh"

namespace dip_fast::cuda {

template <class Sum, int width>
struct Some {
  Sum at[width] = {};
};

template <int width, class Stored>
DIP_FAST_D auto load(const Stored* from) {
  Some<decltype(widened(Stored{})), width> result;
  if constexpr (width == 4) {
    const auto values = *reinterpret_cast<const Quad<Stored>*>(from);
#pragma unroll
    for (int i = 0; i < 4; ++i) result.at[i] = widened(values.at[i]);
  } else {
    result.at[0] = widened(*from);
  }
  return result;
}

template <int width, class Stored, class Sum>
DIP_FAST_D void store(Stored* to, const Some<Sum, width>& values) {
  if constexpr (width == 4) {
    Quad<Stored> quad;
#pragma unroll
    for (int i = 0; i < 4; ++i) quad.at[i] = narrowed<Stored>(values.at[i]);
    *reinterpret_cast<Quad<Stored>*>(to) = quad;
  } else {
    *to = narrowed<Stored>(values.at[0]);
  }
}

// What is done to an image where it is read: scale x + shift and LeakyReLU, then another affine map.  Null: nothing.
template <class Sum>
struct Reading {
  const Sum *scale = nullptr, *shift = nullptr;
  Sum slope = 1;
  const Sum *scale2 = nullptr, *shift2 = nullptr;
};

template <class K>
struct Pixels {
  using Sum = typename K::Sum;
  Image<typename K::Stored> image;
  Reading<Sum> reading;

  template <int width>
  DIP_FAST_D Some<Sum, width> read(int64_t pixel, int channel) const {
    auto x = load<width>(image.data + pixel * image.channels + channel);
    if (reading.scale != nullptr) {
      const auto scale = load<width>(reading.scale + channel), shift = load<width>(reading.shift + channel);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const Sum u = x.at[i] * scale.at[i] + shift.at[i];
        x.at[i] = u > 0 ? u : reading.slope * u;
      }
    }
    if (reading.scale2 != nullptr) {
      const auto scale = load<width>(reading.scale2 + channel), shift = load<width>(reading.shift2 + channel);
#pragma unroll
      for (int i = 0; i < width; ++i) x.at[i] = x.at[i] * scale.at[i] + shift.at[i];
    }
    return x;
  }

  // Of the image upsampled by two, bilinearly.
  template <int width>
  DIP_FAST_D Some<Sum, width> upsampled(int row, int column, int channel) const {
    const int other_row = padded((row >> 1) + (row & 1 ? 1 : -1), image.height, Padding::replicate),
              other_column = padded((column >> 1) + (column & 1 ? 1 : -1), image.width, Padding::replicate);
    const int64_t near = int64_t(row >> 1) * image.width, far = int64_t(other_row) * image.width;
    const auto a = read<width>(near + (column >> 1), channel), b = read<width>(near + other_column, channel),
               c = read<width>(far + (column >> 1), channel), d = read<width>(far + other_column, channel);
    Some<Sum, width> x;
#pragma unroll
    for (int i = 0; i < width; ++i)
      x.at[i] = Sum(0.75) * (Sum(0.75) * a.at[i] + Sum(0.25) * b.at[i]) +
                Sum(0.25) * (Sum(0.75) * c.at[i] + Sum(0.25) * d.at[i]);
    return x;
  }
};

// Four numbers of a row from `depth` on, where a tap has so many channels.
template <class Sum, class Value>
DIP_FAST_D Some<Sum, 4> four(int depth, int channels, const Value& value) {
  if (channels % 4 == 0) {
    const int tap = depth / channels;
    return value.template at<4>(tap, depth - tap * channels);
  }
  Some<Sum, 4> result;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int tap = (depth + i) / channels;
    result.at[i] = value.template at<1>(tap, depth + i - tap * channels).at[0];
  }
  return result;
}

// The pixels that output (row, column) of a convolution reads.
//
// Folded: of the image upsampled to the nearest, an output reads 2 x 2 different pixels, row (row >> 1) - 1 + (row & 1)
// first, and a tap is the sum of those that meet there.  Bilinear: 3 x 3 of the upsampled image.
enum class Form { window, folded, bilinear };

template <class K, Form form>
struct Patch {
  using Sum = typename K::Sum;
  Pixels<K> from;
  int taps = 1, stride = 1;  // taps: of a side
  Padding padding = Padding::zeros;

  DIP_FAST_HD int depth() const { return taps * taps * from.image.channels; }
  DIP_FAST_HD int channels() const { return from.image.channels; }

  struct Site {
    const Patch& patch;
    int row, column;

    template <int width>
    DIP_FAST_D Some<Sum, width> at(int tap, int channel) const {
      const auto& image = patch.from.image;
      if (tap >= patch.taps * patch.taps) return {};
      const int down = tap / patch.taps, across = tap % patch.taps;
      int r, c;
      if constexpr (form == Form::window) {
        r = padded(row * patch.stride + down - patch.taps / 2, image.height, patch.padding);
        c = padded(column * patch.stride + across - patch.taps / 2, image.width, patch.padding);
      } else if constexpr (form == Form::folded) {
        const Padding padding = patch.padding == Padding::zeros ? Padding::zeros : Padding::replicate;
        r = padded((row >> 1) - 1 + (row & 1) + down, image.height, padding);
        c = padded((column >> 1) - 1 + (column & 1) + across, image.width, padding);
      } else {
        r = padded(row + down - 1, 2 * image.height, patch.padding);
        c = padded(column + across - 1, 2 * image.width, patch.padding);
      }
      if (r < 0 || c < 0) return {};
      if constexpr (form == Form::bilinear) return patch.from.template upsampled<width>(r, c, channel);
      return patch.from.template read<width>(int64_t(r) * image.width + c, channel);
    }
  };

  DIP_FAST_D Some<Sum, 4> four_at(int row, int column, int depth) const {
    return four<Sum>(depth, from.image.channels, Site{*this, row, column});
  }
};

// The image upsampled to the nearest, then the thin one beside it, from `begin` of the depth on.
template <class K>
struct Joined {
  Patch<K, Form::folded> deep;
  Patch<K, Form::window> thin;
  int begin;

  DIP_FAST_D Some<typename K::Sum, 4> four_at(int row, int column, int depth) const {
    return depth < begin ? deep.four_at(row, column, depth) : thin.four_at(row, column, depth - begin);
  }
};

// What the nine products of an image upsampled to the nearest read of each of its pixels x: in either direction the
// difference of the one before from x, x, and that of the one after.  Then the thin image beside it.
template <class K>
struct Nine {
  using Sum = typename K::Sum;
  Pixels<K> deep;
  Padding padding;
  Patch<K, Form::window> thin;

  struct Site {
    const Nine& all;
    int row, column, down, across;

    template <int width>
    DIP_FAST_D Some<Sum, width> pixel(int row, int column, int channel) const {
      const auto& image = all.deep.image;
      const Padding padding = all.padding == Padding::zeros ? Padding::zeros : Padding::replicate;
      const int r = padded(row, image.height, padding), c = padded(column, image.width, padding);
      if (r < 0 || c < 0) return {};
      return all.deep.template read<width>(int64_t(r) * image.width + c, channel);
    }

    template <int width>
    DIP_FAST_D Some<Sum, width> line(int row, int channel) const {
      auto result = pixel<width>(row, column + across, channel);
      if (across == 0) return result;
      const auto own = pixel<width>(row, column, channel);
#pragma unroll
      for (int i = 0; i < width; ++i) result.at[i] -= own.at[i];
      return result;
    }

    template <int width>
    DIP_FAST_D Some<Sum, width> at(int beyond, int channel) const {
      if (beyond > 0) return {};
      auto result = line<width>(row + down, channel);
      if (down == 0) return result;
      const auto own = line<width>(row, channel);
#pragma unroll
      for (int i = 0; i < width; ++i) result.at[i] -= own.at[i];
      return result;
    }
  };

  DIP_FAST_D Some<Sum, 4> four_at(int product, int row, int column, int depth) const {
    return four<Sum>(depth, deep.image.channels, Site{*this, row, column, product / 3 - 1, product % 3 - 1});
  }
};

// The outputs at the border of the image, each side a row of sites.
template <class K>
struct Bordering {
  Patch<K, Form::bilinear> patch;

  DIP_FAST_D Some<typename K::Sum, 4> four_at(int side, int at, int depth) const {
    const int height = 2 * patch.from.image.height, width = 2 * patch.from.image.width;
    const Place place = at_border(side, at, height, width);
    if (place.row >= height || place.column >= width) return {};
    return patch.four_at(place.row, place.column, depth);
  }
};

// The gradient of a raw image: grad + constant + factor output for each channel; no output: grad alone.
template <class K>
struct Arriving {
  using Sum = typename K::Sum;
  Image<typename K::Stored> grad;
  const typename K::Stored* output = nullptr;
  const Sum *constant = nullptr, *factor = nullptr;

  template <int width>
  DIP_FAST_D Some<Sum, width> read(int64_t pixel, int channel) const {
    auto g = load<width>(grad.data + pixel * grad.channels + channel);
    if (output == nullptr) return g;
    const auto y = load<width>(output + pixel * grad.channels + channel);
    const auto add = load<width>(constant + channel), times = load<width>(factor + channel);
#pragma unroll
    for (int i = 0; i < width; ++i) g.at[i] += add.at[i] + times.at[i] * y.at[i];
    return g;
  }

  struct Site {
    const Arriving& arriving;
    int64_t pixel;
    template <int width>
    DIP_FAST_D Some<Sum, width> at(int, int channel) const {
      return arriving.template read<width>(pixel, channel);
    }
  };
};

// The outputs that read pixel (row, column) of a convolution's input, through the taps that any pixel of its phase,
// (row, column) modulo the stride, is read through.
template <class K>
struct Readers2d {
  using Sum = typename K::Sum;
  Arriving<K> arriving;
  int height, width;  // of the input
  int taps, stride;
  Padding padding;
  Digits row_taps[2], column_taps[2];  // of each phase

  DIP_FAST_HD int tap_count(int phase) const {
    return int(row_taps[phase / stride].count * column_taps[phase % stride].count);
  }

  struct Site {
    const Readers2d& all;
    int row, column;

    template <int count>
    DIP_FAST_D Some<Sum, count> at(int tap, int channel) const {
      const Digits down = row % all.stride == 0 ? all.row_taps[0] : all.row_taps[1],
                   across = column % all.stride == 0 ? all.column_taps[0] : all.column_taps[1];
      Some<Sum, count> result;
      if (tap >= int(down.count * across.count)) return result;
      const auto& grad = all.arriving.grad;
      const Readers r = readers(row, down.at(tap / across.count), all.height, grad.height, all.stride, all.taps / 2,
                                all.padding),
                    c = readers(column, across.at(tap % across.count), all.width, grad.width, all.stride, all.taps / 2,
                                all.padding);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = e / 2 ? r.second : r.first, j = e % 2 ? c.second : c.first;
        if (i < 0 || j < 0) continue;
        const auto g = all.arriving.template read<count>(int64_t(i) * grad.width + j, channel);
#pragma unroll
        for (int n = 0; n < count; ++n) result.at[n] += g.at[n];
      }
      return result;
    }
  };

  DIP_FAST_D Some<Sum, 4> four_at(int row, int column, int depth) const {
    return four<Sum>(depth, arriving.grad.channels, Site{*this, row, column});
  }
};

}  // namespace dip_fast::cuda
