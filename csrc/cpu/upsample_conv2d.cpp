// The operator upsample_conv2d on a CPU: checks, allocation, sharing among threads, registration.
#include "upsample_conv2d.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <tuple>

#include "arguments.h"

namespace dip_fast::cpu {
namespace {

using at::Tensor;

Shape checked_shape(const Tensor& input, const Tensor& weight, c10::string_view mode, c10::string_view padding_mode) {
  Shape shape{};
  shape.threads = thread_count();
  shape.bilinear = is_bilinear(mode);
  shape.padding = padding_of(padding_mode, 2, 2);  // any upsampled image is large enough for reflection
  on_cpu.check_upsampled(input, weight);
  shape.N = input.size(0), shape.C = input.size(1), shape.H = input.size(2), shape.W = input.size(3);
  shape.K = weight.size(0);
  return shape;
}

// ---- the operator for one dtype; all tensors are contiguous

template <class T>
void forward(const Shape& shape, const T* input, const T* weight, const T* bias, T* output) {
  const UpsampleKernels<T>& kernel = upsample_kernels<T>();
  const Buffer<T> packed = packed_weight(shape, weight, false);
  for_each_item<T>(kernel.forward_items(shape), kernel.forward_scratch(shape, -1), [&](int64_t item, T* scratch) {
    kernel.forward(shape, input, packed.get(), bias, output, item, scratch, nullptr, nullptr);
  });
}

// ---- the operators

// Converts to the dtype of the computation: float32 for bfloat16 and float16.
Tensor to_compute(const Tensor& tensor) {
  return tensor.to(tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat).contiguous();
}

template <class T>
T* pointer(const Tensor& tensor) {
  return tensor.defined() ? tensor.data_ptr<T>() : nullptr;
}

Tensor upsample_conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                       c10::string_view mode, c10::string_view padding_mode) {
  const Shape shape = checked_shape(input, weight, mode, padding_mode);
  Tensor b;
  if (bias.has_value()) {
    on_cpu.check_upsampled_bias(*bias, input, shape.K);
    b = to_compute(*bias);
  }
  const Tensor x = to_compute(input), w = to_compute(weight);
  Tensor output = at::empty({shape.N, shape.K, 2 * shape.H, 2 * shape.W}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "upsample_conv2d", [&] {
    forward<scalar_t>(shape, pointer<scalar_t>(x), pointer<scalar_t>(w), pointer<scalar_t>(b),
                      pointer<scalar_t>(output));
  });
  return output.to(input.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> upsample_conv2d_backward(const Tensor& grad, const Tensor& input,
                                                            const Tensor& weight, c10::string_view mode,
                                                            c10::string_view padding_mode, std::array<bool, 3> mask) {
  const Shape shape = checked_shape(input, weight, mode, padding_mode);
  on_cpu.check_upsampled_gradient(grad, input, weight);
  const Tensor g = to_compute(grad), x = to_compute(input), w = to_compute(weight);
  const auto empty = [&](bool needed, at::IntArrayRef sizes) {
    return at::empty(needed ? sizes : at::IntArrayRef({0}), x.options());
  };
  const Tensor grad_input = empty(mask[0], x.sizes()), grad_weight = empty(mask[1], w.sizes()),
               grad_bias = empty(mask[2], {shape.K});
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "upsample_conv2d_backward", [&] {
    if (mask[0])
      data_gradient<scalar_t>(shape, pointer<scalar_t>(g), pointer<scalar_t>(w), pointer<scalar_t>(grad_input));
    if (mask[1] || mask[2])
      weight_gradient<scalar_t>(shape, pointer<scalar_t>(g), pointer<scalar_t>(x),
                                mask[1] ? pointer<scalar_t>(grad_weight) : nullptr,
                                mask[2] ? pointer<scalar_t>(grad_bias) : nullptr);
  });
  const auto dtype = input.scalar_type();
  return {grad_input.to(dtype), grad_weight.to(dtype), grad_bias.to(dtype)};
}

}  // namespace
}  // namespace dip_fast::cpu

TORCH_LIBRARY_IMPL(dip_fast, CPU, m) {
  m.impl("upsample_conv2d", TORCH_FN(dip_fast::cpu::upsample_conv2d));
  m.impl("upsample_conv2d_backward", TORCH_FN(dip_fast::cpu::upsample_conv2d_backward));
}
