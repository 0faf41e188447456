// The kernels that work on one channel at a time: the batch norm and the activation of a raw image, padding, and the
// adjoints of both.
#pragma once

#include "transform.h"

template <class T>
struct Channels {
  // The row (or column) of the image that row r of the padded copy repeats; -1 if that row is zero.
  static int64_t source_of(const PaddedCopy& s, int64_t r, int64_t size) {
    const int64_t at = r - s.before;
    if (at >= 0 && at < size) return at;
    if (s.padding == Padding::zeros || at < -1 || at > size) return -1;
    if (s.padding == Padding::replicate) return at < 0 ? 0 : size - 1;
    return at < 0 ? at_most(1, size - 1) : at_least(0, size - 2);
  }

  // Fills rows of a padded copy; fill_row(i, to) computes row i of what is padded.  A split row is made in `line`
  // first.
  template <class FillRow>
  static void pad_rows(const PaddedCopy& s, Rows rows, T* copy, T* line, FillRow fill_row) {
    const int64_t half = s.cols / 2;
    for (int64_t r = 0; r < rows.count; ++r) {
      T* to = copy + r * s.cols;
      const int64_t i = source_of(s, rows.first + r, s.height);
      if (i < 0) {
        fill_zero(to, s.cols);
        continue;
      }
      T* whole = s.split ? line : to;
      fill_row(i, whole + s.before);
      const auto border = [&](int64_t first, int64_t last) {
        for (int64_t q = first; q < last; ++q) {
          const int64_t j = source_of(s, q, s.width);
          whole[q] = j < 0 ? 0 : whole[s.before + j];
        }
      };
      border(0, s.before);
      border(s.before + s.width, s.cols);
      if (!s.split) continue;
#pragma omp simd
      for (int64_t j = 0; j < half; ++j) {
        to[j] = line[2 * j];
        to[half + j] = line[2 * j + 1];
      }
    }
  }

  // Prefetches the row that is read four rows later, in this channel or the next: the hardware does not foresee short
  // stretches that lie a plane apart.
  template <class S>
  static void prefetch_row(const PaddedCopy& s, Rows rows, const S* image, int64_t i) {
    const int64_t begin = at_least(rows.first - s.before, 0),
                  end = at_most(rows.first + rows.count - s.before, s.height), next = i + 4;
    prefetch(image + (next < end ? next : next + s.height - (end - begin)) * s.width, s.width);
  }

  template <class I>
  static void pad(const PaddedCopy& s, Rows rows, const I* image, T scale, T shift, T slope, T* copy, T* line) {
    pad_rows(s, rows, copy, line, [&](int64_t i, T* to) {
      prefetch_row(s, rows, image, i);
      norm_act(s.width, image + i * s.width, scale, shift, slope, to);
    });
  }

  template <class O>
  static void pad_gradient(const PaddedCopy& s, Rows rows, const O* gradient, const O* output, T constant, T factor,
                           T* copy, T* line) {
    pad_rows(s, rows, copy, line, [&](int64_t i, T* to) {
      const O* g = gradient + i * s.width;
      prefetch_row(s, rows, gradient, i);
      if (output == nullptr) {
        copy_row(g, s.width, to);
        return;
      }
      const O* y = output + i * s.width;
      prefetch_row(s, rows, output, i);
#pragma omp simd
      for (int64_t t = 0; t < s.width; ++t) to[t] = value_of(g[t]) + (constant + factor * value_of(y[t]));
    });
  }

  template <class S, class To>
  static void copy_row(const S* from, int64_t count, To* to) {
#pragma omp simd
    for (int64_t t = 0; t < count; ++t) to[t] = stored<To>(value_of(from[t]));
  }

  // The adjoint of the padding.  row(r) returns row r of the gradient of the copy, until it is called again; each row
  // of the image's gradient is made in `line` and passed to put(i, line).
  template <class Row, class Put>
  static void unpad(const PaddedCopy& s, T* line, Row row, Put put) {
    const auto add = [&](const T* from) {
#pragma omp simd
      for (int64_t t = 0; t < s.width; ++t) line[t] += from[s.before + t];
    };
    const auto fold = [&](const T* from) {
      for (int64_t q : {s.before - 1, s.before + s.width}) {
        const int64_t j = source_of(s, q, s.width);
        if (j >= 0) line[j] += from[q];
      }
    };
    const int64_t beyond[2] = {s.before - 1, s.before + s.height};
    for (int64_t i = 0; i < s.height; ++i) {
      const T* from = row(i + s.before);
      copy_row(from + s.before, s.width, line);
      fold(from);
      for (int64_t r : beyond)
        if (source_of(s, r, s.height) == i) {
          from = row(r);
          add(from);
          fold(from);
        }
      put(i, line);
    }
  }

  static void bands_adjoint(const PaddedCopy& s, const BandsOfRows<T>& bands, T* lines, T* image) {
    unpad_bands(s, bands, lines, [&](int64_t i, const T* line) { copy_row(line, s.width, image + i * s.width); });
  }

  template <class I>
  static void normed_adjoint(const PaddedCopy& s, const BandsOfRows<T>& bands, const NormedChannel<I>& x, T* lines,
                             I* grad_image, double* sums) {
    sums[0] = sums[1] = 0;
    unpad_bands(s, bands, lines, [&](int64_t i, const T* line) {
      I* to = grad_image + i * s.width;
      if (x.image == nullptr)
        copy_row(line, s.width, to);
      else
        norm_act_gradient<I>(s.width, line, {x.image + i * s.width, x.mean, x.scale, x.shift, x.slope}, to, sums);
    });
  }

  template <class Put>
  static void unpad_bands(const PaddedCopy& s, const BandsOfRows<T>& bands, T* lines, Put put) {
    const int64_t half = s.cols / 2;
    T* line = lines + s.cols;
    const auto row = [&](int64_t r) -> const T* {
      int64_t band = at_most(r / bands.step, bands.count - 1);
      if (bands.count == 1 && !s.split) return bands.data + r * s.cols;
      copy_row(bands.data + band * bands.stride + (r - band * bands.step) * s.cols, s.cols, lines);
      while (--band >= 0 && r - band * bands.step < bands.rows) {
        const T* from = bands.data + band * bands.stride + (r - band * bands.step) * s.cols;
#pragma omp simd
        for (int64_t t = 0; t < s.cols; ++t) lines[t] += from[t];
      }
      if (!s.split) return lines;
#pragma omp simd
      for (int64_t t = 0; t < half; ++t) {
        line[2 * t] = lines[t];
        line[2 * t + 1] = lines[half + t];
      }
      return line;
    };
    unpad(s, lines + 2 * s.cols, row, put);
  }

  template <class I>
  static void norm_act(int64_t count, const I* image, T scale, T shift, T slope, T* activated) {
#pragma omp simd
    for (int64_t t = 0; t < count; ++t) {
      const T u = scale * value_of(image[t]) + shift;
      activated[t] = u > 0 ? u : slope * u;
    }
  }

  // Sums of up to 512 values are taken in T.
  static constexpr int64_t CHUNK = 512;

  // From the gradient of leaky(scale x + shift) to that of x; adds to the sums of t = grad * leaky' and of t (x -
  // mean).
  template <class I>
  static void norm_act_gradient(int64_t count, const T* grad, const NormedChannel<I>& at, I* grad_image, double* sums) {
    const I* image = at.image;
    const T m = at.mean, scale = at.scale, shift = at.shift, slope = at.slope;
    for (int64_t first = 0; first < count; first += CHUNK) {
      const int64_t last = at_most(count, first + CHUNK);
      T plain = 0, with = 0;
#pragma omp simd reduction(+ : plain, with)
      for (int64_t t = first; t < last; ++t) {
        const T x = value_of(image[t]), g = grad[t], d = scale * x + shift > 0 ? g : slope * g;
        plain += d;
        with += d * (x - m);
        grad_image[t] = stored<I>(scale * d);
      }
      sums[0] += plain;
      sums[1] += with;
    }
  }

  static void norm_sums(int64_t count, const T* grad, const T* image, double mean, double* sums) {
    const T m = static_cast<T>(mean);
    sums[0] = sums[1] = 0;
    for (int64_t first = 0; first < count; first += CHUNK) {
      const int64_t last = at_most(count, first + CHUNK);
      T plain = 0, with = 0;
#pragma omp simd reduction(+ : plain, with)
      for (int64_t t = first; t < last; ++t) {
        plain += grad[t];
        with += grad[t] * (image[t] - m);
      }
      sums[0] += plain;
      sums[1] += with;
    }
  }

  // For bilinear upsampling U and an image a - mean, computes U^T U (a - mean), which the variance and its gradient
  // need.  Along each axis U^T U weights a pixel with 1.25 and each of its two neighbours with 0.375; the border is
  // replicated.  This function does it along H and calls f(at, length, 1.25, 0.375, row) with stretches of the result,
  // for f to do it along W.
  template <class F>
  static void each_upsampled(int64_t height, int64_t width, const T* image, T mean, F f) {
    const T own = static_cast<T>(1.25), other = static_cast<T>(0.375);
    T rows[CHUNK + 2];
    for (int64_t i = 0; i < height; ++i) {
      const T *mid = image + i * width, *up = i > 0 ? mid - width : mid, *down = i + 1 < height ? mid + width : mid;
      for (int64_t first = 0; first < width; first += CHUNK) {
        const int64_t length = at_most(width - first, CHUNK);
        const int64_t begin = first > 0 ? -1 : 0, end = first + length < width ? length + 1 : length;
#pragma omp simd
        for (int64_t t = begin; t < end; ++t) {
          const int64_t j = first + t;
          rows[t + 1] = own * (mid[j] - mean) + other * ((up[j] - mean) + (down[j] - mean));
        }
        if (begin == 0) rows[0] = rows[1];
        if (end == length) rows[length + 1] = rows[length];
        f(i * width + first, length, own, other, rows + 1);
      }
    }
  }

  static void upsampled_moments(int64_t height, int64_t width, bool bilinear, const T* image, double* mean,
                                double* variance) {
    const int64_t count = height * width;
    double total = 0, squares = 0;
    for (int64_t first = 0; first < count; first += CHUNK) {
      const int64_t last = at_most(count, first + CHUNK);
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t t = first; t < last; ++t) sum += image[t];
      total += sum;
    }
    *mean = total / static_cast<double>(count);
    const T m = static_cast<T>(*mean);
    if (bilinear) {
      each_upsampled(height, width, image, m, [&](int64_t at, int64_t length, T own, T other, const T* row) {
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t t = 0; t < length; ++t)
          sum += (image[at + t] - m) * (own * row[t] + other * (row[t - 1] + row[t + 1]));
        squares += sum;
      });
      squares /= 4;
    } else {
      for (int64_t first = 0; first < count; first += CHUNK) {
        const int64_t last = at_most(count, first + CHUNK);
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t t = first; t < last; ++t) sum += (image[t] - m) * (image[t] - m);
        squares += sum;
      }
    }
    *variance = squares / static_cast<double>(count);
  }

  static void norm_gradient(int64_t height, int64_t width, bool bilinear, const T* grad, const T* image, double mean,
                            double factor, double constant, double by_deviation, T* out) {
    const T m = static_cast<T>(mean), f = static_cast<T>(factor), k = static_cast<T>(constant);
    if (bilinear) {
      const T d = static_cast<T>(by_deviation / 4);
      each_upsampled(height, width, image, m, [&](int64_t at, int64_t length, T own, T other, const T* row) {
#pragma omp simd
        for (int64_t t = 0; t < length; ++t)
          out[at + t] = f * grad[at + t] + (k + d * (own * row[t] + other * (row[t - 1] + row[t + 1])));
      });
    } else {
      const T d = static_cast<T>(by_deviation);
#pragma omp simd
      for (int64_t t = 0; t < height * width; ++t) out[t] = f * grad[t] + (k + d * (image[t] - m));
    }
  }
};
