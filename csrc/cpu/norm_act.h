// Shared by the host code of norm_conv2d and norm_upsample_conv2d: the batch norm and the activation of an input, the
// gradient of an output, and the statistics of an output.  The algebra is in norm_conv2d.cpp.
#pragma once

#include <ATen/ATen.h>

#include <bit>
#include <cmath>
#include <type_traits>
#include <vector>

#include "arguments.h"
#include "dispatch.h"
#include "threads.h"

namespace dip_fast::cpu {

using at::Tensor;

// The memory of an image that is stored as S.
template <class S>
const S* image_of(const Tensor& tensor) {
  return static_cast<const S*>(tensor.const_data_ptr());
}
template <class S>
S* made_image_of(const Tensor& tensor) {
  return static_cast<S*>(tensor.mutable_data_ptr());
}

// A value of an image as it is computed with; value_of (tile.h) is compiled for one instruction set.
template <class S>
Computed<S> as_computed(S value) {
  if constexpr (std::is_same_v<S, BFloat16>)
    return std::bit_cast<float>(static_cast<uint32_t>(value) << 16);
  else
    return value;
}

// Calls f with a value of the type that images of a dtype are stored as.
template <class F>
void with_stored(at::ScalarType dtype, F f) {
  if (dtype == at::kDouble)
    f(double());
  else if (dtype == at::kBFloat16)
    f(BFloat16());
  else
    f(float());
}

// The same for what is read and what is written, which are computed with in one type.
template <class F>
void with_stored(at::ScalarType input, at::ScalarType output, F f) {
  with_stored(input, [&]<class I>(I) {
    with_stored(output, [&]<class O>(O) {
      if constexpr (std::is_same_v<Computed<I>, Computed<O>>) f(I(), O());
    });
  });
}

// The batch norm and the activation that are applied to an image when it is read:
// a = leaky(scale x + shift), with  scale = gamma r  and  shift = beta - gamma r m  for each channel.
template <class I>
struct NormAct {
  using T = Computed<I>;

  int64_t channels, height, width, count;  // count: of pixels
  const I* image;
  bool identity;                          // there is neither batch norm nor activation
  std::vector<double> mean, inverse_std;  // m and r = 1 / sqrt(variance + eps)
  std::vector<T> scale, shift;
  T slope;

  NormAct(const NormedInput& x, double slope_, double eps)
      : channels(x.image.size(1)),
        height(x.image.size(2)),
        width(x.image.size(3)),
        count(height * width),
        image(image_of<I>(x.image)),
        identity(!x.statistics.defined()),
        mean(channels, 0),
        inverse_std(channels, 1),
        scale(channels, 1),
        shift(channels, 0),
        slope(identity ? T(1) : static_cast<T>(slope_)) {
    if (identity) return;
    const double* statistics = x.statistics.const_data_ptr<double>();
    const T *weight = x.weight.const_data_ptr<T>(), *bias = x.bias.const_data_ptr<T>();
    for (int64_t c = 0; c < channels; ++c) {
      mean[c] = statistics[c];
      inverse_std[c] = 1 / std::sqrt(statistics[channels + c] + eps);
      scale[c] = static_cast<T>(weight[c] * inverse_std[c]);
      shift[c] = static_cast<T>(bias[c] - mean[c] * weight[c] * inverse_std[c]);
    }
  }

  const I* channel(int64_t c) const { return image + c * count; }
  Activation<T> activation() const {
    return identity ? Activation<T>{} : Activation<T>{scale.data(), shift.data(), slope};
  }

  // Computes channel c of a.
  void activate(int64_t c, T* a) const { layer_kernels<I>().norm_act(count, channel(c), scale[c], shift[c], slope, a); }
  // What the way back of channel c needs.
  NormedChannel<I> normed(int64_t c) const {
    if (identity) return {nullptr, 0, 1, 0, 1};
    return {channel(c), static_cast<T>(mean[c]), scale[c], shift[c], slope};
  }
};

// The gradients of the statistics and the parameters of a batch norm.
template <class T>
struct NormGradients {
  Tensor statistics, weight, bias;

  // Allocates them if `needed`; otherwise they are of shape (0,).
  NormGradients(const NormedInput& x, bool needed)
      : statistics(allocated(x.statistics, needed, x.image)),
        weight(allocated(x.weight, needed, x.image)),
        bias(allocated(x.bias, needed, x.image)) {}

  // Sets those of channel c from the sums of t and of t (x - mean).
  template <class I>
  void set(const NormedInput& x, const NormAct<I>& norm_act, int64_t c, const double* sums) const {
    const double r = norm_act.inverse_std[c], gamma = x.weight.const_data_ptr<T>()[c];
    bias.data_ptr<T>()[c] = static_cast<T>(sums[0]);
    weight.data_ptr<T>()[c] = static_cast<T>(r * sums[1]);
    statistics.data_ptr<double>()[c] = -gamma * r * sums[0];
    statistics.data_ptr<double>()[norm_act.channels + c] = -0.5 * gamma * r * r * r * sums[1];
  }

 private:
  static Tensor allocated(const Tensor& like, bool needed, const Tensor& image) {
    return needed ? at::empty_like(like) : at::empty({0}, image.options());
  }
};

// The gradient of an output with the part that comes through its statistics, G = grad + constant + factor y.
template <class O>
struct OutputGrad {
  using T = Computed<O>;

  const O *grad, *output;  // output: null where the statistics have no gradient
  std::vector<T> constant, factor;
  std::vector<double> grad_mean;

  OutputGrad(const Tensor& g, const Tensor& y, const Tensor& statistics, const Tensor& grad_statistics)
      : grad(image_of<O>(g)), output(nullptr) {
    const int64_t K = y.size(1);
    const double n = static_cast<double>(y.size(2) * y.size(3));
    const double *s = statistics.const_data_ptr<double>(), *d = grad_statistics.const_data_ptr<double>();
    for (int64_t k = 0; k < K; ++k) {
      if (d[k] != 0 || d[K + k] != 0) output = image_of<O>(y);
      const double by_value = 2 * d[K + k] / n;
      factor.push_back(static_cast<T>(by_value));
      constant.push_back(static_cast<T>(d[k] / n - by_value * s[k]));
      grad_mean.push_back(d[k]);
    }
  }

  RawGradient<O> raw() const { return {grad, output, constant.data(), factor.data()}; }
};

// Combines the moments of the items, (items, K), in their order (Chan, Golub, LeVeque 1983) to the mean and the
// variance, (2, K).
inline Tensor statistics_of(const std::vector<Moments>& items, int64_t K) {
  Tensor result = at::empty({2, K}, at::kDouble);
  double* to = result.data_ptr<double>();
  for (int64_t k = 0; k < K; ++k) {
    Moments all{0, 0, 0};
    for (size_t i = k; i < items.size(); i += K) {
      const Moments& one = items[i];
      const double count = all.count + one.count, difference = one.mean - all.mean;
      all.mean += difference * one.count / count;
      all.squares += one.squares + difference * difference * all.count * one.count / count;
      all.count = count;
    }
    to[k] = all.mean;
    const double variance = all.squares / all.count;
    to[K + k] = variance < 0 ? 0 : variance;  // a NaN stays NaN
  }
  return result;
}

template <class F>
void for_each_channel(int64_t channels, F work) {
  for_each_range(channels, 1, [&](int64_t c, int64_t) { work(c); });
}

}  // namespace dip_fast::cpu
