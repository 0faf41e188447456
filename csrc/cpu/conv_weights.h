// The weights of a convolution as its products read them: (slot, outputs, inputs).  Winograd's are computed in double
// precision until they are stored (the algebra is in algorithms.h).
#pragma once

#include "algorithms.h"
#include "thin_pointwise.h"

template <class Tile, Algorithm A>
struct ConvWeights {
  using T = typename Tile::T;
  using S = Scheme<A>;
  static constexpr int TAPS = A == Algorithm::pointwise ? 1 : 9;
  static constexpr int64_t STRIP = 64;  // input channels that are packed at a time

  static int64_t packed_size(const ConvShape& s) { return S::SLOTS * s.inputs * s.outputs; }

  // Packs the weights for the outputs k0 .. k1, of a convolution from (outputs, inputs, taps), of an adjoint from
  // (inputs, outputs, taps).
  static void pack(const ConvShape& s, const T* weight, bool adjoint, int64_t k0, int64_t k1, T* packed) {
    const int64_t slot = s.inputs * s.outputs, step = adjoint ? s.outputs * TAPS : TAPS;
    for (int64_t k = k0; k < k1; ++k)
      for (int64_t c0 = 0; c0 < s.inputs; c0 += STRIP) {
        const int64_t count = at_most(s.inputs - c0, STRIP);
        const T* from = weight + (adjoint ? k * TAPS : k * s.inputs * TAPS) + c0 * step;
        T* to = packed + k * s.inputs + c0;
        T w[TAPS][STRIP] = {};
        for (int64_t c = 0; c < count; ++c)
          for (int t = 0; t < TAPS; ++t) w[t][c] = from[c * step + t];
        if constexpr (A == Algorithm::winograd)
          store_winograd(w, count, to, slot);
        else
          store_taps(w, count, to, slot);
      }
    const bool thin = A == Algorithm::pointwise && (adjoint ? s.inputs : s.outputs) <= ThinPointwise<Tile>::MOST;
    for (int i = 0; i < S::SLOTS && !thin; ++i)
      for (int64_t k = k0; k < k1; ++k) {
        T* row = packed + i * slot + k * s.inputs;
        Tile::pair_row(row, s.inputs, row);
      }
  }

 private:
  static void store_taps(const T (*w)[STRIP], int64_t count, T* to, int64_t slot) {
    for (int i = 0; i < TAPS; ++i) {
      int tap = i;
      if constexpr (A == Algorithm::strided_gradient) tap = S::taps[i];
      copy(w[tap], count, to + i * slot);
    }
  }

  static void store_winograd(const T (*w)[STRIP], int64_t count, T* to, int64_t slot) {
    double rows[3][4][STRIP], columns[4][STRIP];
    for (int a = 0; a < 3; ++a) transform(w[3 * a], w[3 * a + 1], w[3 * a + 2], rows[a]);
    for (int b = 0; b < 4; ++b) {
      transform(rows[0][b], rows[1][b], rows[2][b], columns);
      for (int a = 0; a < 4; ++a)
        for (int64_t c = 0; c < count; ++c) to[c + (4 * a + b) * slot] = static_cast<T>(columns[a][c]);
    }
  }

  // Winograd's four weights of three taps, for a strip of channels.
  template <class Tap>
  static void transform(const Tap* w0, const Tap* w1, const Tap* w2, double (*out)[STRIP]) {
#pragma omp simd
    for (int64_t c = 0; c < STRIP; ++c) {
      const double outer = static_cast<double>(w0[c]) + w2[c];
      out[0][c] = w0[c];
      out[1][c] = 0.5 * (outer + w1[c]);
      out[2][c] = 0.5 * (outer - w1[c]);
      out[3][c] = w2[c];
    }
  }
};
