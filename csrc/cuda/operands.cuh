// Operands: how the left matrix of an implicit matrix product is read from images.
//
// The left matrix has a row for each site (an output pixel) and a column for each (tap, channel); the channels of a tap
// are contiguous.  It never exists in memory: an operand computes its numbers when a tile is loaded.
//
//   operand.reader<width>(depth, phase)  what all sites of a phase share: the tap and the scales of the channels behind
//                                        `width` numbers of a row, from column `depth` of the matrix on
//   reader.tap()                         which tap; negative: there may be several
//   reader.place(row, column)            where the tap reads for one site; it stays valid while tap() stays the same
//   reader.load(place)                   loads what these numbers are computed from
//   reader.channels()                    loads the scales of their channels
//   reader.finish(raw, channels, place, row, column)   computes them: a step later, when the loads have arrived
//
// A place made without arguments is of no site: nothing is loaded, and the numbers are zeros.
//
// width is 4 where the channels are a multiple of 4, so that loads are vector loads, else 1.
#pragma once

#include "images.cuh"

namespace dip_fast::cuda {

constexpr int NO_TAP = 15;  // where zeros fill the depth to a whole step

// i / divisor for quotients 0, 1 and 2, without a division.
DIP_FAST_HD int quotient_below_3(int i, int divisor) { return int(i >= divisor) + int(i >= 2 * divisor); }

// Four consecutive numbers of a row.  width: 4, or 1 where the channels are no multiple of 4 and the four may belong to
// different taps.
template <class Sum, class Reader, int width>
struct Vec4Reader {
  Reader readers[4 / width];
  struct Place {
    typename Reader::Place parts[4 / width];
  };
  struct Raw {
    typename Reader::Raw parts[4 / width];
  };
  struct Channels {
    typename Reader::Channels parts[4 / width];
  };

  DIP_FAST_D int tap() const { return width == 4 ? readers[0].tap() : -1; }
  DIP_FAST_D Place place(int row, int column) const {
    Place place;
#pragma unroll
    for (int i = 0; i < 4 / width; ++i) place.parts[i] = readers[i].place(row, column);
    return place;
  }
  DIP_FAST_D Raw load(const Place& place) const {
    Raw raw;
#pragma unroll
    for (int i = 0; i < 4 / width; ++i) raw.parts[i] = readers[i].load(place.parts[i]);
    return raw;
  }
  DIP_FAST_D Channels channels() const {
    if constexpr (width == 4)
      return {{readers[0].channels()}};
    else
      return {{readers[0].channels(), readers[1].channels(), readers[2].channels(), readers[3].channels()}};
  }
  DIP_FAST_D Vec<Sum, 4> finish(const Raw& raw, const Channels& channels, const Place& place, int row,
                                int column) const {
    if constexpr (width == 4) {
      return readers[0].finish(raw.parts[0], channels.parts[0], place.parts[0], row, column);
    } else {
      Vec<Sum, 4> result;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        result.at[i] = readers[i].finish(raw.parts[i], channels.parts[i], place.parts[i], row, column).at[0];
      return result;
    }
  }
};
template <int width, class Operand>
DIP_FAST_D auto vec4_reader(const Operand& operand, int depth, int phase) {
  using Reader = decltype(operand.template reader<width>(depth, phase));
  if constexpr (width == 4)
    return Vec4Reader<typename Operand::Sum, Reader, 4>{{operand.template reader<4>(depth, phase)}};
  else
    return Vec4Reader<typename Operand::Sum, Reader, 1>{
        {operand.template reader<1>(depth, phase), operand.template reader<1>(depth + 1, phase),
         operand.template reader<1>(depth + 2, phase), operand.template reader<1>(depth + 3, phase)}};
}

inline bool multiple_of_4(int channels) { return channels % 4 == 0; }

// Which pixels output (row, column) of a convolution reads.
//
//   direct    those of its window in the image
//   folded    the image is upsampled by nearest neighbour.  Its 3 x 3 window then holds 2 x 2 different pixels; the
//             first is at row (row >> 1) - 1 + (row & 1), and the taps that read the same pixel are added beforehand
//   bilinear  those of its 3 x 3 window in the image upsampled by two bilinearly
enum class Sampling { direct, folded, bilinear };

// A pixel of an image; -1: none.
struct Pixel {
  int at = -1;
};

template <class K, Sampling sampling>
struct Patch {
  using Sum = typename K::Sum;
  NormActImage<K> source;
  int taps = 1, stride = 1;  // the window is taps x taps
  Padding padding = Padding::zeros;

  DIP_FAST_HD int depth() const { return taps * taps * channels(); }
  DIP_FAST_HD int channels() const { return source.image.channels; }
  bool vec4() const { return multiple_of_4(channels()); }

  template <int width>
  struct Reader {
    const Patch& patch;
    bool valid;                      // false: zeros fill the depth to a whole step
    int tap_row, tap_column, first;  // first: of the channels
    using Channels = typename NormActImage<K>::template Channels<width>;

    // The pixel that is read; with bilinear upsampling, of the upsampled image.
    using Place = Pixel;
    using Raw = std::conditional_t<sampling == Sampling::bilinear, Vec<Sum, width>, typename Channels::Raw>;

    DIP_FAST_D int tap() const { return valid ? tap_row * patch.taps + tap_column : NO_TAP; }
    DIP_FAST_D Place place(int row, int column) const {
      const int height = patch.source.image.height, columns = patch.source.image.width;
      int r, c;
      if constexpr (sampling == Sampling::direct) {
        r = padded_index(row * patch.stride + tap_row - patch.taps / 2, height, patch.padding);
        c = padded_index(column * patch.stride + tap_column - patch.taps / 2, columns, patch.padding);
      } else if constexpr (sampling == Sampling::folded) {
        const Padding padding = patch.padding == Padding::zeros ? Padding::zeros : Padding::replicate;
        r = padded_index((row >> 1) - 1 + (row & 1) + tap_row, height, padding);
        c = padded_index((column >> 1) - 1 + (column & 1) + tap_column, columns, padding);
      } else {
        r = padded_index(row + tap_row - 1, 2 * height, patch.padding);
        c = padded_index(column + tap_column - 1, 2 * columns, patch.padding);
      }
      const int pixel = r * (sampling == Sampling::bilinear ? 2 * columns : columns) + c;
      return {valid && r >= 0 && c >= 0 ? pixel : -1};
    }
    DIP_FAST_D Raw load(const Place& place) const {
      Raw raw{};
      if constexpr (sampling == Sampling::bilinear) {
        const int columns = patch.source.image.width;
        if (place.at >= 0)
          raw = upsampled<Sum>(channels(), place.at / (2 * columns), place.at % (2 * columns),
                               patch.source.image.height, columns);
      } else {
        if (place.at >= 0) raw = Channels::load(patch.source, first, place.at);
      }
      return raw;
    }
    DIP_FAST_D Channels channels() const { return patch.source.template channels<width>(first); }
    DIP_FAST_D Vec<Sum, width> finish(const Raw& raw, const Channels& channels, const Place& place, int, int) const {
      if constexpr (sampling == Sampling::bilinear)
        return raw;
      else
        return place.at >= 0 ? channels.finish(raw) : Vec<Sum, width>{};
    }
  };

  template <int width>
  DIP_FAST_D Reader<width> reader(int depth, int) const {
    const int tap = tap_of(depth, channels() > 0 ? channels() : 1),  // a patch without channels has taps = 0
        tap_row = quotient_below_3(tap, taps);
    const bool valid = tap < taps * taps;
    return {*this, valid, tap_row, tap - tap_row * taps, valid ? depth - tap * channels() : 0};
  }
};

// The deep image, upsampled by nearest neighbour, and from depth `skip_begin` on the skip image.
template <class K>
struct ConcatPatch {
  using Sum = typename K::Sum;
  Patch<K, Sampling::folded> deep;
  Patch<K, Sampling::direct> skip;
  int skip_begin;

  template <int width>
  struct Reader {
    bool is_deep;
    typename Patch<K, Sampling::folded>::template Reader<width> deep;
    typename Patch<K, Sampling::direct>::template Reader<width> skip;

    using Place = Pixel;
    using One = typename NormActImage<K>::template Channels<width>;
    struct Channels {
      One deep, skip;
    };
    using Raw = typename One::Raw;

    DIP_FAST_D int tap() const { return is_deep ? deep.tap() : NO_TAP + 1 + skip.tap(); }
    DIP_FAST_D Place place(int row, int column) const {
      return is_deep ? deep.place(row, column) : skip.place(row, column);
    }
    DIP_FAST_D Raw load(const Place& place) const { return is_deep ? deep.load(place) : skip.load(place); }
    DIP_FAST_D Channels channels() const { return {deep.channels(), skip.channels()}; }
    DIP_FAST_D Vec<Sum, width> finish(const Raw& raw, const Channels& channels, const Place& place, int, int) const {
      if (place.at < 0) return {};
      return is_deep ? channels.deep.finish(raw) : channels.skip.finish(raw);
    }
  };

  template <int width>
  DIP_FAST_D Reader<width> reader(int depth, int phase) const {
    // Both readers are made: choosing between two references would put the operand into local memory.
    const bool is_deep = depth < skip_begin;
    return {is_deep, deep.template reader<width>(is_deep ? depth : 0, phase),
            skip.template reader<width>(is_deep ? 0 : depth - skip_begin, phase)};
  }
};

// The operand of the nine products of convolve_nine.cu: for each pixel of the deep image and each direction, product
// 0 reads x[i-1] - x[i], product 1 reads x[i], and product 2 reads x[i+1] - x[i].  The skip image is read after them.
template <class K>
struct DifferencePatch {
  using Sum = typename K::Sum;
  NormActImage<K> deep;
  Padding padding;
  Patch<K, Sampling::direct> skip;

  struct Reader {
    const DifferencePatch& patch;
    bool valid;
    int row_offset, column_offset;  // -1, 0 or 1; 0: no difference in this direction
    int first;                      // of the channels

    DIP_FAST_D Vec<Sum, 4> at(int row, int column) const {
      if (!valid) return {};
      const auto& image = patch.deep.image;
      const auto channels = patch.deep.template channels<4>(first);
      const Padding padding = patch.padding == Padding::zeros ? Padding::zeros : Padding::replicate;
      const int other_row = padded_index(row + row_offset, image.height, padding),
                other_column = padded_index(column + column_offset, image.width, padding);
      Vec<Sum, 4> result;
      const auto add = [&](int r, int c, Sum sign) {
        if (r < 0 || c < 0) return;
        const auto x = channels.at(int64_t(r) * image.width + c);
#pragma unroll
        for (int i = 0; i < 4; ++i) result.at[i] += sign * x.at[i];
      };
      add(other_row, other_column, 1);
      if (column_offset != 0) add(other_row, column, -1);
      if (row_offset == 0) return result;
      add(row, other_column, -1);
      if (column_offset != 0) add(row, column, 1);
      return result;
    }
  };

  DIP_FAST_D Reader reader(int product, int depth) const {
    const bool valid = depth < deep.image.channels;
    const int down = quotient_below_3(product, 3);
    return {*this, valid, down - 1, product - 3 * down - 1, valid ? depth : 0};
  }
};

// The outputs on the border of the image: site (side, at) is an output, see `Border`.
template <class K>
struct BorderPatch {
  using Sum = typename K::Sum;
  Patch<K, Sampling::bilinear> patch;

  template <int width>
  struct Reader {
    typename Patch<K, Sampling::bilinear>::template Reader<width> reader;

    using Place = Pixel;
    struct Channels {};  // what a site loads is much, and finished at once
    using Raw = Vec<Sum, width>;

    DIP_FAST_D int tap() const { return reader.tap(); }
    DIP_FAST_D Place place(int side, int at) const {
      const int height = 2 * reader.patch.source.image.height, columns = 2 * reader.patch.source.image.width;
      const Position position = border_position(side, at, height, columns);
      if (position.row >= height || position.column >= columns) return {};  // shorter sides have sites to spare
      return reader.place(position.row, position.column);
    }
    DIP_FAST_D Raw load(const Place& place) const { return reader.load(place); }
    DIP_FAST_D Channels channels() const { return {}; }
    DIP_FAST_D Vec<Sum, width> finish(const Raw& raw, const Channels&, const Place&, int, int) const { return raw; }
  };

  template <int width>
  DIP_FAST_D Reader<width> reader(int depth, int phase) const {
    return {patch.template reader<width>(depth, phase)};
  }
};

// The operand of the transposed convolution, which gives the gradient of the input: for input pixel (row, column) and a
// tap, the sum of G over the outputs that read the pixel through the tap.  The pixels of one phase, (row, column)
// modulo the stride, are all read through the same taps; only these are part of the depth.
template <class K>
struct TransposedPatch {
  using Sum = typename K::Sum;
  OutputGrad<K> output_grad;
  int height, width;  // of the input
  int taps, stride;
  Padding padding;
  TapList row_taps[2], column_taps[2];  // of even and odd rows and columns

  bool vec4() const { return multiple_of_4(output_grad.grad.channels); }

  template <int count>
  struct Reader {
    const TransposedPatch& patch;
    bool valid;
    int tap_row, tap_column, first;  // first: of the channels
    using Channels = typename OutputGrad<K>::template Channels<count>;

    struct Place {
      int first = -1;     // the output that reads the pixel; -1: none
      bool more = false;  // others do too: only next to borders
    };
    using Raw = typename Channels::Raw;

    DIP_FAST_D int tap() const { return valid ? 3 * tap_row + tap_column : NO_TAP; }

    DIP_FAST_D OutputPair rows_reading(int row) const {
      return outputs_reading(row, tap_row, patch.height, patch.output_grad.grad.height, patch.stride, patch.taps / 2,
                             patch.padding);
    }
    DIP_FAST_D OutputPair columns_reading(int column) const {
      return outputs_reading(column, tap_column, patch.width, patch.output_grad.grad.width, patch.stride,
                             patch.taps / 2, patch.padding);
    }

    DIP_FAST_D Place place(int row, int column) const {
      const OutputPair r = rows_reading(row), c = columns_reading(column);
      Place place;
      if (!valid) return place;
      if (r.first >= 0 && c.first >= 0) place.first = r.first * patch.output_grad.grad.width + c.first;
      place.more = r.second >= 0 || c.second >= 0;
      return place;
    }
    DIP_FAST_D Raw load(const Place& place) const {
      Raw raw{};
      if (place.first >= 0) raw = Channels::load(patch.output_grad, first, place.first);
      return raw;
    }
    DIP_FAST_D Channels channels() const { return patch.output_grad.template channels<count>(first); }
    DIP_FAST_D Vec<Sum, count> finish(const Raw& raw, const Channels& channels, const Place& place, int row,
                                      int column) const {
      Vec<Sum, count> result;
      if (place.first >= 0) result = channels.finish(raw);
      if (!place.more) return result;
      const auto& grad = patch.output_grad.grad;
      const OutputPair r = rows_reading(row), c = columns_reading(column);
#pragma unroll 1
      for (int e = 1; e < 4; ++e) {
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
  DIP_FAST_D Reader<count> reader(int depth, int phase) const {
    const TapList rows = phase < stride ? row_taps[0] : row_taps[1],
                  columns = phase % stride == 0 ? column_taps[0] : column_taps[1];
    const int tap = tap_of(depth, output_grad.grad.channels), down = quotient_below_3(tap, int(columns.count));
    const bool valid = tap < int(rows.count * columns.count);
    return {*this, valid, rows.at(valid ? down : 0), columns.at(valid ? tap - down * int(columns.count) : 0),
            valid ? depth - tap * output_grad.grad.channels : 0};
  }
};

}  // namespace dip_fast::cuda
