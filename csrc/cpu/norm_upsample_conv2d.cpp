// The operator norm_upsample_conv2d on a CPU: the deep image is upsampled by two and concatenated with the skip image;
// a batch norm and a convolution follow.  Checks, allocation, sharing among threads, registration.
//
// Both images are raw; their batch norms and activations, a = leaky(u), are those of norm_conv2d.cpp.  With Up the
// upsampling, and m and v the mean and the variance of each channel over its n pixels, r = 1 / sqrt(v + eps):
//
//   z = a_skip for the skip channels, Up a_deep for the deep ones      b = gamma r (z - m) + beta      y = conv(b)
//
// The batch norm in the middle commutes with Up, so it is applied to the small image,  conv(b) = conv(b_skip) +
// upsample_conv2d(b_deep),  and its statistics are computed from the small image too (Channels::upsampled_moments).
// They are functions of z, so their gradients are part of the one of z.  With h = dL/db:
//
//   dbeta = sum h      dgamma = r sum h (z - m)
//   dz = gamma r h - gamma r sum h / n - gamma r^3 sum h (z - m) / n (z - m)
#include <ATen/ATen.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "layer_convolution.h"
#include "norm_act.h"
#include "upsample_conv2d.h"

namespace dip_fast::cpu {
namespace {

// ---- the batch norm in the middle

// The statistics of this batch norm and the inputs of the convolution that follow from it.
//
// The convolution is winograd (algorithms.h), which reads padded copies; but bilinear's forward pass is upsample_conv2d
// with a convolution of the skip channels beside it (skip_conv.h): its blur, which comes after the products, is for the
// upsampled channels alone.
template <class I>
struct MidNorm {
  using T = Computed<I>;

  Shape shape{};  // of upsample_conv2d
  bool is_winograd;
  PaddedCopy deep_padding{}, skip_padding{};  // of the two images; not winograd: only the skip image is padded
  double eps;
  NormAct<I> deep;
  std::optional<NormAct<I>> skip;
  int64_t S;  // skip channels
  const T *weight, *bias;
  Buffer<T> deep_input, skip_input;       // b_deep before the upsampling, b_skip with its padding
  std::vector<double> mean, inverse_std;  // m and r, of the skip channels first

  MidNorm(const UpsampleInputs& x, c10::string_view mode, c10::string_view padding_mode, bool backward)
      : is_winograd(backward || !is_bilinear(mode)),
        eps(x.eps),
        deep(x.deep, x.slope, x.eps),
        S(x.skip ? x.skip->image.size(1) : 0),
        weight(x.norm_weight.const_data_ptr<T>()),
        bias(x.norm_bias.const_data_ptr<T>()),
        deep_input(deep.channels * (deep.height + 2) * (deep.width + 2)),
        skip_input(S * (2 * deep.height + 2) * (2 * deep.width + 2)),
        mean(S + deep.channels),
        inverse_std(S + deep.channels) {
    const int64_t H = deep.height, W = deep.width;
    shape.N = 1, shape.C = deep.channels, shape.K = x.weight.size(0), shape.H = H, shape.W = W;
    shape.bilinear = is_bilinear(mode);
    shape.padding = padding_of(padding_mode, 2 * H, 2 * W);
    shape.threads = 4;  // a constant: the statistics of the output depend on where the items are cut
    skip_padding = {2 * H, 2 * W, 1, shape.padding, 2 * W + 2, is_winograd};
    // Of an image upsampled by nearest the pixel beside the last one is its double, so reflection is replication.
    // Bilinear is computed with replicated borders (ring.h).
    const bool zeros = shape.padding == Padding::zeros && !shape.bilinear;
    deep_padding = {H, W, 1, zeros ? Padding::zeros : Padding::replicate, W + 2, false};
    if (x.skip) skip.emplace(*x.skip, x.slope, x.eps);
    for_each_item<T>(S + deep.channels, room(), [&](int64_t c, T* memory) {
      c < S ? make_skip_channel(c, memory) : make_deep_channel(c - S, memory);
    });
  }

  ConvShape winograd() const {
    return {Algorithm::winograd, S + shape.C, shape.K, shape.H,       shape.W,
            2 * shape.H,         2 * shape.W, shape.C, shape.bilinear};
  }
  // The memory for an activated channel, and for some rows of a padded copy.
  int64_t room() const { return activated_size() + 3 * skip_padding.cols + 64; }
  int64_t activated_size() const { return aligned((S > 0 ? 4 : 1) * deep.count); }
  Window<T> window() const { return {skip_input.get(), {0, 2 * shape.H + 2}, deep_input.get()}; }

 private:
  struct Affine {
    T scale, shift;
  };

  // Sets the statistics of a channel of the concatenated image from its activated image a, and returns the affine map
  // of the batch norm.
  Affine measure(int64_t channel, const NormAct<I>& from, bool bilinear, const T* a) {
    double variance;
    layer_kernels<T>().upsampled_moments(from.height, from.width, bilinear, a, &mean[channel], &variance);
    inverse_std[channel] = 1 / std::sqrt(variance + eps);
    const double gamma = weight[channel] * inverse_std[channel];
    return {static_cast<T>(gamma), static_cast<T>(bias[channel] - mean[channel] * gamma)};
  }

  void make_skip_channel(int64_t c, T* a) {
    skip->activate(c, a);
    pad(skip_padding, c, a, measure(c, *skip, false, a), skip_input.get());
  }

  void make_deep_channel(int64_t c, T* a) {
    deep.activate(c, a);
    const Affine affine = measure(S + c, deep, shape.bilinear, a);
    if (is_winograd)
      pad(deep_padding, c, a, affine, deep_input.get());
    else
      layer_kernels<T>().norm_act(deep.count, a, affine.scale, affine.shift, T(1), deep_input.get() + c * deep.count);
  }

  void pad(const PaddedCopy& to, int64_t c, T* a, Affine affine, T* copies) const {
    const int64_t rows = to.height + 2;
    layer_kernels<T>().pad(to, {0, rows}, a, affine.scale, affine.shift, T(1), copies + c * rows * to.cols,
                           a + activated_size());
  }
};

// ---- the forward pass

template <class I, class O>
std::tuple<Tensor, Tensor> forward(const UpsampleInputs& x, const Tensor& bias, c10::string_view mode,
                                   c10::string_view padding_mode, at::ScalarType dtype) {
  using T = Computed<I>;
  const MidNorm<I> mid(x, mode, padding_mode, false);
  const Shape& s = mid.shape;
  const LayerKernels<I, O>& kernel = layer_kernels<I, O>();
  const UpsampleKernels<T>& upsample = upsample_kernels<T>();
  Tensor output = workspace::empty({1, s.K, 2 * s.H, 2 * s.W}, x.deep.image.options().dtype(dtype));
  const T* b = bias.defined() ? bias.const_data_ptr<T>() : nullptr;
  if (!s.bilinear) {
    const Buffer<T> weights = packed(kernel, mid.winograd(), x.weight.contiguous().const_data_ptr<T>(), false);
    std::vector<Moments> moments;
    convolve<T>(
        kernel.convolve, mid.winograd(), 0, [&](Rows, T*) { return mid.window(); }, Activation<T>{}, weights.get(), b,
        made_image_of<O>(output), &moments);
    return {output, statistics_of(moments, s.K)};
  }
  const Tensor deep_weight = x.weight.narrow(1, mid.S, s.C).contiguous(),
               skip_weight = x.weight.narrow(1, 0, mid.S).contiguous();
  const Buffer<T> weights(upsample.packed_size(s));
  for_each_range(s.K, 16, [&](int64_t begin, int64_t end) {
    kernel.pack_upsampled(s, deep_weight.const_data_ptr<T>(), begin, end, weights.get());
  });
  const SkipConv<T> skip{mid.skip_input.get(), mid.S, skip_weight.const_data_ptr<T>()};
  const int64_t items = upsample.forward_items(s);
  std::vector<Moments> moments(items * s.K);
  for_each_item<T>(items, upsample.forward_scratch(s, mid.S), [&](int64_t item, T* scratch) {
    kernel.upsampled(s, mid.deep_input.get(), weights.get(), b, made_image_of<O>(output), item, scratch, &skip,
                     moments.data() + item * s.K);
  });
  return {output, statistics_of(moments, s.K)};
}

// ---- the backward pass

template <class I, class O>
class Backward {
  using T = Computed<I>;

 public:
  Backward(const Tensor& grad, const Tensor& grad_statistics, const Tensor& output, const Tensor& statistics,
           const UpsampleInputs& x, c10::string_view mode, c10::string_view padding_mode, bool with_bias)
      : x_(x),
        mid_(x, mode, padding_mode, true),
        output_grad_(grad, output, statistics, grad_statistics),
        with_bias_(with_bias),
        grad_deep_(workspace::empty(x.deep.image.sizes(), x.deep.image.options())),
        grad_skip_(x.skip ? workspace::empty(x.skip->image.sizes(), x.deep.image.options())
                          : at::empty({0}, x.deep.image.options())),
        deep_norm_(x.deep, !mid_.deep.identity),
        skip_norm_(x.skip ? *x.skip : x.deep, x.skip && !mid_.skip->identity),
        grad_norm_weight_(at::empty_like(x.norm_weight)),
        grad_norm_bias_(at::empty_like(x.norm_bias)),
        grad_weight_(at::empty_like(x.weight)),
        grad_bias_(at::empty({with_bias ? s_.K : 0}, x.weight.options())),
        has_ring_(s_.bilinear && s_.padding != Padding::replicate),
        ring_lines_(has_ring_ ? 4 * kernel_.ring_lines_size(s_) : 0) {}

  std::vector<Tensor> run() {
    const Tensor weight = x_.weight.contiguous();
    const auto window = [&](Rows, T*) { return mid_.window(); };
    const WinogradBackward<O> gradients(mid_.winograd(), output_grad_.raw(), weight.const_data_ptr<T>(), 0, window,
                                        true, true);
    gradients.weight_gradient(grad_weight_.data_ptr<T>());
    if (with_bias_) gradients.bias_gradient(grad_bias_.data_ptr<T>());
    if (has_ring_) ring_gradients();
    const auto unpad = [&](int64_t c, T* lines, T* to) {
      const bool of_deep = c >= mid_.S;
      const PaddedCopy& padding = of_deep ? mid_.deep_padding : mid_.skip_padding;
      kernel_.bands_adjoint(padding, gradients.input_gradient(c, padding), lines, to);
      if (of_deep && has_ring_) kernel_.add_ring_lines(s_, ring_lines_.get(), c - mid_.S, to);
    };
    each_skip_channel(unpad);
    each_deep_channel(unpad);
    return {grad_deep_,        deep_norm_.statistics, deep_norm_.weight, deep_norm_.bias,
            grad_skip_,        skip_norm_.statistics, skip_norm_.weight, skip_norm_.bias,
            grad_norm_weight_, grad_norm_bias_,       grad_weight_,      grad_bias_};
  }

 private:
  // What the ring of outputs adds to the gradient of the weights, and, in ring_lines_, to that of b.
  void ring_gradients() {
    const Tensor weight = x_.weight.narrow(1, mid_.S, s_.C).contiguous(), gradient = at::empty_like(weight);
    const Buffer<T> packed = packed_weight(s_, weight.const_data_ptr<T>(), true), total(kernel_.ring_sums_size(s_));
    sum_items<T>(4, kernel_.ring_sums_size(s_), kernel_.ring_scratch(s_), total.get(),
                 [&](int64_t side, T* sums, T* scratch) {
                   kernel_.ring_gradient(s_, output_grad_.raw(), mid_.deep_input.get(), packed.get(), sums,
                                         ring_lines_.get() + side * kernel_.ring_lines_size(s_), side, scratch);
                 });
    upsample_kernels<T>().finish(s_, total.get(), 0, s_.K, gradient.data_ptr<T>(), nullptr);
    grad_weight_.narrow(1, mid_.S, s_.C).add_(gradient);
  }

  // gradient(c, lines, to) computes the gradient of channel c of b, from which those of the images and the norms
  // follow.
  template <class F>
  void each_skip_channel(F gradient) {
    for_each_item<T>(mid_.S, 2 * mid_.room(), [&](int64_t c, T* memory) {
      T *grad = memory + mid_.room(), *lines = memory + mid_.activated_size();
      gradient(c, lines, grad);
      norm_gradients(*x_.skip, *mid_.skip, 0, false, c, memory, grad, made_image_of<I>(grad_skip_), skip_norm_);
    });
  }
  template <class F>
  void each_deep_channel(F gradient) {
    for_each_item<T>(s_.C, 2 * mid_.room(), [&](int64_t c, T* memory) {
      T *grad = memory + mid_.room(), *lines = memory + mid_.activated_size();
      gradient(mid_.S + c, lines, grad);
      norm_gradients(x_.deep, mid_.deep, mid_.S, s_.bilinear, c, memory, grad, made_image_of<I>(grad_deep_),
                     deep_norm_);
    });
  }

  // From the gradient of channel c of b, which is overwritten, to that of x: through the batch norm in the middle,
  // where it is channel first + c, then through the activation and the batch norm of the image.  `a` is memory for the
  // channel.
  void norm_gradients(const NormedInput& x, const NormAct<I>& norm_act, int64_t first, bool bilinear, int64_t c, T* a,
                      T* grad, I* grad_images, const NormGradients<T>& norm) const {
    const int64_t channel = first + c;
    norm_act.activate(c, a);
    double sums[2];
    kernel_.norm_sums(norm_act.count, grad, a, mid_.mean[channel], sums);
    const double r = mid_.inverse_std[channel], gamma = mid_.weight[channel], n = static_cast<double>(norm_act.count);
    grad_norm_bias_.data_ptr<T>()[channel] = static_cast<T>(sums[0]);
    grad_norm_weight_.data_ptr<T>()[channel] = static_cast<T>(r * sums[1]);
    kernel_.norm_gradient(norm_act.height, norm_act.width, bilinear, grad, a, mid_.mean[channel], gamma * r,
                          -gamma * r * sums[0] / n, -gamma * r * r * r * sums[1] / n, grad);
    I* to = grad_images + c * norm_act.count;
    const NormedChannel<I> normed = norm_act.normed(c);
    const PaddedCopy whole{norm_act.height, norm_act.width, 0, Padding::zeros, norm_act.width, false};
    kernel_.normed_adjoint(whole, {grad, 1, 0, norm_act.height, norm_act.height}, normed, a, to, sums);
    if (!norm_act.identity) norm.set(x, norm_act, c, sums);
  }

  const LayerKernels<I, O>& kernel_ = layer_kernels<I, O>();
  const UpsampleInputs& x_;
  const MidNorm<I> mid_;
  const Shape& s_ = mid_.shape;
  const OutputGrad<O> output_grad_;
  const bool with_bias_;
  const Tensor grad_deep_, grad_skip_;
  const NormGradients<T> deep_norm_, skip_norm_;
  const Tensor grad_norm_weight_, grad_norm_bias_, grad_weight_, grad_bias_;
  const bool has_ring_;
  const Buffer<T> ring_lines_;
};

// ---- the operators

std::tuple<Tensor, Tensor> norm_upsample_conv2d(
    const Tensor& deep, const Optional& deep_statistics, const Optional& deep_weight, const Optional& deep_bias,
    const Optional& skip, const Optional& skip_statistics, const Optional& skip_weight, const Optional& skip_bias,
    const Tensor& norm_weight, const Tensor& norm_bias, const Tensor& weight, const Optional& bias, double slope,
    double eps, c10::string_view mode, c10::string_view padding_mode, std::optional<at::ScalarType> dtype) {
  const UpsampleInputs x = on_cpu.upsample_inputs(deep, deep_statistics, deep_weight, deep_bias, skip, skip_statistics,
                                                  skip_weight, skip_bias, norm_weight, norm_bias, slope, eps, weight);
  if (bias.has_value()) on_cpu.check("bias", *bias, parameter_type(deep.scalar_type()), {weight.size(0)});
  const at::ScalarType output = on_cpu.output_type("dtype", deep, dtype);
  std::tuple<Tensor, Tensor> result;
  with_stored(deep.scalar_type(), output,
              [&]<class I, class O>(I, O) { result = forward<I, O>(x, contiguous(bias), mode, padding_mode, output); });
  return result;
}

std::vector<Tensor> norm_upsample_conv2d_backward(
    const Tensor& grad, const Tensor& grad_statistics, const Tensor& output, const Tensor& output_statistics,
    const Tensor& deep, const Optional& deep_statistics, const Optional& deep_weight, const Optional& deep_bias,
    const Optional& skip, const Optional& skip_statistics, const Optional& skip_weight, const Optional& skip_bias,
    const Tensor& norm_weight, const Tensor& norm_bias, const Tensor& weight, double slope, double eps,
    c10::string_view mode, c10::string_view padding_mode, bool with_bias) {
  const UpsampleInputs x = on_cpu.upsample_inputs(deep, deep_statistics, deep_weight, deep_bias, skip, skip_statistics,
                                                  skip_weight, skip_bias, norm_weight, norm_bias, slope, eps, weight);
  on_cpu.check_gradient(grad, grad_statistics, output, deep, weight);
  const Tensor g = grad.contiguous(), ds = grad_statistics.contiguous(), y = output.contiguous(),
               s = output_statistics.contiguous();
  std::vector<Tensor> result;
  with_stored(deep.scalar_type(), output.scalar_type(), [&]<class I, class O>(I, O) {
    result = Backward<I, O>(g, ds, y, s, x, mode, padding_mode, with_bias).run();
  });
  return result;
}

}  // namespace
}  // namespace dip_fast::cpu

TORCH_LIBRARY_IMPL(dip_fast, CPU, m) {
  m.impl("norm_upsample_conv2d", TORCH_FN(dip_fast::cpu::norm_upsample_conv2d));
  m.impl("norm_upsample_conv2d_backward", TORCH_FN(dip_fast::cpu::norm_upsample_conv2d_backward));
  // It may overwrite the gradient, and has no use for that.
  m.impl("norm_upsample_conv2d_backward.overwriting", TORCH_FN(dip_fast::cpu::norm_upsample_conv2d_backward));
}
