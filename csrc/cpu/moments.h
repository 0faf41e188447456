// The moments of the outputs that an item writes, one channel at a time: the sums of y - p and of (y - p)^2 about a
// pivot p, the first value of the channel, so that no digits cancel.  Short sums are taken in vectors of T, and these
// vectors are added up in double precision now and then.
#pragma once

#include "tile.h"
#include "transform.h"

template <class Tile>
struct MomentSums {
  using T = typename Tile::T;
  using Vector = typename Tile::Vector;
  static constexpr int LANES = Tile::LANES;
  typedef double Doubles __attribute__((vector_size(LANES * sizeof(double)), aligned(alignof(double))));

  static constexpr int64_t SHORT = 32;  // values that a lane adds up in T

  T* pivot = nullptr;       // [k]
  T* terms = nullptr;       // [k], how many values the short sums have
  T* brief = nullptr;       // [k][2][LANES], the short sums
  double* lanes = nullptr;  // [k][2][LANES], the others

  // The size of the scratch in elements of T, for K channels.
  static int64_t size(int64_t K) {
    return 2 * rounded_up(K, 16) + 2 * LANES * K * (1 + static_cast<int64_t>(sizeof(double) / sizeof(T)));
  }

  MomentSums() = default;
  MomentSums(int64_t K, T* scratch)
      : pivot(scratch),
        terms(pivot + rounded_up(K, 16)),
        brief(terms + rounded_up(K, 16)),
        lanes(reinterpret_cast<double*>(brief + 2 * LANES * K)) {
    fill_zero(terms, K);
    fill_zero(brief, 2 * LANES * K);
    fill_zero(lanes, 2 * LANES * K);
    for (int64_t k = 0; k < K; ++k) pivot[k] = __builtin_nan("");
  }

  // Adds `count` values, at most some hundreds, because the sums of a lane are taken in T.
  void add(int64_t k, const T* values, int64_t count) const {
    if (pivot[k] != pivot[k]) pivot[k] = values[0];
    const T p = pivot[k];
    T* sums = brief + 2 * LANES * k;
    Vector sum = Tile::load(sums), squares = Tile::load(sums + LANES);
    int64_t t = 0;
    for (; t + LANES <= count; t += LANES) {
      const Vector d = Tile::load(values + t) - p;
      sum += d;
      squares += d * d;
    }
    Tile::store(sums, sum);
    Tile::store(sums + LANES, squares);
    if ((terms[k] += static_cast<T>(t)) >= SHORT * LANES) add_up(k);
    double* to = lanes + 2 * LANES * k;
    for (; t < count; ++t) {
      const double d = values[t] - p;
      to[0] += d;
      to[LANES] += d * d;
    }
  }

  // Adds the short sums to the others.
  void add_up(int64_t k) const {
    for (int i = 0; i < 2; ++i) {
      T* from = brief + (2 * k + i) * LANES;
      *reinterpret_cast<Doubles*>(lanes + (2 * k + i) * LANES) += __builtin_convertvector(Tile::load(from), Doubles);
      Tile::store(from, Vector{});
    }
    terms[k] = 0;
  }

  // Corrects the sums where a value that has been added was changed afterwards.
  void replace(int64_t k, T was, T is) const {
    double* to = lanes + 2 * LANES * k;
    const double p = pivot[k];
    to[0] += static_cast<double>(is) - was;
    to[LANES] += (is - p) * (is - p) - (was - p) * (was - p);
  }

  Moments moments(int64_t k, int64_t count) const {
    add_up(k);
    double sum = 0, squares = 0;
    for (int i = 0; i < LANES; ++i) {
      sum += lanes[2 * LANES * k + i];
      squares += lanes[2 * LANES * k + LANES + i];
    }
    const double mean = sum / static_cast<double>(count);
    return {static_cast<double>(count), pivot[k] + mean, squares - sum * mean};
  }
};
