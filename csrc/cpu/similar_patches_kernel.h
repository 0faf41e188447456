// Patches estimated from those that are like them (nonlocal Bayes), a row of groups at a time.
//
// A group is a patch and the k - 1 others within reach whose estimates x are nearest to its own,
//   distance(s) = sum over the samples p of the patch of (x[p + s] - x[p])^2
// for each shift s: summed down the columns of five rows first, which patches share that overlap.
// With the mean m of the k patches of x, and the variance v of the noise at m, sample by sample,
//   Q = (x - m) / sqrt v     P = (y - m) / sqrt v                              k x D, D = 25 C
//   M = Q Q' + (k - 1) I     B = Q P'     M W = B                             k x k, by Cholesky's factors
//   estimates = m + W' Q sqrt v                                               k x D
// Q and P are stored transposed, with 0 for patches and samples beyond the last.  All products are of one form, and
// computed in tiles of 8 by a vector:
//   to[i][j] = sum over t of a[t][i] b[t][j]
//
// This file is included inside an unnamed namespace.
#pragma once

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX2__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
constexpr int64_t LANES = BYTES / 8, TILE = PATCH_BLOCK;
constexpr double UNITS = 0x1p32, LARGE = 0x1.8p52;  // a unit is the last digit of what is added to LARGE
constexpr int64_t LARGE_BITS = 0x4338000000000000;  // whose bits these are
typedef double Doubles __attribute__((vector_size(BYTES), aligned(8), may_alias));

static inline Doubles load(const double* from) { return *reinterpret_cast<const Doubles*>(from); }
static inline void store(double* to, Doubles value) { *reinterpret_cast<Doubles*>(to) = value; }

// Rows of a product: to[i][j] = sum over t of a[t a_down + i a_across] b[t][j] for 0 <= i < 8 and j < columns.
static void product_rows(const double* a, int64_t a_down, int64_t a_across, const double* b, int64_t b_pitch,
                         int64_t depth, int64_t columns, double* to, int64_t to_pitch) {
  for (int64_t j = 0; j < columns; j += LANES) {
    Doubles sums[TILE] = {};
    for (int64_t t = 0; t < depth; ++t) {
      const Doubles v = load(b + t * b_pitch + j);
      for (int64_t i = 0; i < TILE; ++i) sums[i] += a[t * a_down + i * a_across] * v;
    }
    for (int64_t i = 0; i < TILE; ++i) store(to + i * to_pitch + j, sums[i]);
  }
}

// to[j] -= factor from[j] for begin <= j < k; a few places before may change too.
static inline void subtract(double* to, double factor, const double* from, int64_t begin, int64_t k) {
  for (int64_t j = begin / LANES * LANES; j < k; j += LANES) store(to + j, load(to + j) - factor * load(from + j));
}

// Solves M W = B in place of B.  Of M only what is not left of its diagonal is read, and L' takes its place: M = L L'.
static void solve(double* M, double* B, int64_t k) {
  for (int64_t i = 0; i < k; ++i) {
    double *const row = M + i * k, *const right = B + i * k;
    const double scale = 1 / __builtin_sqrt(row[i]);
    for (int64_t j = i; j < k; ++j) row[j] *= scale;
    for (int64_t j = 0; j < k; ++j) right[j] *= scale;
    for (int64_t t = i + 1; t < k; ++t) subtract(M + t * k, row[t], row, t, k);
    for (int64_t t = i + 1; t < k; ++t) subtract(B + t * k, row[t], right, 0, k);
    row[i] = scale;  // the reciprocal of L's diagonal
  }
  for (int64_t i = k - 1; i >= 0; --i) {
    double* const right = B + i * k;
    for (int64_t j = 0; j < k; ++j) right[j] *= M[i * k + i];
    for (int64_t t = 0; t < i; ++t) subtract(B + t * k, M[t * k + i], right, 0, k);
  }
}

static double variance_at(const PatchPass& p, double mean) {
  const double last = double(p.variance_steps), at = (mean - p.low) * p.steps_a_unit;
  const double place = at > 0 ? at < last ? at : last : 0;  // 0 too of what is no number
  const int64_t left = place < last ? int64_t(place) : p.variance_steps - 1;
  return p.variance[left] + (place - double(left)) * (p.variance[left + 1] - p.variance[left]);
}

struct Alike {
  float distance;
  int32_t shift;
};

// Sums the squared differences of each column of five rows, in all channels.
static void add_columns(const float* here, const float* there, const PatchPass& p, int64_t count,
                        float* __restrict columns) {
  for (int64_t w = 0; w < count; ++w) columns[w] = 0;
  for (int64_t c = 0; c < p.C; ++c) {
    const float *a = here + c * p.H * p.W, *b = there + c * p.H * p.W;
    for (int64_t w = 0; w < count; ++w) {
      float sum = columns[w];
      for (int64_t r = 0; r < PATCH; ++r) {
        const float difference = a[r * p.W + w] - b[r * p.W + w];
        sum += difference * difference;
      }
      columns[w] = sum;
    }
  }
}

// Finds the patches that are like those of a row of groups: `found` has k of them for each, nearest first.
static void find_alike(const PatchPass& p, int64_t row, int64_t pitch, float* columns, Alike* found) {
  const int64_t k = p.alike, top = row * PATCH_STRIDE, last = p.columns() - 1;
  for (int64_t i = 0; i < (last + 1) * pitch; ++i) found[i] = {__builtin_inff(), 0};
  for (int64_t s = 0; s < p.shift_count; ++s) {
    const PatchShift shift = p.shifts[s];
    if (top + shift.down < 0 || top + shift.down + PATCH > p.H) continue;
    const int64_t left = -shift.right, right = p.W - PATCH - shift.right;  // of the columns that are not beyond an end
    const int64_t begin = left > 0 ? (left + PATCH_STRIDE - 1) / PATCH_STRIDE : 0;
    const int64_t end = right < 0 ? -1 : right / PATCH_STRIDE < last ? right / PATCH_STRIDE : last;
    if (begin > end) continue;
    const float* here = p.x + top * p.W + begin * PATCH_STRIDE;
    const float* there = here + (shift.pictures * p.C * p.H + shift.down) * p.W + shift.right;
    add_columns(here, there, p, (end - begin) * PATCH_STRIDE + PATCH, columns);
    for (int64_t g = begin; g <= end; ++g) {
      const float* const from = columns + (g - begin) * PATCH_STRIDE;
      // Each is of its own group.
      const float distance = s == 0 ? -1 : from[0] + from[1] + from[2] + from[3] + from[4];
      Alike* const of_group = found + g * pitch;
      if (!(distance < of_group[k - 1].distance)) continue;
      int64_t at = k - 1;
      for (; at > 0 && distance < of_group[at - 1].distance; --at) of_group[at] = of_group[at - 1];
      of_group[at] = {distance, int32_t(s)};
    }
  }
}

// Reads patch i of a group: `to` has a row for each sample, and a column for each of k patches.
static void gather(const PatchPass& p, const float* image, int64_t k, double* to) {
  for (int64_t c = 0; c < p.C; ++c)
    for (int64_t r = 0; r < PATCH; ++r)
      for (int64_t q = 0; q < PATCH; ++q, to += k) *to = image[(c * p.H + r) * p.W + q];
}

// Makes the rows of Q and P out of those of x and y, and keeps the mean and the deviation of each.
static void normalise(const PatchPass& p, int64_t k, double* Q, double* P, double* mean, double* deviation) {
  for (int64_t t = p.samples() * k; t < p.rounded(p.samples()) * k; ++t) Q[t] = 0;  // which a tile reads
  for (int64_t t = 0; t < p.samples(); ++t, Q += k, P += k) {
    double sum = 0;
    for (int64_t i = 0; i < p.alike; ++i) sum += Q[i];
    mean[t] = sum / double(p.alike);
    deviation[t] = __builtin_sqrt(variance_at(p, mean[t]));
    const double scale = 1 / deviation[t];
    for (int64_t i = 0; i < p.alike; ++i) {
      Q[i] = (Q[i] - mean[t]) * scale;
      P[i] = (P[i] - mean[t]) * scale;
    }
    for (int64_t i = p.alike; i < k; ++i) Q[i] = P[i] = 0;
  }
}

// Adds estimated patch i, in units of 2^-32 to the nearest, to the sums at its place.
static void add_patch(const PatchPass& p, const double* estimate, int64_t k, int64_t* sums, int64_t* count) {
  for (int64_t c = 0; c < p.C; ++c)
    for (int64_t r = 0; r < PATCH; ++r)
      for (int64_t q = 0; q < PATCH; ++q, estimate += k) {
        int64_t units;
        __builtin_memcpy(&units, estimate, sizeof units);
        sums[c * p.channel + r * p.W + q] += units - LARGE_BITS;
      }
  for (int64_t r = 0; r < PATCH; ++r)
    for (int64_t q = 0; q < PATCH; ++q) count[r * p.W + q] += 1;
}

// Estimates the patches of a group, whose first one lies at `place` in a channel.
static void estimate_group(const PatchPass& p, const Alike* found, int64_t place, double* scratch) {
  const auto take = [&](int64_t count) { return (scratch += count) - count; };
  const int64_t alike = p.alike, D = p.samples(), k = p.rounded(alike), d = p.rounded(D);
  double *Q = take(d * k), *P = take(d * k), *M = take(k * k), *W = take(k * k), *mean = take(d), *deviation = take(d);
  for (int64_t i = 0; i < alike; ++i) {
    const PatchShift shift = p.shifts[found[i].shift];
    const int64_t at = place + (shift.pictures * p.C * p.H + shift.down) * p.W + shift.right;
    gather(p, p.x + at, k, Q + i);
    gather(p, p.y + at, k, P + i);
  }
  normalise(p, k, Q, P, mean, deviation);
  for (int64_t i = 0; i < k; i += TILE) {
    product_rows(Q + i, k, 1, Q + i, k, D, k - i, M + i * k + i, k);
    product_rows(Q + i, k, 1, P, k, D, k, W + i * k, k);
  }
  for (int64_t i = 0; i < k; ++i) M[i * k + i] += double(alike - 1);
  solve(M, W, k);
  for (int64_t t = 0; t < d; t += TILE) product_rows(Q + t * k, 1, k, W, k, alike, k, P + t * k, k);
  for (int64_t t = 0; t < D; ++t)  // in units, but for the high digits of a number whose last digit is one
    for (int64_t i = 0; i < k; ++i) P[t * k + i] = (mean[t] + P[t * k + i] * deviation[t]) * UNITS + LARGE;
  for (int64_t i = 0; i < alike; ++i) {
    const PatchShift shift = p.shifts[found[i].shift];
    const int64_t at = place + shift.down * p.W + shift.right;
    add_patch(p, P + i, k, p.sums + shift.pictures * p.C * p.channel + at, p.count + shift.pictures * p.channel + at);
  }
}

static void row_of_groups(const PatchPass& p, int64_t row, double* scratch) {
  const int64_t k = p.rounded(p.alike);
  Alike* const found = reinterpret_cast<Alike*>(scratch);  // as large as a double
  float* const columns = reinterpret_cast<float*>(scratch + p.columns() * k);
  find_alike(p, row, k, columns, found);
  for (int64_t g = 0; g < p.columns(); ++g)
    estimate_group(p, found + g * k, (row * p.W + g) * PATCH_STRIDE, scratch + p.columns() * k + p.W);
}
