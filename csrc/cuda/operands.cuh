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

  // Some neighbouring channels, with what is done to them.
  template <int width>
  struct Channels {
    const Pixels& of;
    int first;
    Some<Sum, width> scale, shift, scale2, shift2;

    DIP_FAST_D Some<Sum, width> at(int64_t pixel) const {
      auto x = load<width>(of.image.data + pixel * of.image.channels + first);
      if (of.reading.scale != nullptr) {
#pragma unroll
        for (int i = 0; i < width; ++i) {
          const Sum u = x.at[i] * scale.at[i] + shift.at[i];
          x.at[i] = u > 0 ? u : of.reading.slope * u;
        }
      }
      if (of.reading.scale2 != nullptr) {
#pragma unroll
        for (int i = 0; i < width; ++i) x.at[i] = x.at[i] * scale2.at[i] + shift2.at[i];
      }
      return x;
    }
  };

  template <int width>
  DIP_FAST_D Channels<width> channels(int first) const {
    Channels<width> result{*this, first, {}, {}, {}, {}};
    if (reading.scale != nullptr)
      result.scale = load<width>(reading.scale + first), result.shift = load<width>(reading.shift + first);
    if (reading.scale2 != nullptr)
      result.scale2 = load<width>(reading.scale2 + first), result.shift2 = load<width>(reading.shift2 + first);
    return result;
  }
};

// Of an image upsampled by two, bilinearly.
template <class Sum, class Channels>
DIP_FAST_D auto upsampled(const Channels& of, int row, int column, int height, int width) {
  const int other_row = padded((row >> 1) + (row & 1 ? 1 : -1), height, Padding::replicate),
            other_column = padded((column >> 1) + (column & 1 ? 1 : -1), width, Padding::replicate);
  const int64_t near = int64_t(row >> 1) * width, far = int64_t(other_row) * width;
  auto a = of.at(near + (column >> 1));
  const auto b = of.at(near + other_column), c = of.at(far + (column >> 1)), d = of.at(far + other_column);
#pragma unroll
  for (int i = 0; i < int(sizeof(a.at) / sizeof(Sum)); ++i)
    a.at[i] = Sum(0.75) * (Sum(0.75) * a.at[i] + Sum(0.25) * b.at[i]) +
              Sum(0.25) * (Sum(0.75) * c.at[i] + Sum(0.25) * d.at[i]);
  return a;
}

// i / by where that is 0, 1 or 2.
DIP_FAST_HD int third(int i, int by) { return int(i >= by) + int(i >= 2 * by); }

// An operand's `from<width>(depth, phase)` is what all sites of a phase share in reading `width` numbers of a row from
// `depth` on; its `at(row, column)` reads them.  Here four of them, one by one where channels do not come in fours.
template <class Sum, class Reader, int width>
struct Four {
  Reader readers[4 / width];

  DIP_FAST_D Some<Sum, 4> at(int row, int column) const {
    if constexpr (width == 4) {
      return readers[0].at(row, column);
    } else {
      Some<Sum, 4> result;
#pragma unroll
      for (int i = 0; i < 4; ++i) result.at[i] = readers[i].at(row, column).at[0];
      return result;
    }
  }
};
template <int width, class Operand>
DIP_FAST_D auto four_from(const Operand& operand, int depth, int phase) {
  using Reader = decltype(operand.template from<width>(depth, phase));
  if constexpr (width == 4)
    return Four<typename Operand::Sum, Reader, 4>{{operand.template from<4>(depth, phase)}};
  else
    return Four<typename Operand::Sum, Reader, 1>{
        {operand.template from<1>(depth, phase), operand.template from<1>(depth + 1, phase),
         operand.template from<1>(depth + 2, phase), operand.template from<1>(depth + 3, phase)}};
}

inline bool in_fours(int channels) { return channels % 4 == 0; }

// The pixels that output (row, column) of a convolution reads.
//
// Folded: of the image upsampled to the nearest, an output reads 2 x 2 different pixels, row (row >> 1) - 1 + (row & 1)
// first, and a tap is the sum of those that meet there.  Bilinear: 3 x 3 of the upsampled image.
enum class Form { window, folded, bilinear };

template <class K, Form form>
struct Patch {
  using Sum = typename K::Sum;
  Pixels<K> image;
  int taps = 1, stride = 1;  // taps: of a side
  Padding padding = Padding::zeros;

  DIP_FAST_HD int depth() const { return taps * taps * image.image.channels; }
  DIP_FAST_HD int channels() const { return image.image.channels; }
  bool quads() const { return in_fours(channels()); }

  template <int width>
  struct Reader {
    const Patch& patch;
    bool there;
    int down, across;
    typename Pixels<K>::template Channels<width> channels;

    DIP_FAST_D Some<Sum, width> at(int row, int column) const {
      if (!there) return {};
      const int height = patch.image.image.height, columns = patch.image.image.width;
      int r, c;
      if constexpr (form == Form::window) {
        r = padded(row * patch.stride + down - patch.taps / 2, height, patch.padding);
        c = padded(column * patch.stride + across - patch.taps / 2, columns, patch.padding);
      } else if constexpr (form == Form::folded) {
        const Padding padding = patch.padding == Padding::zeros ? Padding::zeros : Padding::replicate;
        r = padded((row >> 1) - 1 + (row & 1) + down, height, padding);
        c = padded((column >> 1) - 1 + (column & 1) + across, columns, padding);
      } else {
        r = padded(row + down - 1, 2 * height, patch.padding);
        c = padded(column + across - 1, 2 * columns, patch.padding);
      }
      if (r < 0 || c < 0) return {};
      if constexpr (form == Form::bilinear) return upsampled<Sum>(channels, r, c, height, columns);
      return channels.at(int64_t(r) * columns + c);
    }
  };

  template <int width>
  DIP_FAST_D Reader<width> from(int depth, int) const {
    const int tap = depth / (channels() > 0 ? channels() : 1), down = third(tap, taps);  // no image has no taps
    const bool there = tap < taps * taps;
    return {*this, there, down, tap - down * taps,
            image.template channels<width>(there ? depth - tap * channels() : 0)};
  }
};

// The image upsampled to the nearest, then the thin one beside it, from `begin` of the depth on.
template <class K>
struct Joined {
  using Sum = typename K::Sum;
  Patch<K, Form::folded> deep;
  Patch<K, Form::window> thin;
  int begin;

  template <int width>
  struct Reader {
    bool of_deep;
    typename Patch<K, Form::folded>::template Reader<width> deep;
    typename Patch<K, Form::window>::template Reader<width> thin;

    DIP_FAST_D Some<Sum, width> at(int row, int column) const {
      return of_deep ? deep.at(row, column) : thin.at(row, column);
    }
  };

  template <int width>
  DIP_FAST_D Reader<width> from(int depth, int phase) const {
    // Both, as choosing one of two references would put the operand into local memory.
    const bool of_deep = depth < begin;
    return {of_deep, deep.template from<width>(of_deep ? depth : 0, phase),
            thin.template from<width>(of_deep ? 0 : depth - begin, phase)};
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

  struct Reader {
    const Nine& all;
    bool there;
    int down, across;
    typename Pixels<K>::template Channels<4> channels;

    DIP_FAST_D Some<Sum, 4> at(int row, int column) const {
      if (!there) return {};
      const auto& image = all.deep.image;
      const Padding padding = all.padding == Padding::zeros ? Padding::zeros : Padding::replicate;
      const int other_row = padded(row + down, image.height, padding),
                other_column = padded(column + across, image.width, padding);
      Some<Sum, 4> result;
      const auto add = [&](int r, int c, Sum sign) {
        if (r < 0 || c < 0) return;
        const auto x = channels.at(int64_t(r) * image.width + c);
#pragma unroll
        for (int i = 0; i < 4; ++i) result.at[i] += sign * x.at[i];
      };
      add(other_row, other_column, 1);
      if (across != 0) add(other_row, column, -1);
      if (down == 0) return result;
      add(row, other_column, -1);
      if (across != 0) add(row, column, 1);
      return result;
    }
  };

  DIP_FAST_D Reader from(int product, int depth) const {
    const bool there = depth < deep.image.channels;
    const int down = third(product, 3);
    return {*this, there, down - 1, product - 3 * down - 1, deep.template channels<4>(there ? depth : 0)};
  }
};

// The outputs at the border of the image, each side a row of sites.
template <class K>
struct Bordering {
  using Sum = typename K::Sum;
  Patch<K, Form::bilinear> patch;

  template <int width>
  struct Reader {
    typename Patch<K, Form::bilinear>::template Reader<width> own;

    DIP_FAST_D Some<Sum, width> at(int side, int at) const {
      const int height = 2 * own.patch.image.image.height, columns = 2 * own.patch.image.image.width;
      const Place place = at_border(side, at, height, columns);
      if (place.row >= height || place.column >= columns) return {};
      return own.at(place.row, place.column);
    }
  };

  template <int width>
  DIP_FAST_D Reader<width> from(int depth, int phase) const {
    return {patch.template from<width>(depth, phase)};
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
  struct Channels {
    const Arriving& of;
    int first;
    Some<Sum, width> constant, factor;

    DIP_FAST_D Some<Sum, width> at(int64_t pixel) const {
      const int64_t place = pixel * of.grad.channels + first;
      auto g = load<width>(of.grad.data + place);
      if (of.output == nullptr) return g;
      const auto y = load<width>(of.output + place);
#pragma unroll
      for (int i = 0; i < width; ++i) g.at[i] += constant.at[i] + factor.at[i] * y.at[i];
      return g;
    }
  };

  template <int width>
  DIP_FAST_D Channels<width> channels(int first) const {
    Channels<width> result{*this, first, {}, {}};
    if (output != nullptr) result.constant = load<width>(constant + first), result.factor = load<width>(factor + first);
    return result;
  }
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

  bool quads() const { return in_fours(arriving.grad.channels); }

  template <int count>
  struct Reader {
    const Readers2d& all;
    bool there;
    int down, across;
    typename Arriving<K>::template Channels<count> channels;

    DIP_FAST_D Some<Sum, count> at(int row, int column) const {
      if (!there) return {};
      const auto& grad = all.arriving.grad;
      const Readers r = readers(row, down, all.height, grad.height, all.stride, all.taps / 2, all.padding),
                    c = readers(column, across, all.width, grad.width, all.stride, all.taps / 2, all.padding);
      Some<Sum, count> result;
      if (r.first >= 0 && c.first >= 0) result = channels.at(int64_t(r.first) * grad.width + c.first);
      if (r.second < 0 && c.second < 0) return result;
#pragma unroll 1
      for (int e = 1; e < 4; ++e) {  // at borders alone
        const int i = e / 2 ? r.second : r.first, j = e % 2 ? c.second : c.first;
        if (i < 0 || j < 0) continue;
        const auto g = channels.at(int64_t(i) * grad.width + j);
#pragma unroll
        for (int n = 0; n < count; ++n) result.at[n] += g.at[n];
      }
      return result;
    }
  };

  template <int count>
  DIP_FAST_D Reader<count> from(int depth, int phase) const {
    const Digits rows = phase < stride ? row_taps[0] : row_taps[1],
                 columns = phase % stride == 0 ? column_taps[0] : column_taps[1];
    const int tap = depth / arriving.grad.channels, down = third(tap, int(columns.count));
    const bool there = tap < int(rows.count * columns.count);
    return {*this, there, rows.at(there ? down : 0), columns.at(there ? tap - down * int(columns.count) : 0),
            arriving.template channels<count>(there ? depth - tap * arriving.grad.channels : 0)};
  }
};

}  // namespace dip_fast::cuda
