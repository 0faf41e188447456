// The epilogue: the two by two outputs of each site from its nine products, interleaved along W.
//
//   y[2i+p][2j+q] = M[0][0] + M[1+p][0] + M[0][1+q] + M[1+p][1+q] + bias
#pragma once

// Rows 2i and 2i + 1 of one output channel, of `length` sites.
template <class T>
static inline void join_products(const T* __restrict product, int64_t slot, int64_t length, T bias, T* __restrict even,
                                 T* __restrict odd) {
#pragma omp simd
  for (int64_t t = 0; t < length; ++t) {
    const T* m = product + t;
    const T left = m[slot], right = m[2 * slot], all = m[0] + bias;
    const T above = all + m[3 * slot], below = all + m[6 * slot];
    even[2 * t] = above + (left + m[4 * slot]);
    even[2 * t + 1] = above + (right + m[5 * slot]);
    odd[2 * t] = below + (left + m[7 * slot]);
    odd[2 * t + 1] = below + (right + m[8 * slot]);
  }
}

// One row of the blur [1 2 1] x [1 2 1] / 16 of three rows, columns 0 .. count, each row with a neighbour on either
// side unless `first` or `last` says that the image ends there; work holds count + 2.
template <class T>
static inline void blur_rows(const T* __restrict up, const T* __restrict mid, const T* __restrict down, int64_t count,
                             bool first, bool last, T bias, T* __restrict work, T* __restrict out) {
  const int64_t begin = first ? 0 : -1, end = last ? count : count + 1;
  for (int64_t t = begin; t < end; ++t) work[t + 1] = (up[t] + down[t]) + 2 * mid[t];
  if (first) work[0] = work[1];
  if (last) work[count + 1] = work[count];
  for (int64_t t = 0; t < count; ++t)
    out[t] = ((work[t] + work[t + 2]) + 2 * work[t + 1]) * static_cast<T>(0.0625) + bias;
}
