// Operands: how the left matrix of an implicit matrix product is read from images.
//
// The left matrix has a row for each site (an output pixel) and a column for each (tap, channel); the channels of a tap
// are contiguous.  It never exists in memory: an operand computes its numbers when a tile is loaded.
//
//   operand.reader<width>(depth, phase)  what all sites of a phase share: the tap and the scales of the channels behind
//                                        `width` numbers of a row, from column `depth` of the matrix on
//   reader.at(row, column)               these numbers for one site
//
// width is 4 where the channels are a multiple of 4, so that loads are vector loads, else 1.
#pragma once

#include "images.cuh"

namespace dip_fast::cuda {

// i / divisor for quotients 0, 1 and 2, without a division.
DIP_FAST_HD int quotient_below_3(int i, int divisor) { return int(i >= divisor) + int(i >= 2 * divisor); }

// Four consecutive numbers of a row.  width: 4, or 1 where the channels are no multiple of 4 and the four may belong to
// different taps.
template <class Sum, class Reader, int width>
struct Vec4Reader {
  Reader readers[4 / width];

  DIP_FAST_D Vec<Sum, 4> at(int row, int column) const {
    if constexpr (width == 4) {
      return readers[0].at(row, column);
    } else {
      Vec<Sum, 4> result;
#pragma unroll
      for (int i = 0; i < 4; ++i) result.at[i] = readers[i].at(row, column).at[0];
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
    bool valid;  // false: zeros fill the depth to a whole step
    int tap_row, tap_column;
    typename NormActImage<K>::template Channels<width> channels;

    DIP_FAST_D Vec<Sum, width> at(int row, int column) const {
      if (!valid) return {};
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
      if (r < 0 || c < 0) return {};
      if constexpr (sampling == Sampling::bilinear) return upsampled<Sum>(channels, r, c, height, columns);
      return channels.at(int64_t(r) * columns + c);
    }
  };

  template <int width>
  DIP_FAST_D Reader<width> reader(int depth, int) const {
    const int tap = depth / (channels() > 0 ? channels() : 1),  // a patch without channels has taps = 0
        tap_row = quotient_below_3(tap, taps);
    const bool valid = tap < taps * taps;
    return {*this, valid, tap_row, tap - tap_row * taps,
            source.template channels<width>(valid ? depth - tap * channels() : 0)};
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

    DIP_FAST_D Vec<Sum, width> at(int row, int column) const {
      return is_deep ? deep.at(row, column) : skip.at(row, column);
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
    typename NormActImage<K>::template Channels<4> channels;

    DIP_FAST_D Vec<Sum, 4> at(int row, int column) const {
      if (!valid) return {};
      const auto& image = patch.deep.image;
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
    return {*this, valid, down - 1, product - 3 * down - 1, deep.template channels<4>(valid ? depth : 0)};
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

    DIP_FAST_D Vec<Sum, width> at(int side, int at) const {
      const int height = 2 * reader.patch.source.image.height, columns = 2 * reader.patch.source.image.width;
      const Position position = border_position(side, at, height, columns);
      if (position.row >= height || position.column >= columns) return {};  // shorter sides have sites to spare
      return reader.at(position.row, position.column);
    }
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
    int tap_row, tap_column;
    typename OutputGrad<K>::template Channels<count> channels;

    DIP_FAST_D Vec<Sum, count> at(int row, int column) const {
      if (!valid) return {};
      const auto& grad = patch.output_grad.grad;
      const OutputPair r = outputs_reading(row, tap_row, patch.height, grad.height, patch.stride, patch.taps / 2,
                                           patch.padding),
                       c = outputs_reading(column, tap_column, patch.width, grad.width, patch.stride, patch.taps / 2,
                                           patch.padding);
      Vec<Sum, count> result;
      if (r.first >= 0 && c.first >= 0) result = channels.at(int64_t(r.first) * grad.width + c.first);
      if (r.second < 0 && c.second < 0) return result;
#pragma unroll 1
      for (int e = 1; e < 4; ++e) {  // reached only next to borders
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
    const int tap = depth / output_grad.grad.channels, down = quotient_below_3(tap, int(columns.count));
    const bool valid = tap < int(rows.count * columns.count);
    return {*this, valid, rows.at(valid ? down : 0), columns.at(valid ? tap - down * int(columns.count) : 0),
            output_grad.template channels<count>(valid ? depth - tap * output_grad.grad.channels : 0)};
  }
};

}  // namespace dip_fast::cuda
