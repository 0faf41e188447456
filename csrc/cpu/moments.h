// The moments of the outputs that an item writes, one channel at a time: the sums of y - p and of (y - p)^2 about a
// pivot p, the first value of the channel, so that no digits cancel.  Short sums are taken in vectors of T, and these
// vectors are added up in double precision.
#pragma once

#include "tile.h"
#include "transform.h"

template <class Tile>
struct MomentSums {
  using T = typename Tile::T;
  using Vector = typename Tile::Vector;
  static constexpr int LANES = Tile::LANES;
  typedef double Doubles __attribute__((vector_size(LANES * sizeof(double)), aligned(alignof(double))));

  T* pivot = nullptr;       // [k]
  double* lanes = nullptr;  // [k][2][LANES]

  // The size of the scratch in elements of T, for K channels.
  static int64_t size(int64_t K) {
    return rounded_up(K, 16) + 2 * LANES * K * static_cast<int64_t>(sizeof(double) / sizeof(T));
  }

  MomentSums() = default;
  MomentSums(int64_t K, T* scratch) : pivot(scratch), lanes(reinterpret_cast<double*>(scratch + rounded_up(K, 16))) {
    fill_zero(lanes, 2 * LANES * K);
    for (int64_t k = 0; k < K; ++k) pivot[k] = __builtin_nan("");
  }

  // Adds `count` values, at most some hundreds, because the sums of a lane are taken in T.
  void add(int64_t k, const T* values, int64_t count) const {
    if (pivot[k] != pivot[k]) pivot[k] = values[0];
    const T p = pivot[k];
    Vector sum{}, squares{};
    int64_t t = 0;
    for (; t + LANES <= count; t += LANES) {
      const Vector d = Tile::load(values + t) - p;
      sum += d;
      squares += d * d;
    }
    double* to = lanes + 2 * LANES * k;
    *reinterpret_cast<Doubles*>(to) += __builtin_convertvector(sum, Doubles);
    *reinterpret_cast<Doubles*>(to + LANES) += __builtin_convertvector(squares, Doubles);
    for (; t < count; ++t) {
      const double d = values[t] - p;
      to[0] += d;
      to[LANES] += d * d;
    }
  }

  // Corrects the sums where a value that has been added was changed afterwards.
  void replace(int64_t k, T was, T is) const {
    double* to = lanes + 2 * LANES * k;
    const double p = pivot[k];
    to[0] += static_cast<double>(is) - was;
    to[LANES] += (is - p) * (is - p) - (was - p) * (was - p);
  }

  Moments moments(int64_t k, int64_t count) const {
    double sum = 0, squares = 0;
    for (int i = 0; i < LANES; ++i) {
      sum += lanes[2 * LANES * k + i];
      squares += lanes[2 * LANES * k + LANES + i];
    }
    const double mean = sum / static_cast<double>(count);
    return {static_cast<double>(count), pivot[k] + mean, squares - sum * mean};
  }
};
