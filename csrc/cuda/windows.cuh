// Runs of pixels along a line: the moment of their values, and bilinear upsampling, forward and back.
#pragma once

#include "index.cuh"
#include "kernels.cuh"

namespace dip_fast::cuda {

// Values are counted by their difference from the first: where they are far from zero, it is small and exact.
template <class Sum>
struct RunningMoment {
  Sum count = 0, first = 0, total = 0, squares = 0;

  // The values that are given together are summed first: a long chain of additions rounds more than a short one.
  template <int values>
  DIP_FAST_D void add(const Sum (&given)[values]) {
    if (count == 0) first = given[0];
    Sum sum = 0, square = 0;
#pragma unroll
    for (int i = 0; i < values; ++i) {
      const Sum difference = given[i] - first;
      sum += difference;
      square += difference * difference;
    }
    count += values;
    total += sum;
    squares += square;
  }
  DIP_FAST_D Moment<Sum> result() const {
    const Sum mean = count > 0 ? total / count : Sum(0);
    return {count, first, mean, squares - total * mean};
  }
};

// The 3 x 3 pixels around one, border pixels repeated, as a run of pixels goes along a line: a step to the right reads
// one more column.
template <class Sum>
struct Window {
  Sum at[3][3];  // [column][row]
  int row = -1, column = -1;

  template <class Read>
  DIP_FAST_D void move_to(int64_t pixel, int height, int width, const Read& read) {
    const int r = int(pixel) / width, c = int(pixel) % width;
    const bool goes_on = r == row && c == column + 1;
    row = r, column = c;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (goes_on)
        copy(i);
      else
        load(i, height, width, read);
    load(2, height, width, read);
  }

 private:
  DIP_FAST_D void copy(int i) {
#pragma unroll
    for (int down = 0; down < 3; ++down) at[i][down] = at[i + 1][down];
  }
  template <class Read>
  DIP_FAST_D void load(int i, int height, int width, const Read& read) {
    const int c = padded_index(column + i - 1, width, Padding::replicate);
#pragma unroll
    for (int down = 0; down < 3; ++down)
      at[i][down] = read(int64_t(padded_index(row + down - 1, height, Padding::replicate)) * width + c);
  }
};

// The four pixels into which bilinear upsampling turns the middle one.
template <class Sum>
DIP_FAST_D void upsample(const Window<Sum>& window, Sum (&to)[4]) {
#pragma unroll
  for (int down = 0; down < 2; ++down) {
    Sum lines[3];
#pragma unroll
    for (int i = 0; i < 3; ++i) lines[i] = Sum(0.75) * window.at[i][1] + Sum(0.25) * window.at[i][2 * down];
    to[2 * down] = Sum(0.75) * lines[1] + Sum(0.25) * lines[0];
    to[2 * down + 1] = Sum(0.75) * lines[1] + Sum(0.25) * lines[2];
  }
}

// A(U - m) at the middle of a window of a, of bilinear upsampling.
template <class Sum>
DIP_FAST_D Sum adjoint_of_upsampled(const Window<Sum>& window, Sum mean) {
  Sum columns[3];
#pragma unroll
  for (int i = 0; i < 3; ++i)
    columns[i] =
        Sum(1.25) * (window.at[i][1] - mean) + Sum(0.375) * ((window.at[i][0] - mean) + (window.at[i][2] - mean));
  return Sum(1.25) * columns[1] + Sum(0.375) * (columns[0] + columns[2]);
}

}  // namespace dip_fast::cuda
