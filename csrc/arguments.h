// The arguments of the operators and their checks, which all devices share.  The checks of upsample_conv2d are those of
// dip_fast/ops/reference.py, which the fake kernel and the reference use.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <optional>

#include "padding.h"

namespace dip_fast {

using Optional = std::optional<at::Tensor>;

// An image and the batch norm that is applied when it is read.  The other three are undefined if the image is read as
// it is.
struct NormedInput {
  at::Tensor image, statistics, weight, bias;
};

// The inputs of norm_upsample_conv2d.
struct UpsampleInputs {
  NormedInput deep;
  std::optional<NormedInput> skip;
  at::Tensor norm_weight, norm_bias, weight;
  double slope, eps;
};

inline at::Tensor contiguous(const Optional& tensor) {
  return tensor.has_value() ? tensor->contiguous() : at::Tensor();
}

inline Padding padding_of(c10::string_view mode, int64_t height, int64_t width) {
  if (mode == "zeros") return Padding::zeros;
  if (mode == "replicate") return Padding::replicate;
  TORCH_CHECK_VALUE(mode == "reflect", "padding_mode must be zeros, reflect or replicate, got '", mode, "'");
  TORCH_CHECK_VALUE(height > 1 && width > 1, "padding_mode reflect needs an input of 2x2 or more, got ", height, "x",
                    width);
  return Padding::reflect;
}

inline bool is_bilinear(c10::string_view mode) {
  TORCH_CHECK_VALUE(mode == "nearest" || mode == "bilinear", "mode must be nearest or bilinear, got '", mode, "'");
  return mode == "bilinear";
}

// Checks a step in a tensor against the image that it belongs to.
inline void check_step(const at::Tensor& step, const char* name, const at::Tensor& image) {
  TORCH_CHECK_TYPE(step.scalar_type() == at::kLong && step.numel() == 1, "step must be a tensor of one int64, got ",
                   step.numel(), " of ", step.scalar_type());
  TORCH_CHECK_VALUE(step.device() == image.device(), "step must be on the device of ", name, ", ", image.device(),
                    ", got ", step.device());
}

// The dtype of weights and biases: float32 for images of 16 bits.
inline at::ScalarType parameter_type(at::ScalarType image) { return image == at::kDouble ? at::kDouble : at::kFloat; }

// The checks for one device.
struct Arguments {
  c10::DeviceType device;
  const char* place;
  bool mixed;               // whether whole layers may write another dtype than they read
  at::MemoryFormat format;  // in which the kernels read images

  void check_dense(const char* name, const at::Tensor& tensor) const {
    TORCH_CHECK_NOT_IMPLEMENTED(tensor.device().type() == device && tensor.layout() == at::kStrided, name,
                                " must be a dense tensor on ", place, ", got device ", tensor.device(), " and layout ",
                                tensor.layout());
  }

  void check(const char* name, const at::Tensor& tensor, at::ScalarType dtype, at::IntArrayRef sizes) const {
    check_dense(name, tensor);
    TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, " must be of dtype ", dtype, ", got ", tensor.scalar_type());
    TORCH_CHECK_VALUE(tensor.sizes() == sizes, name, " must be of shape ", sizes, ", got ", tensor.sizes());
  }

  NormedInput normed_input(const char* name, const at::Tensor& image, const Optional& statistics,
                           const Optional& weight, const Optional& bias) const {
    const auto dtype = image.scalar_type();
    TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16, name,
                     " must be of dtype float32 or float64 or bfloat16, got ", dtype);
    TORCH_CHECK_VALUE(image.dim() == 4 && image.size(0) == 1 && image.numel() > 0, name,
                      " must be (1, C, H, W) with C, H, W >= 1, got ", image.sizes());
    check(name, image, dtype, image.sizes());
    NormedInput result{image.contiguous(format), {}, {}, {}};
    const int64_t C = image.size(1);
    TORCH_CHECK_VALUE(statistics.has_value() == weight.has_value() && weight.has_value() == bias.has_value(), name,
                      " must come with its statistics, weight and bias, or with none of them");
    if (!statistics.has_value()) return result;
    check("statistics", *statistics, at::kDouble, {2, C});
    check("norm_weight", *weight, parameter_type(dtype), {C});
    check("norm_bias", *bias, parameter_type(dtype), {C});
    result.statistics = statistics->contiguous();
    result.weight = weight->contiguous();
    result.bias = bias->contiguous();
    return result;
  }

  // Returns the dtype of an output: that of the image, or another one that was asked for by this name.
  at::ScalarType output_type(const char* name, const at::Tensor& image, std::optional<at::ScalarType> dtype) const {
    const auto own = image.scalar_type(), wanted = dtype.value_or(own);
    const bool either = mixed && own != at::kDouble;
    TORCH_CHECK_TYPE(wanted == own || (either && (wanted == at::kFloat || wanted == at::kBFloat16)), name, " must be ",
                     either ? "float32 or bfloat16" : "that of the image", " for an image of ", own, ", got ", wanted);
    return wanted;
  }

  // Returns the side of the kernel.
  int64_t check_convolution(const at::Tensor& image, const at::Tensor& weight, int64_t stride) const {
    const int64_t C = image.size(1), kernel = weight.dim() == 4 ? weight.size(2) : 0;
    TORCH_CHECK_VALUE(weight.dim() == 4 && weight.size(0) >= 1 && weight.size(1) == C && weight.size(3) == kernel &&
                          (kernel == 1 || kernel == 3),
                      "weight must be (K, C, 1, 1) or (K, C, 3, 3) with C=", C, ", got ", weight.sizes());
    TORCH_CHECK_VALUE(stride == 1 || (stride == 2 && kernel == 3), "stride must be 1, or 2 with 3x3 taps, got ",
                      stride);
    check("weight", weight, parameter_type(image.scalar_type()), weight.sizes());
    return kernel;
  }

  UpsampleInputs upsample_inputs(const at::Tensor& deep, const Optional& deep_statistics, const Optional& deep_weight,
                                 const Optional& deep_bias, const Optional& skip, const Optional& skip_statistics,
                                 const Optional& skip_weight, const Optional& skip_bias, const at::Tensor& norm_weight,
                                 const at::Tensor& norm_bias, double slope, double eps,
                                 const at::Tensor& weight) const {
    UpsampleInputs result{normed_input("deep", deep, deep_statistics, deep_weight, deep_bias),
                          {},
                          norm_weight,
                          norm_bias,
                          weight,
                          slope,
                          eps};
    const int64_t C = deep.size(1);
    int64_t S = 0;
    const auto dtype = parameter_type(deep.scalar_type());
    if (skip.has_value()) {
      result.skip = normed_input("skip", *skip, skip_statistics, skip_weight, skip_bias);
      S = skip->size(1);
      check("skip", *skip, deep.scalar_type(), {1, S, 2 * deep.size(2), 2 * deep.size(3)});
    }
    check("norm_weight", norm_weight, dtype, {S + C});
    check("norm_bias", norm_bias, dtype, {S + C});
    TORCH_CHECK_VALUE(weight.dim() == 4 && weight.size(0) >= 1, "weight must be (K, C, 3, 3), got ", weight.sizes());
    check("weight", weight, dtype, {weight.size(0), S + C, 3, 3});
    result.norm_weight = norm_weight.contiguous();
    result.norm_bias = norm_bias.contiguous();
    result.weight = weight.contiguous();
    return result;
  }

  void check_gradient(const at::Tensor& grad, const at::Tensor& grad_statistics, const at::Tensor& output,
                      const at::Tensor& input, const at::Tensor& weight) const {
    output_type("dtype of output", input, output.scalar_type());
    check("grad", grad, output.scalar_type(), output.sizes());
    check("grad_statistics", grad_statistics, at::kDouble, {2, weight.size(0)});
  }

  void check_dtype(const char* name, const at::Tensor& tensor, const at::Tensor& input) const {
    check_dense(name, tensor);
    TORCH_CHECK_TYPE(tensor.scalar_type() == input.scalar_type(), name, " must have the dtype of input, ",
                     input.scalar_type(), ", got ", tensor.scalar_type());
  }

  // The arguments of upsample_conv2d.
  void check_upsampled(const at::Tensor& input, const at::Tensor& weight) const {
    const auto dtype = input.scalar_type();
    TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf,
                     "input must be of dtype float32, float64, bfloat16, float16, got ", dtype);
    check_dtype("input", input, input);
    check_dtype("weight", weight, input);
    TORCH_CHECK_VALUE(input.dim() == 4 && input.size(1) >= 1 && input.size(2) >= 1 && input.size(3) >= 1,
                      "input must be (N, C, H, W) with C, H, W >= 1, got ", input.sizes());
    TORCH_CHECK_VALUE(weight.dim() == 4 && weight.size(0) >= 1 && weight.size(1) == input.size(1) &&
                          weight.size(2) == 3 && weight.size(3) == 3,
                      "weight must be (K, C, 3, 3) with K >= 1 and C=", input.size(1), ", got ", weight.sizes());
  }

  void check_upsampled_bias(const at::Tensor& bias, const at::Tensor& input, int64_t K) const {
    check_dtype("bias", bias, input);
    TORCH_CHECK_VALUE(bias.dim() == 1 && bias.size(0) == K, "bias must be (K,) with K=", K, ", got ", bias.sizes());
  }

  void check_upsampled_gradient(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight) const {
    check_dtype("grad", grad, input);
    const std::array<int64_t, 4> sizes = {input.size(0), weight.size(0), 2 * input.size(2), 2 * input.size(3)};
    TORCH_CHECK_VALUE(grad.sizes() == at::IntArrayRef(sizes), "grad must have the shape of the output, ",
                      at::IntArrayRef(sizes), ", got ", grad.sizes());
  }
};

inline constexpr Arguments on_cpu{c10::DeviceType::CPU, "the CPU", true, at::MemoryFormat::Contiguous};

}  // namespace dip_fast
