// Convolutions with one tap and few outputs, as a network's head and thin skip branches are.  They move much and
// multiply little, so no operand is transposed or packed: for a strip of pixels the outputs, or their gradients, stay
// in the first-level cache while the channels of the input pass by, each in one long run.  The algebra is that of
// pointwise.h.
#pragma once

#include "epilogue.h"
#include "moments.h"
#include "raw_gradient.h"

template <class Tile>
struct ThinPointwise {
  using T = typename Tile::T;
  using Vector = typename Tile::Vector;
  static constexpr int LANES = Tile::LANES;
  static constexpr int64_t MOST = 4;                       // outputs
  static constexpr int64_t STRIP = 1024, LD = STRIP + 16;  // pixels; LD: so that rows are not 4096 bytes apart
  static constexpr int64_t GROUP = 4;                      // channels that are added up before the others
  static constexpr int64_t SHORT = 128;                    // outputs whose moments are added at a time

  static bool is_thin(const ConvShape& s) { return s.outputs <= MOST; }
  static int64_t scratch(const ConvShape& s) { return s.outputs * LD; }

  // The pixels begin .. end of all outputs.
  template <class I, class O>
  static void convolve(const ConvShape& s, const I* input, const Activation<T>& activation, const T* weight,
                       const T* bias, O* output, const MomentSums<Tile>& sums, int64_t begin, int64_t end, bool stream,
                       T* made) {
    for (int64_t first = begin; first < end; first += STRIP) {
      const int64_t count = at_most(end - first, STRIP);
      for (int64_t k = 0; k < s.outputs; ++k)
        for (int64_t t = 0; t < count; ++t) made[k * LD + t] = bias == nullptr ? T(0) : bias[k];
      for (int64_t c = 0; c < s.inputs; c += GROUP) {
        const int64_t channels = at_most(GROUP, s.inputs - c);
        with_constant(s.outputs, [&](auto K) {
          if (channels == GROUP)
            add_channels<K, GROUP>(s, input + first, activation, weight, c, count, made);
          else
            for (int64_t i = 0; i < channels; ++i)
              add_channels<K, 1>(s, input + first, activation, weight, c + i, count, made);
        });
      }
      for (int64_t k = 0; k < s.outputs; ++k) {
        for (int64_t t = 0; t < count && sums.lanes != nullptr; t += SHORT)
          sums.add(k, made + k * LD + t, at_most(SHORT, count - t));
        write_line<Tile>(made + k * LD, count, output + k * s.cols + first, stream);
      }
    }
  }

  // All gradients of the same pixels.  Those of the weights are added to `sums`, (outputs, row), those of the bias to
  // `bias`, and the two sums of each input channel to `input_sums`.  grad_input is null where the input needs no
  // gradient, input_sums where it has no batch norm.  weight: (inputs, outputs).
  template <class I, class O>
  static void gradient(const ConvShape& s, const RawGradient<O>& raw, const I* input, const Activation<T>& activation,
                       const double* mean, const T* weight, I* grad_input, double* input_sums, T* sums, int64_t row,
                       T* bias, int64_t begin, int64_t end, bool stream, T* g) {
    for (int64_t first = begin; first < end; first += STRIP) {
      const int64_t count = at_most(end - first, STRIP);
      for (int64_t k = 0; k < s.outputs; ++k) {
        const int64_t at = k * s.cols + first;
        bias[k] += raw_gradient<Tile>(raw.grad + at, raw.output == nullptr ? nullptr : raw.output + at, raw.constant[k],
                                      raw.factor[k], count, g + k * LD);
      }
      for (int64_t c = 0; c < s.inputs; ++c) {
        const Channel<I> channel{input + c * s.cols + first,
                                 grad_input == nullptr ? nullptr : grad_input + c * s.cols + first,
                                 activation.scale == nullptr ? T(1) : activation.scale[c],
                                 activation.shift == nullptr ? T(0) : activation.shift[c],
                                 activation.slope,
                                 mean == nullptr ? T(0) : static_cast<T>(mean[c]),
                                 weight + c * s.outputs,
                                 g,
                                 count,
                                 c + 1 < s.inputs ? s.cols : 0};
        with_constant(s.outputs, [&](auto K) {
          channel.template go_back<K>(sums + c, row, input_sums == nullptr ? nullptr : input_sums + 2 * c, stream);
        });
      }
    }
  }

 private:
  template <class F>
  [[gnu::always_inline]] static inline void with_constant(int64_t outputs, F f) {
    if (outputs == 1) return f(std::integral_constant<int, 1>());
    if (outputs == 2) return f(std::integral_constant<int, 2>());
    if (outputs == 3) return f(std::integral_constant<int, 3>());
    f(std::integral_constant<int, MOST>());
  }

  // made[k] += sum over some channels of weight[k][c] a[c]
  template <int K, int64_t CHANNELS, class I>
  static void add_channels(const ConvShape& s, const I* input, const Activation<T>& activation, const T* weight,
                           int64_t first, int64_t count, T* made) {
    T w[K][CHANNELS], scale[CHANNELS], shift[CHANNELS];
    for (int64_t i = 0; i < CHANNELS; ++i) {
      scale[i] = activation.scale == nullptr ? T(1) : activation.scale[first + i];
      shift[i] = activation.shift == nullptr ? T(0) : activation.shift[first + i];
      for (int k = 0; k < K; ++k) w[k][i] = weight[k * s.inputs + first + i];
    }
    const I* from = input + first * s.cols;
    const auto add = [&](int64_t t, auto load, auto load_made, auto store) {
      decltype(load_made(made)) sum[K];
      for (int64_t i = 0; i < CHANNELS; ++i) {
        const auto u = scale[i] * load(from + i * s.cols + t) + shift[i];
        const auto a = u > 0 ? u : activation.slope * u;
        for (int k = 0; k < K; ++k) sum[k] = i == 0 ? w[k][i] * a : sum[k] + w[k][i] * a;
      }
      for (int k = 0; k < K; ++k) store(made + k * LD + t, load_made(made + k * LD + t) + sum[k]);
    };
    int64_t t = 0;
    for (; t + LANES <= count; t += LANES) {
      // The next channels lie planes apart, which the hardware does not foresee.
      if (first + 2 * CHANNELS <= s.inputs)
        for (int64_t i = 0; i < CHANNELS; ++i) __builtin_prefetch(from + (CHANNELS + i) * s.cols + t);
      add(
          t, [](const I* p) { return Tile::load(p); }, [](const T* p) { return Tile::load(p); },
          [](T* to, const Vector& value) { Tile::store(to, value); });
    }
    for (; t < count; ++t)
      add(
          t, [](const I* p) { return value_of(*p); }, [](const T* p) { return *p; },
          [](T* to, T value) { *to = value; });
  }

  // A strip of one channel of the input, with g, the gradients of the outputs there.
  template <class I>
  struct Channel {
    const I* from;
    I* to;  // null: the input needs no gradient
    T scale, shift, slope, mean;
    const T* weight;  // [k]
    const T* g;
    int64_t count;
    int64_t next;  // the distance of the next channel; 0 if there is none

    template <int K>
    void go_back(T* sums, int64_t row, double* input_sums, bool stream) const {
      Vector of_weight[K], plain{}, with{};
      T rest[K] = {};
      double sums_of_rest[2] = {};
      for (int k = 0; k < K; ++k) of_weight[k] = Vector{};
      const bool past_caches = stream && Tile::aligned(to);
      int64_t t = 0;
      for (; t + LANES <= count; t += LANES) {
        __builtin_prefetch(from + next + t);
        const Vector x = Tile::load(from + t), u = scale * x + shift, a = u > 0 ? u : slope * u;
        Vector da{};
        for (int k = 0; k < K; ++k) {
          const Vector gradient = Tile::load(g + k * LD + t);
          of_weight[k] += gradient * a;
          da += weight[k] * gradient;
        }
        const Vector d = u > 0 ? da : slope * da;
        plain += d;
        with += d * (x - mean);
        if (to == nullptr) continue;
        if (past_caches)
          Tile::stream(to + t, Vector(scale * d));
        else
          Tile::store(to + t, Vector(scale * d));
      }
      for (; t < count; ++t) {
        const T x = value_of(from[t]), u = scale * x + shift, a = u > 0 ? u : slope * u;
        T da = 0;
        for (int k = 0; k < K; ++k) {
          rest[k] += g[k * LD + t] * a;
          da += weight[k] * g[k * LD + t];
        }
        const T d = u > 0 ? da : slope * da;
        sums_of_rest[0] += d;
        sums_of_rest[1] += d * (x - mean);
        if (to != nullptr) to[t] = stored<I>(scale * d);
      }
      for (int k = 0; k < K; ++k) sums[k * row] += Tile::sum(of_weight[k]) + rest[k];
      if (input_sums == nullptr) return;
      input_sums[0] += Tile::sum(plain) + sums_of_rest[0];
      input_sums[1] += Tile::sum(with) + sums_of_rest[1];
    }
  };
};
