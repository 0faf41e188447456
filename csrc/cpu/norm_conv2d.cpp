// The operator norm_conv2d on a CPU: a convolution of a raw image, whose batch norm and activation are applied while it
// is read, and the statistics of the output.  Checks, allocation, sharing among threads, registration.
//
// With x raw, of mean m and variance v over its n pixels, r = 1 / sqrt(v + eps):
//
//   u = gamma r (x - m) + beta      a = leaky(u)      y = conv(a)
//
// The backward pass gets g = dL/dy and the gradients of y's mean and variance, and reads
//
//   G = g + dmean / n + 2 dvariance (y - mean) / n
//
// With t = leaky'(u) conv^T(G) it returns dx = gamma r t, without the part that comes through the statistics of x. That
// part is in the gradients of these, and the layer that wrote x adds it:
//
//   dbeta = sum t      dgamma = r sum t (x - m)      dm = -gamma r sum t      dv = -gamma r^3 sum t (x - m) / 2
#include <ATen/ATen.h>
#include <torch/library.h>

#include <array>
#include <tuple>
#include <vector>

#include "layer_convolution.h"
#include "norm_act.h"

namespace dip_fast::cpu {
namespace {

// ---- how a convolution is computed

// The convolution of an image with a weight, its adjoint, and the padded copies that the two read; winograd has no
// adjoint of its own.
struct Plan {
  ConvShape forward, adjoint;
  PaddedCopy input, gradient;
};

Plan plan_of(const Tensor& image, const Tensor& weight, int64_t stride, c10::string_view padding_mode) {
  const int64_t C = image.size(1), H = image.size(2), W = image.size(3), K = weight.size(0);
  const int64_t kernel = on_cpu.check_convolution(image, weight, stride);
  const Padding padding = kernel == 1 ? Padding::zeros : padding_of(padding_mode, H, W);
  if (kernel == 1)
    return {{Algorithm::pointwise, C, K, 1, H * W, 1, H * W}, {Algorithm::pointwise, K, C, 1, H * W, 1, H * W}, {}, {}};
  const int64_t h = (H + 1) / 2, w = (W + 1) / 2;
  const PaddedCopy input{H, W, 1, padding, 2 * w + 2, true};
  if (stride == 2)
    return {{Algorithm::strided, C, K, h, w, h, w},
            {Algorithm::strided_gradient, K, C, h + 1, w + 1, H + 2, W + 2},
            input,
            {h, w, 1, Padding::zeros, w + 2, false}};
  return {{Algorithm::winograd, C, K, h, w, H, W}, {}, input, {}};
}

// Makes padded copies of rows of an image: pad(rows, channel, copy, line) fills the rows of one channel.
template <class T, class F>
struct PaddedRows {
  int64_t channels, cols;
  F pad;

  int64_t size(Rows most) const { return channels * most.count * cols + cols + 64; }
  Window<T> operator()(Rows rows, T* to) const {
    T* line = to + channels * rows.count * cols;
    for (int64_t c = 0; c < channels; ++c) pad(rows, c, to + c * rows.count * cols, line);
    return {to, rows};
  }
};

template <class I, class T = Computed<I>>
auto padded_rows(const PaddedCopy& s, const NormAct<I>& x) {
  const auto pad = [&](Rows rows, int64_t c, T* copy, T* line) {
    layer_kernels<I>().pad(s, rows, x.channel(c), x.scale[c], x.shift[c], x.slope, copy, line);
  };
  return PaddedRows<T, decltype(pad)>{x.channels, s.cols, pad};
}

template <class O, class T = Computed<O>>
auto padded_rows(const PaddedCopy& s, const OutputGrad<O>& g) {
  const auto pad = [&](Rows rows, int64_t k, T* copy, T* line) {
    const int64_t at = k * s.height * s.width;
    layer_kernels<O>().pad_gradient(s, rows, g.grad + at, g.output == nullptr ? nullptr : g.output + at, g.constant[k],
                                    g.factor[k], copy, line);
  };
  return PaddedRows<T, decltype(pad)>{static_cast<int64_t>(g.constant.size()), s.cols, pad};
}

template <class T, class O, class Convolution, class Padded>
void convolve_padded(Convolution* convolution, const ConvShape& s, const Padded& padded, const T* weights,
                     const T* bias, O* output, std::vector<Moments>* moments) {
  convolve<T>(convolution, s, padded.size(layer_kernels<T>().input_rows(s, 0)), padded, Activation<T>{}, weights, bias,
              output, moments);
}

// ---- the forward pass

template <class I, class O>
std::tuple<Tensor, Tensor> forward(const NormedInput& x, double slope, double eps, const Tensor& weight,
                                   const Tensor& bias, int64_t stride, c10::string_view padding_mode,
                                   at::ScalarType dtype) {
  using T = Computed<I>;
  const LayerKernels<I, O>& kernel = layer_kernels<I, O>();
  const Plan plan = plan_of(x.image, weight, stride, padding_mode);
  const NormAct<I> norm_act(x, slope, eps);
  const bool pointwise = plan.forward.algorithm == Algorithm::pointwise;
  const int64_t K = weight.size(0), height = pointwise ? norm_act.height : plan.forward.height,
                width = pointwise ? norm_act.width : plan.forward.width;
  Tensor output = workspace::empty({1, K, height, width}, x.image.options().dtype(dtype));
  const Buffer<T> weights = packed(kernel, plan.forward, weight.const_data_ptr<T>(), false);
  const T* b = bias.defined() ? bias.const_data_ptr<T>() : nullptr;
  std::vector<Moments> moments;
  if (pointwise) {
    const auto image = [&](Rows rows, T*) { return Window<I>{norm_act.image, rows}; };
    convolve<T>(kernel.pointwise, plan.forward, 0, image, norm_act.activation(), weights.get(), b,
                made_image_of<O>(output), &moments);
  } else {
    convolve_padded<T>(kernel.convolve, plan.forward, padded_rows(plan.input, norm_act), weights.get(), b,
                       made_image_of<O>(output), &moments);
  }
  return {output, statistics_of(moments, K)};
}

// ---- the backward pass

using GradientTuple = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The operands of a backward pass and the gradients that it computes.  Those that the mask leaves out are of shape
// (0,).
template <class I, class O>
class Backward {
  using T = Computed<I>;

 public:
  Backward(const Tensor& grad, const Tensor& grad_statistics, const Tensor& output, const Tensor& statistics,
           const NormedInput& x, double slope, double eps, const Tensor& weight, int64_t stride,
           c10::string_view padding_mode, std::array<bool, 3> mask, bool overwrites)
      : plan_(plan_of(x.image, weight, stride, padding_mode)),
        x_(x),
        weight_(weight),
        norm_act_(x, slope, eps),
        output_grad_(grad, output, statistics, grad_statistics),
        C_(norm_act_.channels),
        K_(weight.size(0)),
        pixels_(output.size(2) * output.size(3)),
        mask_(mask),
        normed_(mask[0] && !norm_act_.identity),
        norm_(x, normed_) {
    const auto nothing = [&] { return at::empty({0}, x.image.options()); };
    // With one pixel for each output the gradient of the input may overwrite that of the output, because all of this,
    // or its part for a block of pixels, has been read before.
    const bool in_place = overwrites && stride == 1 && C_ == K_ && std::is_same_v<I, O>;
    grad_input_ = !mask[0] ? nothing() : in_place ? grad : workspace::empty(x.image.sizes(), x.image.options());
    grad_weight_ = mask[1] ? at::empty(weight.sizes(), weight.options()) : nothing();
    grad_bias_ = mask[2] ? at::empty({K_}, weight.options()) : nothing();
  }

  GradientTuple run() {
    if (plan_.forward.algorithm == Algorithm::pointwise) {
      pointwise();
    } else if (plan_.forward.algorithm == Algorithm::winograd) {
      winograd();
    } else {
      if (mask_[2]) bias_gradient();
      if (mask_[1]) weight_gradient();
      if (mask_[0]) input_gradient();
    }
    return {grad_input_, norm_.statistics, norm_.weight, norm_.bias, grad_weight_, grad_bias_};
  }

 private:
  // All gradients in one pass.
  void pointwise() {
    const ConvShape& s = plan_.forward;
    const int64_t items = kernel_.items(s), size = kernel_.pointwise_sums_size(s), row = (size - K_) / K_;
    const Buffer<T> total(size), weights = packed(kernel_, plan_.adjoint, weight_.const_data_ptr<T>(), true);
    std::vector<double> sums(normed_ ? items * 2 * C_ : 0);
    I* to = mask_[0] ? made_image_of<I>(grad_input_) : nullptr;
    sum_items<T>(items, size, kernel_.pointwise_gradient_scratch(s), total.get(),
                 [&](int64_t item, T* own, T* scratch) {
                   kernel_.pointwise_gradient(s, output_grad_.raw(), norm_act_.image, norm_act_.activation(),
                                              norm_act_.mean.data(), weights.get(), to,
                                              normed_ ? sums.data() + item * 2 * C_ : nullptr, own, item, scratch);
                 });
    for (int64_t c = 0; normed_ && c < C_; ++c) {
      double all[2] = {};
      for (int64_t item = 0; item < items; ++item)
        for (int i = 0; i < 2; ++i) all[i] += sums[(item * C_ + c) * 2 + i];
      norm_.set(x_, norm_act_, c, all);
    }
    if (mask_[1])
      for (int64_t k = 0; k < K_; ++k) std::copy_n(total.get() + k * row, C_, grad_weight_.data_ptr<T>() + k * C_);
    if (mask_[2]) std::copy_n(total.get() + K_ * row, K_, grad_bias_.data_ptr<T>());
  }

  // Also all gradients in one pass, but for the adjoint of the padding.
  void winograd() {
    const ConvShape& s = plan_.forward;
    const auto input = padded_rows(plan_.input, norm_act_);
    const WinogradBackward<O> gradients(s, output_grad_.raw(), weight_.const_data_ptr<T>(),
                                        input.size(kernel_.winograd_gradient_input_rows(s, 0)), input, mask_[0],
                                        mask_[1]);
    if (mask_[1]) gradients.weight_gradient(grad_weight_.data_ptr<T>());
    if (mask_[2]) gradients.bias_gradient(grad_bias_.data_ptr<T>());
    if (mask_[0]) unpad(plan_.input, [&](int64_t c) { return gradients.input_gradient(c, plan_.input); });
  }

  // For each channel the adjoint of the padding, of a padded copy whose gradient is padded(c), and that of the batch
  // norm and the activation before it.
  template <class F>
  void unpad(const PaddedCopy& s, F padded) {
    for_each_item<T>(C_, 3 * s.cols, [&](int64_t c, T* lines) {
      double sums[2];
      kernel_.normed_adjoint(s, padded(c), norm_act_.normed(c), lines,
                             made_image_of<I>(grad_input_) + c * norm_act_.count, sums);
      if (normed_) norm_.set(x_, norm_act_, c, sums);
    });
  }

  // The sum of G over the pixels.  The constants and factors of G sum to the gradient of the mean.
  void bias_gradient() {
    for_each_channel(K_, [&](int64_t k) {
      const O* g = output_grad_.grad + k * pixels_;
      double sum = 0;
      for (int64_t t = 0; t < pixels_; ++t) sum += as_computed(g[t]);
      grad_bias_.data_ptr<T>()[k] = static_cast<T>(sum + output_grad_.grad_mean[k]);
    });
  }

  void weight_gradient() {
    const ConvShape& s = plan_.forward;
    const auto input = padded_rows(plan_.input, norm_act_);
    const auto gradient = padded_rows(plan_.gradient, output_grad_);
    const int64_t size = kernel_.sums_size(s), own = aligned(kernel_.weight_gradient_scratch(s)),
                  input_size = aligned(input.size(kernel_.weight_gradient_input_rows(s, 0))),
                  gradient_size = gradient.size(kernel_.weight_gradient_grad_rows(s, 0));
    const Buffer<T> total(size);
    sum_items<T>(kernel_.weight_gradient_items(s), size, own + input_size + gradient_size, total.get(),
                 [&](int64_t item, T* sums, T* scratch) {
                   T *input_rows = scratch + own, *gradient_rows = input_rows + input_size;
                   kernel_.weight_gradient(s, input(kernel_.weight_gradient_input_rows(s, item), input_rows),
                                           gradient(kernel_.weight_gradient_grad_rows(s, item), gradient_rows), sums,
                                           item, scratch);
                 });
    for_each_range(C_, 8, [&](int64_t begin, int64_t end) {
      kernel_.finish(s, total.get(), begin, end, grad_weight_.data_ptr<T>());
    });
  }

  // The adjoint convolution, then the adjoint of the padding.
  void input_gradient() {
    const ConvShape& s = plan_.adjoint;
    const Buffer<T> padded(C_ * s.height * s.width);
    {
      const Buffer<T> weights = packed(kernel_, s, weight_.const_data_ptr<T>(), true);
      convolve_padded<T>(kernel_.adjoint, s, padded_rows(plan_.gradient, output_grad_), weights.get(), nullptr,
                         padded.get(), nullptr);
    }
    PaddedCopy copy = plan_.input;
    copy.cols = s.width, copy.split = false;
    unpad(copy,
          [&](int64_t c) { return BandsOfRows<T>{padded.get() + c * s.height * s.width, 1, 0, s.height, s.height}; });
  }

  const LayerKernels<I, O>& kernel_ = layer_kernels<I, O>();
  const Plan plan_;
  const NormedInput& x_;
  const Tensor& weight_;
  const NormAct<I> norm_act_;
  const OutputGrad<O> output_grad_;
  const int64_t C_, K_, pixels_;  // pixels: of the output
  const std::array<bool, 3> mask_;
  const bool normed_;
  const NormGradients<T> norm_;
  Tensor grad_input_, grad_weight_, grad_bias_;
};

// ---- the operators

std::tuple<Tensor, Tensor> norm_conv2d(const Tensor& input, const Optional& statistics, const Optional& norm_weight,
                                       const Optional& norm_bias, const Tensor& weight, const Optional& bias,
                                       double slope, double eps, int64_t stride, c10::string_view padding_mode,
                                       std::optional<at::ScalarType> dtype) {
  const NormedInput x = on_cpu.normed_input("input", input, statistics, norm_weight, norm_bias);
  if (bias.has_value()) on_cpu.check("bias", *bias, parameter_type(input.scalar_type()), {weight.size(0)});
  const at::ScalarType output = on_cpu.output_type("dtype", input, dtype);
  std::tuple<Tensor, Tensor> result;
  with_stored(input.scalar_type(), output, [&]<class I, class O>(I, O) {
    result = forward<I, O>(x, slope, eps, weight.contiguous(), contiguous(bias), stride, padding_mode, output);
  });
  return result;
}

template <bool OVERWRITES>
GradientTuple norm_conv2d_backward(const Tensor& grad, const Tensor& grad_statistics, const Tensor& output,
                                   const Tensor& output_statistics, const Tensor& input, const Optional& statistics,
                                   const Optional& norm_weight, const Optional& norm_bias, const Tensor& weight,
                                   double slope, double eps, int64_t stride, c10::string_view padding_mode,
                                   std::array<bool, 3> mask) {
  const NormedInput x = on_cpu.normed_input("input", input, statistics, norm_weight, norm_bias);
  on_cpu.check_gradient(grad, grad_statistics, output, input, weight);
  const Tensor g = grad.contiguous(), ds = grad_statistics.contiguous(), y = output.contiguous(),
               s = output_statistics.contiguous(), w = weight.contiguous();
  GradientTuple result;
  with_stored(input.scalar_type(), output.scalar_type(), [&]<class I, class O>(I, O) {
    result = Backward<I, O>(g, ds, y, s, x, slope, eps, w, stride, padding_mode, mask, OVERWRITES).run();
  });
  return result;
}

}  // namespace
}  // namespace dip_fast::cpu

TORCH_LIBRARY_IMPL(dip_fast, CPU, m) {
  m.impl("norm_conv2d", TORCH_FN(dip_fast::cpu::norm_conv2d));
  m.impl("norm_conv2d_backward", TORCH_FN(dip_fast::cpu::norm_conv2d_backward<false>));
  m.impl("norm_conv2d_backward.overwriting", TORCH_FN(dip_fast::cpu::norm_conv2d_backward<true>));
}
