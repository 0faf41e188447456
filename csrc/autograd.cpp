// The autograd functions of norm_conv2d and norm_upsample_conv2d.  They are in C++ because a step of a small network
// calls some fifty of them, and as many calls through Python would take a fifth of its time.
//
// Where nothing else refers to the gradient of the output, the backward operators overwrite its memory, which saves two
// of the largest images of a step.
#include "autograd.h"

#include <torch/csrc/autograd/custom_function.h>

#include <string>

namespace dip_fast {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Optional = OptionalTensor;
using Text = c10::string_view;

// An absent tensor is saved for the backward pass as an undefined one.
Tensor to_saved(const Optional& tensor) { return tensor.value_or(Tensor()); }
Optional from_saved(const Tensor& tensor) { return tensor.defined() ? Optional(tensor) : std::nullopt; }

// Returns whether a gradient is needed, for each tensor among the arguments; autograd numbers only the defined ones.
template <class Tensors>
std::vector<bool> needed_gradients(const AutogradContext* ctx, const Tensors& arguments) {
  std::vector<bool> result;
  size_t edge = 0;
  for (const Tensor& argument : arguments) result.push_back(argument.defined() && ctx->needs_input_grad(edge++));
  return result;
}

// The needed gradients in the order of the arguments, followed by undefined ones for the `others`, which are no
// tensors.
template <class Gradients>
variable_list select(const std::vector<bool>& needed, const Gradients& gradients, size_t others) {
  variable_list result;
  for (size_t i = 0; i < needed.size(); ++i) result.push_back(needed[i] ? gradients[i] : Tensor());
  result.resize(needed.size() + others);
  return result;
}

struct NormConv : torch::autograd::Function<NormConv> {
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const Optional& statistics,
                               const Optional& norm_weight, const Optional& norm_bias, const Tensor& weight,
                               const Optional& bias, double slope, double eps, int64_t stride,
                               const std::string& padding_mode, Dtype dtype) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [output, output_statistics] = norm_conv_operators().forward.call(
        input, statistics, norm_weight, norm_bias, weight, bias, slope, eps, stride, padding_mode, dtype);
    ctx->save_for_backward({output, output_statistics, input, to_saved(statistics), to_saved(norm_weight),
                            to_saved(norm_bias), weight, to_saved(bias)});
    ctx->saved_data["slope"] = slope;
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["stride"] = stride;
    ctx->saved_data["padding_mode"] = padding_mode;
    return {output, output_statistics};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    check_first_derivative("dip_fast::norm_conv2d");
    const NormConvOperators& operators = norm_conv_operators();
    const variable_list saved = ctx->get_saved_variables();
    const std::vector<bool> needed = needed_gradients(ctx, c10::ArrayRef(saved).slice(2));
    const bool of_input = needed[0] || needed[1] || needed[2] || needed[3];
    const auto& options = ctx->saved_data;
    const auto [input, statistics, norm_weight, norm_bias, weight, bias] =
        (may_be_overwritten(grads[0]) ? operators.overwriting : operators.backward)
            .call(grads[0], grads[1], saved[0], saved[1], saved[2], from_saved(saved[3]), from_saved(saved[4]),
                  from_saved(saved[5]), saved[6], options.at("slope").toDouble(), options.at("eps").toDouble(),
                  options.at("stride").toInt(), options.at("padding_mode").toStringRef(),
                  {of_input, needed[4], needed[5]});
    return select(needed, std::array{input, statistics, norm_weight, norm_bias, weight, bias}, 5);
  }
};

struct NormUpsampleConv : torch::autograd::Function<NormUpsampleConv> {
  static variable_list forward(AutogradContext* ctx, const Tensor& deep, const Optional& deep_statistics,
                               const Optional& deep_weight, const Optional& deep_bias, const Optional& skip,
                               const Optional& skip_statistics, const Optional& skip_weight, const Optional& skip_bias,
                               const Tensor& norm_weight, const Tensor& norm_bias, const Tensor& weight,
                               const Optional& bias, double slope, double eps, const std::string& mode,
                               const std::string& padding_mode, Dtype dtype) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [output, output_statistics] = norm_upsample_conv_operators().forward.call(
        deep, deep_statistics, deep_weight, deep_bias, skip, skip_statistics, skip_weight, skip_bias, norm_weight,
        norm_bias, weight, bias, slope, eps, mode, padding_mode, dtype);
    ctx->save_for_backward({output, output_statistics, deep, to_saved(deep_statistics), to_saved(deep_weight),
                            to_saved(deep_bias), to_saved(skip), to_saved(skip_statistics), to_saved(skip_weight),
                            to_saved(skip_bias), norm_weight, norm_bias, weight, to_saved(bias)});
    ctx->saved_data["slope"] = slope;
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["mode"] = mode;
    ctx->saved_data["padding_mode"] = padding_mode;
    return {output, output_statistics};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    check_first_derivative("dip_fast::norm_upsample_conv2d");
    const NormUpsampleConvOperators& operators = norm_upsample_conv_operators();
    const variable_list saved = ctx->get_saved_variables();
    const std::vector<bool> needed = needed_gradients(ctx, c10::ArrayRef(saved).slice(2));
    const auto& options = ctx->saved_data;
    const std::vector<Tensor> gradients =
        (may_be_overwritten(grads[0]) ? operators.overwriting : operators.backward)
            .call(grads[0], grads[1], saved[0], saved[1], saved[2], from_saved(saved[3]), from_saved(saved[4]),
                  from_saved(saved[5]), from_saved(saved[6]), from_saved(saved[7]), from_saved(saved[8]),
                  from_saved(saved[9]), saved[10], saved[11], saved[12], options.at("slope").toDouble(),
                  options.at("eps").toDouble(), options.at("mode").toStringRef(),
                  options.at("padding_mode").toStringRef(), needed[11]);
    return select(needed, gradients, 5);
  }
};

std::tuple<Tensor, Tensor> norm_conv2d(const Tensor& input, const Optional& statistics, const Optional& norm_weight,
                                       const Optional& norm_bias, const Tensor& weight, const Optional& bias,
                                       double slope, double eps, int64_t stride, Text padding_mode, Dtype dtype) {
  const variable_list outputs = NormConv::apply(input, statistics, norm_weight, norm_bias, weight, bias, slope, eps,
                                                stride, std::string(padding_mode), dtype);
  return {outputs[0], outputs[1]};
}

std::tuple<Tensor, Tensor> norm_upsample_conv2d(const Tensor& deep, const Optional& deep_statistics,
                                                const Optional& deep_weight, const Optional& deep_bias,
                                                const Optional& skip, const Optional& skip_statistics,
                                                const Optional& skip_weight, const Optional& skip_bias,
                                                const Tensor& norm_weight, const Tensor& norm_bias,
                                                const Tensor& weight, const Optional& bias, double slope, double eps,
                                                Text mode, Text padding_mode, Dtype dtype) {
  const variable_list outputs = NormUpsampleConv::apply(
      deep, deep_statistics, deep_weight, deep_bias, skip, skip_statistics, skip_weight, skip_bias, norm_weight,
      norm_bias, weight, bias, slope, eps, std::string(mode), std::string(padding_mode), dtype);
  return {outputs[0], outputs[1]};
}

}  // namespace
}  // namespace dip_fast

TORCH_LIBRARY_IMPL(dip_fast, Autograd, m) {
  m.impl("norm_conv2d", TORCH_FN(dip_fast::norm_conv2d));
  m.impl("norm_upsample_conv2d", TORCH_FN(dip_fast::norm_upsample_conv2d));
}
