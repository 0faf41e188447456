// The autograd kernel of upsample_conv2d in the C++ library.  Its gradients are registered from Python, so a call that
// requires them is an error here.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/library.h>

namespace dip_fast {
namespace {

at::Tensor forward(c10::DispatchKeySet keys, const at::Tensor& input, const at::Tensor& weight,
                   const std::optional<at::Tensor>& bias, c10::string_view mode, c10::string_view padding_mode) {
  const bool needs_grad =
      input.requires_grad() || weight.requires_grad() || (bias.has_value() && bias->requires_grad());
  TORCH_CHECK_NOT_IMPLEMENTED(
      !(at::GradMode::is_enabled() && needs_grad),
      "dip_fast::upsample_conv2d: the C++ library is for inference, and an argument requires a gradient; use "
      "torch::NoGradGuard, or train from Python (import dip_fast.ops)");
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("dip_fast::upsample_conv2d", "")
                             .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                                               c10::string_view, c10::string_view)>();
  return op.redispatch(keys & c10::after_autograd_keyset, input, weight, bias, mode, padding_mode);
}

}  // namespace
}  // namespace dip_fast

TORCH_LIBRARY_IMPL(dip_fast, Autograd, m) { m.impl("upsample_conv2d", TORCH_FN(dip_fast::forward)); }
