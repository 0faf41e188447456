// Convolutions of images that are kept as convolutions left them: the batch norm and the activation before each belong
// to it, and so do the statistics of what it writes.  From tensors to pointers: checks, allocation, threads, and what
// is done to single channels.
//
// With x raw, of mean m and variance v over its pixels, n of them, r = 1 / sqrt(v + eps):
//
//   u = gamma r (x - m) + beta      a = leaky(u)      y = conv(a)
//
// The way back gets g = dL/dy and the gradients of y's mean and variance, and loads
//
//   G = g + dmean / n + 2 dvariance (y - mean) / n
//
// With t = leaky'(u) conv^T(G) it gives dx = gamma r t, and to the statistics of x what it leaves out:
//
//   dbeta = sum t      dgamma = r sum t (x - m)      dm = -gamma r sum t      dv = -gamma r^3 sum t (x - m) / 2
#include <ATen/ATen.h>
#include <torch/library.h>

#include <array>
#include <cmath>
#include <tuple>
#include <vector>

#include "arguments.h"
#include "upsample_conv2d.h"

namespace dip_fast::cpu {
namespace {

using at::Tensor;

// ---- what is read

// The affine maps of a batch norm, from its statistics.
template <class T>
struct Reading {
  int64_t channels, height, width, count;
  const T* image;
  bool plain;                           // there is no batch norm and no activation
  std::vector<double> mean, deviation;  // deviation: 1 / sqrt(variance + eps)
  std::vector<T> scale, shift;
  T slope;

  Reading(const NormedInput& of, double slope_, double eps)
      : channels(of.image.size(1)),
        height(of.image.size(2)),
        width(of.image.size(3)),
        count(height * width),
        image(of.image.const_data_ptr<T>()),
        plain(!of.statistics.defined()),
        mean(channels, 0),
        deviation(channels, 1),
        scale(channels, 1),
        shift(channels, 0),
        slope(plain ? T(1) : static_cast<T>(slope_)) {
    if (plain) return;
    const double* statistics = of.statistics.const_data_ptr<double>();
    const T *weight = of.weight.const_data_ptr<T>(), *bias = of.bias.const_data_ptr<T>();
    for (int64_t c = 0; c < channels; ++c) {
      mean[c] = statistics[c];
      deviation[c] = 1 / std::sqrt(statistics[channels + c] + eps);
      scale[c] = static_cast<T>(weight[c] * deviation[c]);
      shift[c] = static_cast<T>(bias[c] - mean[c] * weight[c] * deviation[c]);
    }
  }

  const T* channel(int64_t c) const { return image + c * count; }
  Activation<T> activation() const {
    return plain ? Activation<T>{} : Activation<T>{scale.data(), shift.data(), slope};
  }
};

// The gradients of a batch norm's statistics and parameters, from the sums of t and t (x - mean) of each channel.
template <class T>
struct NormGradients {
  Tensor statistics, weight, bias;

  NormGradients(const NormedInput& of)
      : statistics(at::empty_like(of.statistics)), weight(at::empty_like(of.weight)), bias(at::empty_like(of.bias)) {}

  void set(const NormedInput& of, const Reading<T>& reading, int64_t c, const double* sums) const {
    const double r = reading.deviation[c], gamma = of.weight.const_data_ptr<T>()[c];
    bias.data_ptr<T>()[c] = static_cast<T>(sums[0]);
    weight.data_ptr<T>()[c] = static_cast<T>(r * sums[1]);
    statistics.data_ptr<double>()[c] = -gamma * r * sums[0];
    statistics.data_ptr<double>()[reading.channels + c] = -0.5 * gamma * r * r * r * sums[1];
  }
};

// G = g + constant + factor y for each channel of the output.
template <class T>
struct Arriving {
  const T *grad, *output;  // output: null where the statistics have no gradient
  std::vector<T> constant, factor;
  std::vector<double> by_mean;

  Arriving(const Tensor& g, const Tensor& y, const Tensor& statistics, const Tensor& grad_statistics)
      : grad(g.const_data_ptr<T>()), output(nullptr) {
    const int64_t K = y.size(1);
    const double n = static_cast<double>(y.size(2) * y.size(3));
    const double *s = statistics.const_data_ptr<double>(), *d = grad_statistics.const_data_ptr<double>();
    for (int64_t k = 0; k < K; ++k) {
      if (d[k] != 0 || d[K + k] != 0) output = y.const_data_ptr<T>();
      const double by_value = 2 * d[K + k] / n;
      factor.push_back(static_cast<T>(by_value));
      constant.push_back(static_cast<T>(d[k] / n - by_value * s[k]));
      by_mean.push_back(d[k]);
    }
  }
};

// Moments of the items, (items, K), joined in their order (Chan, Golub, LeVeque 1983): mean and variance, (2, K).
Tensor statistics_of(const std::vector<Moments>& items, int64_t K) {
  Tensor result = at::empty({2, K}, at::kDouble);
  double* to = result.data_ptr<double>();
  for (int64_t k = 0; k < K; ++k) {
    Moments all{0, 0, 0};
    for (size_t i = k; i < items.size(); i += K) {
      const Moments& one = items[i];
      const double count = all.count + one.count, apart = one.mean - all.mean;
      all.mean += apart * one.count / count;
      all.squares += one.squares + apart * apart * all.count * one.count / count;
      all.count = count;
    }
    to[k] = all.mean;
    const double variance = all.squares / all.count;
    to[K + k] = variance < 0 ? 0 : variance;  // what is not a number stays so
  }
  return result;
}

template <class F>
void for_each_channel(int64_t channels, F work) {
  for_each_range(channels, 1, [&](int64_t c, int64_t) { work(c); });
}

// ---- convolutions

template <class T>
Buffer<T> packed(const Lattice& s, const Tensor& weight, bool adjoint) {
  Buffer<T> to(layer_kernels<T>().packed_size(s));
  for_each_range(s.outputs, 8, [&](int64_t begin, int64_t end) {
    layer_kernels<T>().pack(s, weight.const_data_ptr<T>(), adjoint, begin, end, to.get());
  });
  return to;
}

// A padded copy of the rows of an image: spread(rows, channel, copy, line) makes those of a channel.
template <class T, class F>
struct Copied {
  int64_t channels, cols;
  F spread;

  int64_t size(Rows most) const { return channels * most.count * cols + cols + 64; }
  Window<T> operator()(Rows rows, T* to) const {
    T* line = to + channels * rows.count * cols;
    for (int64_t c = 0; c < channels; ++c) spread(rows, c, to + c * rows.count * cols, line);
    return {to, rows};
  }
};

template <class T>
auto copied(const Spread& s, const Reading<T>& reading) {
  const auto spread = [&](Rows rows, int64_t c, T* copy, T* line) {
    layer_kernels<T>().spread(s, rows, reading.channel(c), reading.scale[c], reading.shift[c], reading.slope, copy,
                              line);
  };
  return Copied<T, decltype(spread)>{reading.channels, s.cols, spread};
}

template <class T>
auto copied(const Spread& s, const Arriving<T>& arriving) {
  const auto spread = [&](Rows rows, int64_t k, T* copy, T* line) {
    const int64_t at = k * s.height * s.width;
    layer_kernels<T>().spread_gradient(s, rows, arriving.grad + at,
                                       arriving.output == nullptr ? nullptr : arriving.output + at,
                                       arriving.constant[k], arriving.factor[k], copy, line);
  };
  return Copied<T, decltype(spread)>{static_cast<int64_t>(arriving.constant.size()), s.cols, spread};
}

constexpr int64_t aligned(int64_t count) { return (count + 15) / 16 * 16; }  // elements

// window(rows, memory) gives the rows that an item reads.
template <class T, class F>
void convolve(const Lattice& s, int64_t window_size, F window, const Activation<T>& activation, const T* weights,
              const T* bias, T* output, std::vector<Moments>* moments) {
  const LayerKernels<T>& kernel = layer_kernels<T>();
  const int64_t items = kernel.items(s), own = aligned(kernel.scratch(s));
  if (moments != nullptr) moments->resize(items * s.outputs);
  for_each_item<T>(items, own + window_size, [&](int64_t item, T* scratch) {
    kernel.convolve(s, window(kernel.rows(s, item), scratch + own), activation, weights, bias, output,
                    moments == nullptr ? nullptr : moments->data() + item * s.outputs, item, scratch);
  });
}

template <class T, class C>
void convolve(const Lattice& s, const C& copy, const T* weights, const T* bias, T* output,
              std::vector<Moments>* moments) {
  convolve<T>(s, copy.size(layer_kernels<T>().rows(s, 0)), copy, Activation<T>{}, weights, bias, output, moments);
}

// The convolution of an image with a weight, and the copies it and its adjoint read.
struct Plan {
  Lattice forward, adjoint;
  Spread input, gradient;
};

Plan planned(const Tensor& image, const Tensor& weight, int64_t stride, c10::string_view padding_mode) {
  const int64_t C = image.size(1), H = image.size(2), W = image.size(3), K = weight.size(0);
  const int64_t kernel = on_cpu.check_convolution(image, weight, stride);
  const Padding padding = kernel == 1 ? Padding::zeros : padding_of(padding_mode, H, W);
  if (kernel == 1)
    return {{Form::pointwise, C, K, 1, H * W, 1, H * W}, {Form::pointwise, K, C, 1, H * W, 1, H * W}, {}, {}};
  const int64_t h = (H + 1) / 2, w = (W + 1) / 2;
  const Spread input{H, W, 1, padding, 2 * w + 2, true};
  if (stride == 2)
    return {{Form::strided, C, K, h, w, h, w},
            {Form::strided_gradient, K, C, h + 1, w + 1, H + 2, W + 2},
            input,
            {h, w, 1, Padding::zeros, w + 2, false}};
  return {{Form::winograd, C, K, h, w, H, W},
          {Form::winograd, K, C, h + 1, w + 1, H + 2, W + 2},
          input,
          {H, W, 2, Padding::zeros, 2 * w + 4, true}};
}

template <class T>
std::tuple<Tensor, Tensor> forward(const NormedInput& x, double slope, double eps, const Tensor& weight,
                                   const Tensor& bias, int64_t stride, c10::string_view padding_mode) {
  const Plan plan = planned(x.image, weight, stride, padding_mode);
  const Reading<T> reading(x, slope, eps);
  const bool pointwise = plan.forward.form == Form::pointwise;
  const int64_t K = weight.size(0), height = pointwise ? reading.height : plan.forward.height,
                width = pointwise ? reading.width : plan.forward.width;
  Tensor output = workspace::empty({1, K, height, width}, x.image.options());
  const Buffer<T> weights = packed<T>(plan.forward, weight, false);
  const T* b = bias.defined() ? bias.const_data_ptr<T>() : nullptr;
  std::vector<Moments> moments;
  if (pointwise) {
    const auto image = [&](Rows rows, T*) { return Window<T>{reading.image, rows}; };
    convolve<T>(plan.forward, 0, image, reading.activation(), weights.get(), b, output.data_ptr<T>(), &moments);
  } else {
    convolve<T>(plan.forward, copied(plan.input, reading), weights.get(), b, output.data_ptr<T>(), &moments);
  }
  return {output, statistics_of(moments, K)};
}

using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
void sum_gradient(const Arriving<T>& arriving, int64_t count, const Tensor& grad_bias) {
  for_each_channel(grad_bias.size(0), [&](int64_t k) {
    double sums[2];
    const T* g = arriving.grad + k * count;
    layer_kernels<T>().sums_with(count, g, g, 0, sums);
    grad_bias.data_ptr<T>()[k] = static_cast<T>(sums[0] + arriving.by_mean[k]);
  });
}

template <class T>
Six backward(const Tensor& grad, const Tensor& grad_statistics, const Tensor& output, const Tensor& statistics,
             const NormedInput& x, double slope, double eps, const Tensor& weight, int64_t stride,
             c10::string_view padding_mode, std::array<bool, 3> mask, bool overwrites) {
  const LayerKernels<T>& kernel = layer_kernels<T>();
  const Plan plan = planned(x.image, weight, stride, padding_mode);
  const Lattice& s = plan.forward;
  const Reading<T> reading(x, slope, eps);
  const Arriving<T> arriving(grad, output, statistics, grad_statistics);
  const int64_t C = reading.channels, K = weight.size(0), pixels = output.size(2) * output.size(3);
  const auto nothing = [&] { return at::empty({0}, x.image.options()); };
  // All of a gradient has been read, or its part of a block of pixels, before that of the input is written.
  const bool in_place = overwrites && stride == 1 && C == K;
  Tensor grad_input = !mask[0] ? nothing() : in_place ? grad : workspace::empty(x.image.sizes(), x.image.options());
  Tensor grad_weight = mask[1] ? at::empty(weight.sizes(), weight.options()) : nothing();
  Tensor grad_bias = mask[2] ? at::empty({K}, weight.options()) : nothing();
  const bool normed = mask[0] && !reading.plain;
  const NormedInput none{x.image, nothing(), nothing(), nothing()};
  const NormGradients<T> norm(normed ? x : none);

  if (s.form == Form::pointwise) {
    const int64_t items = kernel.items(s), size = kernel.pointwise_sums_size(s), row = (size - K) / K;
    const Buffer<T> total(size), weights = packed<T>(plan.adjoint, weight, true);
    std::vector<double> sums(normed ? items * 2 * C : 0);
    T* to = mask[0] ? grad_input.data_ptr<T>() : nullptr;
    sum_items<T>(items, size, kernel.pointwise_gradient_scratch(s), total.get(), [&](int64_t item, T* own, T* scratch) {
      kernel.pointwise_gradient(s, arriving.grad, arriving.output, arriving.constant.data(), arriving.factor.data(),
                                reading.image, reading.activation(), reading.mean.data(), weights.get(), to,
                                normed ? sums.data() + item * 2 * C : nullptr, own, item, scratch);
    });
    for (int64_t c = 0; normed && c < C; ++c) {
      double all[2] = {};
      for (int64_t item = 0; item < items; ++item)
        for (int i = 0; i < 2; ++i) all[i] += sums[(item * C + c) * 2 + i];
      norm.set(x, reading, c, all);
    }
    if (mask[1])
      for (int64_t k = 0; k < K; ++k) std::copy_n(total.get() + k * row, C, grad_weight.template data_ptr<T>() + k * C);
    if (mask[2]) std::copy_n(total.get() + K * row, K, grad_bias.template data_ptr<T>());
    return {grad_input, norm.statistics, norm.weight, norm.bias, grad_weight, grad_bias};
  }

  if (mask[2]) sum_gradient(arriving, pixels, grad_bias);
  const auto gradient = copied(plan.gradient, arriving);
  if (mask[1]) {
    const auto input = copied(plan.input, reading);
    const int64_t size = kernel.sums_size(s), own = aligned(kernel.weight_gradient_scratch(s)),
                  of_input = aligned(input.size(kernel.weight_gradient_rows(s, 0, false)));
    const Buffer<T> total(size);
    sum_items<T>(
        kernel.weight_gradient_items(s), size, own + of_input + gradient.size(kernel.weight_gradient_rows(s, 0, true)),
        total.get(), [&](int64_t item, T* sums, T* scratch) {
          kernel.weight_gradient(s, input(kernel.weight_gradient_rows(s, item, false), scratch + own),
                                 gradient(kernel.weight_gradient_rows(s, item, true), scratch + own + of_input), sums,
                                 item, scratch);
        });
    for_each_range(C, 8, [&](int64_t begin, int64_t end) {
      kernel.finish(s, total.get(), begin, end, grad_weight.data_ptr<T>());
    });
  }
  if (mask[0]) {
    const Lattice& a = plan.adjoint;
    const Buffer<T> padded(C * a.height * a.width);
    {
      const Buffer<T> weights = packed<T>(a, weight, true);
      convolve<T>(a, gradient, weights.get(), static_cast<const T*>(nullptr), padded.get(), nullptr);
    }
    for_each_channel(C, [&](int64_t c) {
      T* to = grad_input.data_ptr<T>() + c * reading.count;
      kernel.fold(plan.input, padded.get() + c * a.height * a.width, a.width, to);
      if (!normed) return;
      double sums[2];
      kernel.activate_gradient(reading.count, to, reading.channel(c), reading.mean[c], reading.scale[c],
                               reading.shift[c], reading.slope, to, sums);
      norm.set(x, reading, c, sums);
    });
  }
  return {grad_input, norm.statistics, norm.weight, norm.bias, grad_weight, grad_bias};
}

// ---- upsampling and convolution, with a thin convolution beside

// The batch norm between, of the concatenated image: its own statistics are those of what was activated.  The deep
// image is upsampled, whose mean and variance come from the small one: see Channels::each_upsampled.
template <class T>
struct Join {
  Shape shape{};
  Spread around{};  // of the thin image
  double eps;
  Reading<T> deep;
  std::optional<Reading<T>> thin;
  int64_t S;
  const T *norm_weight, *norm_bias;
  Buffer<T> deep_input, thin_input;
  std::vector<double> mean, deviation;  // of the batch norm between, thin channels first

  Join(const NormedInput& x, const std::optional<NormedInput>& q, const Tensor& weight_, const Tensor& bias_,
       double slope, double eps_, int64_t K, c10::string_view mode, c10::string_view padding_mode)
      : eps(eps_),
        deep(x, slope, eps_),
        S(q ? q->image.size(1) : 0),
        norm_weight(weight_.const_data_ptr<T>()),
        norm_bias(bias_.const_data_ptr<T>()),
        deep_input(deep.channels * deep.count),
        thin_input(S * (2 * deep.height + 2) * (2 * deep.width + 2)),
        mean(S + deep.channels),
        deviation(S + deep.channels) {
    const int64_t H = deep.height, W = deep.width;
    shape.N = 1, shape.C = deep.channels, shape.K = K, shape.H = H, shape.W = W;
    shape.bilinear = is_bilinear(mode);
    shape.padding = padding_of(padding_mode, 2 * H, 2 * W);
    shape.threads = 4;  // the moments of the items are joined: where they are cut must not depend on the threads
    around = {2 * H, 2 * W, 1, shape.padding, 2 * W + 2, false};
    const LayerKernels<T>& kernel = layer_kernels<T>();
    if (q) thin.emplace(*q, slope, eps);
    for_each_channel(S + deep.channels, [&](int64_t c) {
      const bool is_thin = c < S;
      const Reading<T>& from = is_thin ? *thin : deep;
      const int64_t own = is_thin ? c : c - S;
      std::optional<Buffer<T>> plane;
      if (is_thin) plane.emplace(from.count);
      T* a = is_thin ? plane->get() : deep_input.get() + own * from.count;
      kernel.activate(from.count, from.channel(own), from.scale[own], from.shift[own], from.slope, a);
      double variance;
      kernel.upsampled_moments(from.height, from.width, !is_thin && shape.bilinear, a, &mean[c], &variance);
      deviation[c] = 1 / std::sqrt(variance + eps);
      const double gamma = norm_weight[c] * deviation[c];
      const T scale = static_cast<T>(gamma), shift = static_cast<T>(norm_bias[c] - mean[c] * gamma);
      if (is_thin) {
        const Buffer<T> line(around.cols + 64);
        kernel.spread(around, {0, 2 * H + 2}, a, scale, shift, T(1), thin_input.get() + own * (2 * H + 2) * around.cols,
                      line.get());
      } else {
        kernel.activate(from.count, a, scale, shift, T(1), a);
      }
    });
  }
};

template <class T>
std::tuple<Tensor, Tensor> join_forward(const UpsampleInputs& x, const Tensor& bias, c10::string_view mode,
                                        c10::string_view padding_mode) {
  const int64_t K = x.weight.size(0);
  const Join<T> join(x.deep, x.skip, x.norm_weight, x.norm_bias, x.slope, x.eps, K, mode, padding_mode);
  const Shape& s = join.shape;
  const UpsampleKernels<T>& kernel = upsample_kernels<T>();
  Tensor output = workspace::empty({1, K, 2 * s.H, 2 * s.W}, x.deep.image.options());
  const Tensor deep = x.weight.narrow(1, join.S, s.C).contiguous(), thin = x.weight.narrow(1, 0, join.S).contiguous();
  const Buffer<T> weights = packed_weight(s, deep.const_data_ptr<T>(), false);
  const SkipConv<T> beside{join.thin_input.get(), join.S, thin.const_data_ptr<T>()};
  const int64_t items = kernel.forward_items(s);
  std::vector<Moments> moments(items * K);
  for_each_item<T>(items, kernel.forward_scratch(s, join.S), [&](int64_t item, T* scratch) {
    kernel.forward(s, join.deep_input.get(), weights.get(), bias.defined() ? bias.const_data_ptr<T>() : nullptr,
                   output.data_ptr<T>(), item, scratch, &beside, moments.data() + item * K);
  });
  return {output, statistics_of(moments, K)};
}

// Back through the batch norm between and through the reading: from the gradient of what the convolution read.
template <class T>
struct JoinGradients {
  const Join<T>& join;
  Tensor norm_weight, norm_bias;

  void operator()(const NormedInput& of, const Reading<T>& reading, int64_t at, bool bilinear, int64_t c, const T* grad,
                  T* to, const NormGradients<T>& norm) const {
    const LayerKernels<T>& kernel = layer_kernels<T>();
    const int64_t all = at + c;
    const Buffer<T> a(reading.count);
    kernel.activate(reading.count, reading.channel(c), reading.scale[c], reading.shift[c], reading.slope, a.get());
    double sums[2];
    kernel.sums_with(reading.count, grad, a.get(), join.mean[all], sums);
    const double r = join.deviation[all], gamma = join.norm_weight[all], n = static_cast<double>(reading.count);
    norm_bias.data_ptr<T>()[all] = static_cast<T>(sums[0]);
    norm_weight.data_ptr<T>()[all] = static_cast<T>(r * sums[1]);
    kernel.normalise_gradient(reading.height, reading.width, bilinear, grad, a.get(), join.mean[all], gamma * r,
                              -gamma * r * sums[0] / n, -gamma * r * r * r * sums[1] / n, to);
    if (reading.plain) return;
    kernel.activate_gradient(reading.count, to, reading.channel(c), reading.mean[c], reading.scale[c], reading.shift[c],
                             reading.slope, to, sums);
    norm.set(of, reading, c, sums);
  }
};

template <class T>
std::vector<Tensor> join_backward(const Tensor& grad, const Tensor& grad_statistics, const Tensor& output,
                                  const Tensor& statistics, const UpsampleInputs& x, c10::string_view mode,
                                  c10::string_view padding_mode, bool with_bias, bool overwrites) {
  const LayerKernels<T>& kernel = layer_kernels<T>();
  const int64_t K = x.weight.size(0);
  const Join<T> join(x.deep, x.skip, x.norm_weight, x.norm_bias, x.slope, x.eps, K, mode, padding_mode);
  const Shape& s = join.shape;
  const Arriving<T> arriving(grad, output, statistics, grad_statistics);
  const auto options = x.deep.image.options();
  const Tensor deep_weight = x.weight.narrow(1, join.S, s.C).contiguous();
  // (9 S, K): each tap of each thin channel, to all outputs.
  const Tensor thin_weight = x.weight.narrow(1, 0, join.S).reshape({K, 9 * join.S}).t().contiguous();
  const SkipConv<T> beside{join.thin_input.get(), join.S, thin_weight.const_data_ptr<T>()};
  const int64_t size = kernel.joint_sums_size(s, join.S), row = size / K - 1, items = kernel.joint_items(s),
                rows = kernel.joint_rows(s), pitch = 2 * s.W + 2, part = join.S * (rows + 2) * pitch;
  const Buffer<T> total(size), locals(items * part);
  std::optional<Buffer<T>> made;
  T* full = nullptr;
  if (arriving.output != nullptr) {
    if (!overwrites) made.emplace(output.numel());
    full = overwrites ? grad.data_ptr<T>() : made->get();
  }
  sum_items<T>(items, size, kernel.joint_scratch(s, join.S), total.get(), [&](int64_t item, T* own, T* scratch) {
    kernel.joint_gradient(s, arriving.grad, arriving.output, arriving.constant.data(), arriving.factor.data(), beside,
                          full, own, locals.get() + item * part, item, scratch);
  });
  const T* g = full != nullptr ? full : arriving.grad;

  Tensor grad_weight = at::empty_like(x.weight), grad_bias = at::empty({with_bias ? K : 0}, options);
  for (int64_t k = 0; k < K; ++k)
    std::copy_n(total.get() + k * row, 9 * join.S, grad_weight.template data_ptr<T>() + k * 9 * (join.S + s.C));
  if (with_bias) std::copy_n(total.get() + K * row, K, grad_bias.template data_ptr<T>());
  const Tensor grad_deep_weight = at::empty_like(deep_weight);
  weight_gradient<T>(s, g, join.deep_input.get(), grad_deep_weight.data_ptr<T>(), nullptr);
  grad_weight.narrow(1, join.S, s.C).copy_(grad_deep_weight);

  const auto nothing = [&] { return at::empty({0}, options); };
  const NormedInput none{x.deep.image, nothing(), nothing(), nothing()};
  const JoinGradients<T> back{join, at::empty_like(x.norm_weight), at::empty_like(x.norm_bias)};
  Tensor grad_deep = workspace::empty(x.deep.image.sizes(), options), grad_thin = nothing();
  const NormGradients<T> deep_norm(join.deep.plain ? none : x.deep),
      thin_norm(join.S == 0 || join.thin->plain ? none : *x.skip);
  data_gradient<T>(s, g, deep_weight.const_data_ptr<T>(), grad_deep.data_ptr<T>());
  for_each_channel(s.C, [&](int64_t c) {
    T* to = grad_deep.data_ptr<T>() + c * join.deep.count;
    back(x.deep, join.deep, join.S, s.bilinear, c, to, to, deep_norm);
  });
  if (join.S > 0) {
    grad_thin = workspace::empty(x.skip->image.sizes(), options);
    for_each_channel(join.S, [&](int64_t c) {
      const Buffer<T> padded((2 * s.H + 2) * pitch);
      std::fill_n(padded.get(), (2 * s.H + 2) * pitch, T(0));
      for (int64_t item = 0; item < items; ++item) {
        const int64_t top = item * rows, height = std::min(rows, 2 * s.H - top) + 2;
        const T* from = locals.get() + item * part + c * (rows + 2) * pitch;
        for (int64_t t = 0; t < height * pitch; ++t) padded.get()[top * pitch + t] += from[t];
      }
      T* to = grad_thin.data_ptr<T>() + c * join.thin->count;
      kernel.fold(join.around, padded.get(), pitch, to);
      back(*x.skip, *join.thin, 0, false, c, to, to, thin_norm);
    });
  }
  return {grad_deep,        deep_norm.statistics, deep_norm.weight, deep_norm.bias, grad_thin,   thin_norm.statistics,
          thin_norm.weight, thin_norm.bias,       back.norm_weight, back.norm_bias, grad_weight, grad_bias};
}

// ---- registered

std::tuple<Tensor, Tensor> norm_conv2d(const Tensor& input, const Optional& statistics, const Optional& norm_weight,
                                       const Optional& norm_bias, const Tensor& weight, const Optional& bias,
                                       double slope, double eps, int64_t stride, c10::string_view padding_mode) {
  const NormedInput x = on_cpu.normed_input("input", input, statistics, norm_weight, norm_bias);
  if (bias.has_value()) on_cpu.check("bias", *bias, input.scalar_type(), {weight.size(0)});
  std::tuple<Tensor, Tensor> result;
  AT_DISPATCH_FLOATING_TYPES(input.scalar_type(), "norm_conv2d", [&] {
    result = forward<scalar_t>(x, slope, eps, weight.contiguous(), contiguous(bias), stride, padding_mode);
  });
  return result;
}

template <bool OVERWRITES>
Six norm_conv2d_backward(const Tensor& grad, const Tensor& grad_statistics, const Tensor& output,
                         const Tensor& output_statistics, const Tensor& input, const Optional& statistics,
                         const Optional& norm_weight, const Optional& norm_bias, const Tensor& weight, double slope,
                         double eps, int64_t stride, c10::string_view padding_mode, std::array<bool, 3> mask) {
  const NormedInput x = on_cpu.normed_input("input", input, statistics, norm_weight, norm_bias);
  on_cpu.check_gradient(grad, grad_statistics, output, input, weight);
  Six result;
  AT_DISPATCH_FLOATING_TYPES(input.scalar_type(), "norm_conv2d_backward", [&] {
    result = backward<scalar_t>(grad.contiguous(), grad_statistics.contiguous(), output.contiguous(),
                                output_statistics.contiguous(), x, slope, eps, weight.contiguous(), stride,
                                padding_mode, mask, OVERWRITES);
  });
  return result;
}

std::tuple<Tensor, Tensor> norm_upsample_conv2d(const Tensor& deep, const Optional& deep_statistics,
                                                const Optional& deep_weight, const Optional& deep_bias,
                                                const Optional& skip, const Optional& skip_statistics,
                                                const Optional& skip_weight, const Optional& skip_bias,
                                                const Tensor& norm_weight, const Tensor& norm_bias,
                                                const Tensor& weight, const Optional& bias, double slope, double eps,
                                                c10::string_view mode, c10::string_view padding_mode) {
  const UpsampleInputs x = on_cpu.upsample_inputs(deep, deep_statistics, deep_weight, deep_bias, skip, skip_statistics,
                                                  skip_weight, skip_bias, norm_weight, norm_bias, slope, eps, weight);
  if (bias.has_value()) on_cpu.check("bias", *bias, deep.scalar_type(), {weight.size(0)});
  std::tuple<Tensor, Tensor> result;
  AT_DISPATCH_FLOATING_TYPES(deep.scalar_type(), "norm_upsample_conv2d",
                             [&] { result = join_forward<scalar_t>(x, contiguous(bias), mode, padding_mode); });
  return result;
}

template <bool OVERWRITES>
std::vector<Tensor> norm_upsample_conv2d_backward(
    const Tensor& grad, const Tensor& grad_statistics, const Tensor& output, const Tensor& output_statistics,
    const Tensor& deep, const Optional& deep_statistics, const Optional& deep_weight, const Optional& deep_bias,
    const Optional& skip, const Optional& skip_statistics, const Optional& skip_weight, const Optional& skip_bias,
    const Tensor& norm_weight, const Tensor& norm_bias, const Tensor& weight, double slope, double eps,
    c10::string_view mode, c10::string_view padding_mode, bool with_bias) {
  const UpsampleInputs x = on_cpu.upsample_inputs(deep, deep_statistics, deep_weight, deep_bias, skip, skip_statistics,
                                                  skip_weight, skip_bias, norm_weight, norm_bias, slope, eps, weight);
  on_cpu.check_gradient(grad, grad_statistics, output, deep, weight);
  std::vector<Tensor> result;
  AT_DISPATCH_FLOATING_TYPES(deep.scalar_type(), "norm_upsample_conv2d_backward", [&] {
    result = join_backward<scalar_t>(grad.contiguous(), grad_statistics.contiguous(), output.contiguous(),
                                     output_statistics.contiguous(), x, mode, padding_mode, with_bias, OVERWRITES);
  });
  return result;
}

}  // namespace
}  // namespace dip_fast::cpu

TORCH_LIBRARY_IMPL(dip_fast, CPU, m) {
  m.impl("norm_conv2d", TORCH_FN(dip_fast::cpu::norm_conv2d));
  m.impl("norm_conv2d_backward", TORCH_FN(dip_fast::cpu::norm_conv2d_backward<false>));
  m.impl("norm_conv2d_backward.overwriting", TORCH_FN(dip_fast::cpu::norm_conv2d_backward<true>));
  m.impl("norm_upsample_conv2d", TORCH_FN(dip_fast::cpu::norm_upsample_conv2d));
  m.impl("norm_upsample_conv2d_backward", TORCH_FN(dip_fast::cpu::norm_upsample_conv2d_backward<false>));
  m.impl("norm_upsample_conv2d_backward.overwriting", TORCH_FN(dip_fast::cpu::norm_upsample_conv2d_backward<true>));
}
