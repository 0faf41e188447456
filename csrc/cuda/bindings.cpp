// The operators on a GPU, from tensors to pointers: checks, allocation, registration.
//
// Images are channels last.  float32 images are multiplied in TF32 where PyTorch's own convolutions may use it
// (torch.backends.cudnn.allow_tf32), 16-bit images in their own format; sums are float32, or float64 for float64.
#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <torch/library.h>

#include <array>
#include <tuple>
#include <vector>

#include "arguments.h"
#include "call.h"
#include "layers.h"

namespace dip_fast::on_gpu {
namespace {

using namespace dip_fast::cuda;

using at::Tensor;
using Text = c10::string_view;
constexpr auto LAST = at::MemoryFormat::ChannelsLast;

#ifdef DIP_FAST_EMULATED
constexpr Arguments arguments{c10::DeviceType::CPU, "the CPU", false, LAST};
#else
constexpr Arguments arguments{c10::DeviceType::CUDA, "a GPU", false, LAST};
#endif

// Calls `use` with the number formats for images of this dtype.
template <class Use>
void with_kind(at::ScalarType image, Use use) {
  switch (image) {
    case at::kDouble:
      return use(KindFloat64{});
    case at::kBFloat16:
      return use(KindBFloat16{});
    case at::kHalf:
      return use(KindHalf{});
    default:
      if (at::globalContext().allowTF32CuDNN(at::Float32Op::CONV)) return use(KindTF32{});
      return use(KindFloat32{});
  }
}

template <class K>
const typename K::Stored* stored(const Tensor& image) {
  return static_cast<const typename K::Stored*>(image.const_data_ptr());
}

template <class T>
T* out(const Tensor& tensor) {
  return tensor.defined() && tensor.numel() > 0 ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

template <class T>
const T* in(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

// Kernels use vector loads of four channels.
Tensor aligned(const Tensor& image) {
  const Tensor result = image.contiguous(LAST);
  return reinterpret_cast<uintptr_t>(result.const_data_ptr()) % 16 == 0 ? result : result.clone(LAST);
}

template <class K>
cuda::NormedInput<K> normed_input(const dip_fast::NormedInput& x) {
  return {{stored<K>(x.image), int(x.image.size(2)), int(x.image.size(3)), int(x.image.size(1))},
          in<double>(x.statistics),
          in<typename K::Sum>(x.weight),
          in<typename K::Sum>(x.bias)};
}

// Kernels pack a row and a column into 32 bits, see TileLoader.
void check_sides(int64_t height, int64_t width) {
  TORCH_CHECK_VALUE(height < 32768 && width < 32768, "images on a GPU must have sides below 32768, got ", height, "x",
                    width);
}

Options convolution_options(double slope, double eps, int64_t taps, int64_t stride, int64_t H, int64_t W,
                            Text padding_mode) {
  check_sides(H, W);
  return {slope, eps, int(stride), taps == 1 ? Padding::zeros : padding_of(padding_mode, H, W), false};
}
// H, W: the sides of the upsampled image.
Options upsampling_options(double slope, double eps, int64_t H, int64_t W, Text padding_mode, Text mode) {
  check_sides(H, W);
  return {slope, eps, 1, padding_of(padding_mode, H, W), is_bilinear(mode)};
}

dip_fast::NormedInput aligned(dip_fast::NormedInput x) {
  x.image = aligned(x.image);
  return x;
}

Tensor image_of(at::IntArrayRef sizes, const Tensor& like) { return at::empty(sizes, like.options(), LAST); }
Tensor no_tensor(const Tensor& like) { return at::empty({0}, like.options()); }
Tensor like_if(bool wanted, const Tensor& like) { return wanted ? at::empty_like(like) : no_tensor(like); }
Tensor statistics_of(int64_t K, const Tensor& like) { return at::empty({2, K}, like.options().dtype(at::kDouble)); }

// The gradients of an image and of its norm; empty tensors where they are not wanted.
struct NormedInputGradTensors {
  Tensor image, statistics, weight, bias;

  NormedInputGradTensors(const dip_fast::NormedInput& x, bool wanted)
      : image(wanted ? image_of(x.image.sizes(), x.image) : no_tensor(x.image)),
        statistics(like_or_none(x.statistics, wanted, x.image)),
        weight(like_or_none(x.weight, wanted, x.image)),
        bias(like_or_none(x.bias, wanted, x.image)) {}

  template <class K>
  NormedInputGrad<K> pointers() const {
    return {out<typename K::Stored>(image), out<double>(statistics), out<typename K::Sum>(weight),
            out<typename K::Sum>(bias)};
  }

 private:
  static Tensor like_or_none(const Tensor& tensor, bool wanted, const Tensor& image) {
    return wanted && tensor.defined() ? at::empty_like(tensor) : no_tensor(image);
  }
};

std::tuple<Tensor, Tensor> norm_conv2d(const Tensor& input, const Optional& statistics, const Optional& norm_weight,
                                       const Optional& norm_bias, const Tensor& weight, const Optional& bias,
                                       double slope, double eps, int64_t stride, Text padding_mode,
                                       std::optional<at::ScalarType> dtype) {
  arguments.output_type("dtype", input, dtype);
  const dip_fast::NormedInput x = aligned(arguments.normed_input("input", input, statistics, norm_weight, norm_bias));
  const int64_t taps = arguments.check_convolution(input, weight, stride), H = input.size(2), W = input.size(3),
                K_ = weight.size(0);
  if (bias.has_value()) arguments.check("bias", *bias, weight.scalar_type(), {K_});
  const Options options = convolution_options(slope, eps, taps, stride, H, W, padding_mode);
  Call call(input);
  const Tensor output = image_of({1, K_, (H + stride - 1) / stride, (W + stride - 1) / stride}, input),
               statistics_out = statistics_of(K_, input), w = weight.contiguous(), b = contiguous(bias);
  with_kind(input.scalar_type(), [&]<class K>(K) {
    using Sum = typename K::Sum;
    cuda::norm_conv2d<K>(normed_input<K>(x), in<Sum>(w), in<Sum>(b), int(K_), int(taps), options,
                         out<typename K::Stored>(output), out<double>(statistics_out), call.context);
  });
  return {output, statistics_out};
}

using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Six norm_conv2d_backward(const Tensor& grad, const Tensor& grad_statistics, const Tensor& output,
                         const Tensor& output_statistics, const Tensor& input, const Optional& statistics,
                         const Optional& norm_weight, const Optional& norm_bias, const Tensor& weight, double slope,
                         double eps, int64_t stride, Text padding_mode, std::array<bool, 3> mask) {
  const dip_fast::NormedInput x = aligned(arguments.normed_input("input", input, statistics, norm_weight, norm_bias));
  const int64_t taps = arguments.check_convolution(input, weight, stride), H = input.size(2), W = input.size(3);
  arguments.check_gradient(grad, grad_statistics, output, input, weight);
  const Options options = convolution_options(slope, eps, taps, stride, H, W, padding_mode);
  Call call(input);
  const Tensor g = aligned(grad), y = aligned(output), s = output_statistics.contiguous(),
               ds = grad_statistics.contiguous(), w = weight.contiguous();
  const NormedInputGradTensors grad_input(x, mask[0]);
  const Tensor grad_weight = like_if(mask[1], w),
               grad_bias = at::empty({mask[2] ? weight.size(0) : 0}, weight.options());
  with_kind(input.scalar_type(), [&]<class K>(K) {
    using Sum = typename K::Sum;
    cuda::norm_conv2d_backward<K>({stored<K>(g), stored<K>(y), in<double>(s), in<double>(ds)}, normed_input<K>(x),
                                  in<Sum>(w), int(weight.size(0)), int(taps), options,
                                  grad_input.template pointers<K>(), out<Sum>(grad_weight), out<Sum>(grad_bias),
                                  call.context);
  });
  return {grad_input.image, grad_input.statistics, grad_input.weight, grad_input.bias, grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor> norm_upsample_conv2d(const Tensor& deep, const Optional& deep_statistics,
                                                const Optional& deep_weight, const Optional& deep_bias,
                                                const Optional& skip, const Optional& skip_statistics,
                                                const Optional& skip_weight, const Optional& skip_bias,
                                                const Tensor& norm_weight, const Tensor& norm_bias,
                                                const Tensor& weight, const Optional& bias, double slope, double eps,
                                                Text mode, Text padding_mode, std::optional<at::ScalarType> dtype) {
  arguments.output_type("dtype", deep, dtype);
  UpsampleInputs x = arguments.upsample_inputs(deep, deep_statistics, deep_weight, deep_bias, skip, skip_statistics,
                                               skip_weight, skip_bias, norm_weight, norm_bias, slope, eps, weight);
  const int64_t H = 2 * deep.size(2), W = 2 * deep.size(3), K_ = weight.size(0);
  if (bias.has_value()) arguments.check("bias", *bias, weight.scalar_type(), {K_});
  const Options options = upsampling_options(slope, eps, H, W, padding_mode, mode);
  Call call(deep);
  x.deep = aligned(x.deep);
  if (x.skip) x.skip = aligned(*x.skip);
  const Tensor output = image_of({1, K_, H, W}, deep), statistics_out = statistics_of(K_, deep), b = contiguous(bias);
  with_kind(deep.scalar_type(), [&]<class K>(K) {
    using Sum = typename K::Sum;
    cuda::norm_upsample_conv2d<K>(normed_input<K>(x.deep), x.skip ? normed_input<K>(*x.skip) : cuda::NormedInput<K>{},
                                  {in<Sum>(x.norm_weight), in<Sum>(x.norm_bias)}, in<Sum>(x.weight), in<Sum>(b),
                                  int(K_), options, out<typename K::Stored>(output), out<double>(statistics_out),
                                  call.context);
  });
  return {output, statistics_out};
}

std::vector<Tensor> norm_upsample_conv2d_backward(
    const Tensor& grad, const Tensor& grad_statistics, const Tensor& output, const Tensor& output_statistics,
    const Tensor& deep, const Optional& deep_statistics, const Optional& deep_weight, const Optional& deep_bias,
    const Optional& skip, const Optional& skip_statistics, const Optional& skip_weight, const Optional& skip_bias,
    const Tensor& norm_weight, const Tensor& norm_bias, const Tensor& weight, double slope, double eps, Text mode,
    Text padding_mode, bool with_bias) {
  UpsampleInputs x = arguments.upsample_inputs(deep, deep_statistics, deep_weight, deep_bias, skip, skip_statistics,
                                               skip_weight, skip_bias, norm_weight, norm_bias, slope, eps, weight);
  arguments.check_gradient(grad, grad_statistics, output, deep, weight);
  const int64_t H = 2 * deep.size(2), W = 2 * deep.size(3);
  const Options options = upsampling_options(slope, eps, H, W, padding_mode, mode);
  Call call(deep);
  x.deep = aligned(x.deep);
  if (x.skip) x.skip = aligned(*x.skip);
  const Tensor g = aligned(grad), y = aligned(output), s = output_statistics.contiguous(),
               ds = grad_statistics.contiguous();
  const NormedInputGradTensors grad_deep(x.deep, true), grad_skip(x.skip ? *x.skip : x.deep, x.skip.has_value());
  const Tensor grad_norm_weight = at::empty_like(x.norm_weight), grad_norm_bias = at::empty_like(x.norm_bias),
               grad_weight = at::empty_like(x.weight),
               grad_bias = at::empty({with_bias ? weight.size(0) : 0}, weight.options());
  with_kind(deep.scalar_type(), [&]<class K>(K) {
    using Sum = typename K::Sum;
    cuda::norm_upsample_conv2d_backward<K>(
        {stored<K>(g), stored<K>(y), in<double>(s), in<double>(ds)}, normed_input<K>(x.deep),
        x.skip ? normed_input<K>(*x.skip) : cuda::NormedInput<K>{}, {in<Sum>(x.norm_weight), in<Sum>(x.norm_bias)},
        in<Sum>(x.weight), int(weight.size(0)), options, grad_deep.template pointers<K>(),
        grad_skip.template pointers<K>(), {out<Sum>(grad_norm_weight), out<Sum>(grad_norm_bias)}, out<Sum>(grad_weight),
        out<Sum>(grad_bias), call.context);
  });
  return {grad_deep.image,  grad_deep.statistics, grad_deep.weight, grad_deep.bias,
          grad_skip.image,  grad_skip.statistics, grad_skip.weight, grad_skip.bias,
          grad_norm_weight, grad_norm_bias,       grad_weight,      grad_bias};
}

// ---- upsample_conv2d: norm_upsample_conv2d without norms and skip image, once for each image of a batch

Tensor parameters(const Tensor& tensor) { return tensor.to(parameter_type(tensor.scalar_type())).contiguous(); }

template <class K>
cuda::NormedInput<K> image_at(const Tensor& images, int64_t n) {
  const int H = int(images.size(2)), W = int(images.size(3)), C = int(images.size(1));
  return {{stored<K>(images) + n * H * W * C, H, W, C}, nullptr, nullptr, nullptr};
}

Tensor upsample_conv2d(const Tensor& input, const Tensor& weight, const Optional& bias, Text mode, Text padding_mode) {
  arguments.check_upsampled(input, weight);
  const int64_t K_ = weight.size(0), H = 2 * input.size(2), W = 2 * input.size(3);
  if (bias.has_value()) arguments.check_upsampled_bias(*bias, input, K_);
  const Options options = upsampling_options(0, 0, H, W, padding_mode, mode);
  Call call(input);
  const Tensor x = aligned(input), w = parameters(weight), b = bias.has_value() ? parameters(*bias) : Tensor(),
               output = image_of({input.size(0), K_, H, W}, input);
  with_kind(input.scalar_type(), [&]<class K>(K) {
    using Sum = typename K::Sum;
    for (int64_t n = 0; n < input.size(0); ++n)
      cuda::norm_upsample_conv2d<K>(image_at<K>(x, n), {}, {}, in<Sum>(w), in<Sum>(b), int(K_), options,
                                    out<typename K::Stored>(output) + n * K_ * H * W, nullptr, call.context);
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> upsample_conv2d_backward(const Tensor& grad, const Tensor& input,
                                                            const Tensor& weight, Text mode, Text padding_mode,
                                                            std::array<bool, 3> mask) {
  arguments.check_upsampled(input, weight);
  arguments.check_upsampled_gradient(grad, input, weight);
  const int64_t N = input.size(0), K_ = weight.size(0), H = 2 * input.size(2), W = 2 * input.size(3);
  const Options options = upsampling_options(0, 0, H, W, padding_mode, mode);
  Call call(input);
  const Tensor g = aligned(grad), x = aligned(input), w = parameters(weight),
               grad_input = mask[0] ? image_of(input.sizes(), input) : no_tensor(input);
  // Each image has its own gradient of the parameters; they are added afterwards.
  std::vector<int64_t> sizes = w.sizes().vec();
  sizes.insert(sizes.begin(), N);
  const Tensor weight_grads = mask[1] ? at::empty(sizes, w.options()) : no_tensor(w),
               bias_grads = mask[2] ? at::empty({N, K_}, w.options()) : no_tensor(w);
  with_kind(input.scalar_type(), [&]<class K>(K) {
    using Sum = typename K::Sum;
    for (int64_t n = 0; n < N; ++n) {
      const auto at = [&](Sum* to, int64_t size) { return to == nullptr ? nullptr : to + n * size; };
      NormedInputGrad<K> pointers;
      if (mask[0]) pointers.image = out<typename K::Stored>(grad_input) + n * x.numel() / N;
      cuda::norm_upsample_conv2d_backward<K>({stored<K>(g) + n * K_ * H * W}, image_at<K>(x, n), {}, {}, in<Sum>(w),
                                             int(K_), options, pointers, {}, {}, at(out<Sum>(weight_grads), w.numel()),
                                             at(out<Sum>(bias_grads), K_), call.context);
    }
  });
  const auto dtype = input.scalar_type();
  const auto summed = [&](bool wanted, const Tensor& each) {
    return wanted ? (N == 1 ? each.squeeze(0) : each.sum(0)).to(dtype) : no_tensor(input);
  };
  return {grad_input, summed(mask[1], weight_grads), summed(mask[2], bias_grads)};
}

// ---- perturb

Tensor perturbed(const Tensor& z, double deviation, int64_t seed, const int64_t* step, int64_t value, double divisor) {
  Call call(z);
  const Tensor from = z.contiguous(), output = at::empty(from.sizes(), from.options().dtype(at::kFloat));
  const auto run = [&]<class Z>(const Z* source) {
    cuda::perturb<Z>(source, z.numel(), float(deviation), float(divisor), uint64_t(seed), step, uint64_t(value),
                     output.mutable_data_ptr<float>(), call.context.stream);
  };
  switch (z.scalar_type()) {
    case at::kFloat:
      run(from.const_data_ptr<float>());
      break;
    case at::kByte:
      run(from.const_data_ptr<uint8_t>());
      break;
    case at::kChar:
      run(from.const_data_ptr<int8_t>());
      break;
    default:
      TORCH_CHECK_TYPE(false, "z must be of dtype float32, uint8 or int8, got ", z.scalar_type());
  }
  return output;
}

Tensor perturb(const Tensor& z, double deviation, int64_t seed, int64_t step, double divisor) {
  return perturbed(z, deviation, seed, nullptr, step, divisor);
}

Tensor perturb_counted(const Tensor& z, double deviation, int64_t seed, const Tensor& step, double divisor) {
  check_step(step, "z", z);
  return perturbed(z, deviation, seed, step.const_data_ptr<int64_t>(), 0, divisor);
}

}  // namespace
}  // namespace dip_fast::on_gpu

TORCH_LIBRARY_IMPL(dip_fast, DIP_FAST_GPU_KEY, m) {
  m.impl("norm_conv2d", TORCH_FN(dip_fast::on_gpu::norm_conv2d));
  m.impl("norm_conv2d_backward", TORCH_FN(dip_fast::on_gpu::norm_conv2d_backward));
  m.impl("norm_conv2d_backward.overwriting", TORCH_FN(dip_fast::on_gpu::norm_conv2d_backward));
  m.impl("norm_upsample_conv2d", TORCH_FN(dip_fast::on_gpu::norm_upsample_conv2d));
  m.impl("norm_upsample_conv2d_backward", TORCH_FN(dip_fast::on_gpu::norm_upsample_conv2d_backward));
  m.impl("norm_upsample_conv2d_backward.overwriting", TORCH_FN(dip_fast::on_gpu::norm_upsample_conv2d_backward));
  m.impl("upsample_conv2d", TORCH_FN(dip_fast::on_gpu::upsample_conv2d));
  m.impl("upsample_conv2d_backward", TORCH_FN(dip_fast::on_gpu::upsample_conv2d_backward));
  m.impl("perturb", TORCH_FN(dip_fast::on_gpu::perturb));
  m.impl("perturb.counted", TORCH_FN(dip_fast::on_gpu::perturb_counted));
}
