// How autograd goes back through the operators of whole layers, in C++: a step of a small network calls some fifty of
// them, and as many detours through Python would take a fifth of its time.
//
// Where nobody else can see the gradient that arrives, the operators may work in its memory: the largest images of a
// step are then two fewer.
#include <ATen/ATen.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace dip_fast {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Optional = std::optional<Tensor>;
using Text = c10::string_view;

template <class Signature>
c10::TypedOperatorHandle<Signature> operator_named(const char* name, const char* overload = "") {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).template typed<Signature>();
}

Tensor or_none(const Optional& tensor) { return tensor.value_or(Tensor()); }
Optional or_none(const Tensor& tensor) { return tensor.defined() ? Optional(tensor) : std::nullopt; }

bool nobody_elses(const Tensor& grad) {
  return grad.use_count() == 1 && grad.has_storage() && grad.is_contiguous() && !at::isTensorSubclassLike(grad) &&
         grad.storage().use_count() == 1;
}

void only_first(const char* name) {
  TORCH_CHECK_NOT_IMPLEMENTED(!at::GradMode::is_enabled(), name,
                              ": it has first derivatives only; leave out create_graph, or use the plain network");
}

// Whether each tensor among the arguments wants a gradient; autograd counts only those that are there.
template <class Tensors>
std::vector<bool> wanted(const AutogradContext* ctx, const Tensors& arguments) {
  std::vector<bool> result;
  size_t edge = 0;
  for (const Tensor& argument : arguments) result.push_back(argument.defined() && ctx->needs_input_grad(edge++));
  return result;
}

// Gradients in the order of the arguments, followed by `others` that have none.
template <class Gradients>
variable_list only(const std::vector<bool>& wants, const Gradients& gradients, size_t others) {
  variable_list result;
  for (size_t i = 0; i < wants.size(); ++i) result.push_back(wants[i] ? gradients[i] : Tensor());
  result.resize(wants.size() + others);
  return result;
}

struct NormConv : torch::autograd::Function<NormConv> {
  using Forward = std::tuple<Tensor, Tensor>(const Tensor&, const Optional&, const Optional&, const Optional&,
                                             const Tensor&, const Optional&, double, double, int64_t, Text);
  using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>(
      const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Optional&, const Optional&,
      const Optional&, const Tensor&, double, double, int64_t, Text, std::array<bool, 3>);

  static variable_list forward(AutogradContext* ctx, const Tensor& input, const Optional& statistics,
                               const Optional& norm_weight, const Optional& norm_bias, const Tensor& weight,
                               const Optional& bias, double slope, double eps, int64_t stride,
                               const std::string& padding_mode) {
    static const auto op = operator_named<Forward>("dip_fast::norm_conv2d");
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [output, of_output] =
        op.call(input, statistics, norm_weight, norm_bias, weight, bias, slope, eps, stride, padding_mode);
    ctx->save_for_backward({output, of_output, input, or_none(statistics), or_none(norm_weight), or_none(norm_bias),
                            weight, or_none(bias)});
    ctx->saved_data["slope"] = slope;
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["stride"] = stride;
    ctx->saved_data["padding_mode"] = padding_mode;
    return {output, of_output};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    only_first("dip_fast::norm_conv2d");
    static const auto op = operator_named<Backward>("dip_fast::norm_conv2d_backward"),
                      overwriting = operator_named<Backward>("dip_fast::norm_conv2d_backward", "overwriting");
    const variable_list saved = ctx->get_saved_variables();
    const std::vector<bool> wants = wanted(ctx, c10::ArrayRef(saved).slice(2));
    const bool into_image = wants[0] || wants[1] || wants[2] || wants[3];
    const auto& options = ctx->saved_data;
    const auto [image, statistics, norm_weight, norm_bias, weight, bias] =
        (nobody_elses(grads[0]) ? overwriting : op)
            .call(grads[0], grads[1], saved[0], saved[1], saved[2], or_none(saved[3]), or_none(saved[4]),
                  or_none(saved[5]), saved[6], options.at("slope").toDouble(), options.at("eps").toDouble(),
                  options.at("stride").toInt(), options.at("padding_mode").toStringRef(),
                  {into_image, wants[4], wants[5]});
    return only(wants, std::array{image, statistics, norm_weight, norm_bias, weight, bias}, 4);
  }
};

struct NormUpsampleConv : torch::autograd::Function<NormUpsampleConv> {
  using Forward = std::tuple<Tensor, Tensor>(const Tensor&, const Optional&, const Optional&, const Optional&,
                                             const Optional&, const Optional&, const Optional&, const Optional&,
                                             const Tensor&, const Tensor&, const Tensor&, const Optional&, double,
                                             double, Text, Text);
  using Backward = std::vector<Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                       const Optional&, const Optional&, const Optional&, const Optional&,
                                       const Optional&, const Optional&, const Optional&, const Tensor&, const Tensor&,
                                       const Tensor&, double, double, Text, Text, bool);

  static variable_list forward(AutogradContext* ctx, const Tensor& deep, const Optional& deep_statistics,
                               const Optional& deep_weight, const Optional& deep_bias, const Optional& skip,
                               const Optional& skip_statistics, const Optional& skip_weight, const Optional& skip_bias,
                               const Tensor& norm_weight, const Tensor& norm_bias, const Tensor& weight,
                               const Optional& bias, double slope, double eps, const std::string& mode,
                               const std::string& padding_mode) {
    static const auto op = operator_named<Forward>("dip_fast::norm_upsample_conv2d");
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [output, of_output] =
        op.call(deep, deep_statistics, deep_weight, deep_bias, skip, skip_statistics, skip_weight, skip_bias,
                norm_weight, norm_bias, weight, bias, slope, eps, mode, padding_mode);
    ctx->save_for_backward({output, of_output, deep, or_none(deep_statistics), or_none(deep_weight), or_none(deep_bias),
                            or_none(skip), or_none(skip_statistics), or_none(skip_weight), or_none(skip_bias),
                            norm_weight, norm_bias, weight, or_none(bias)});
    ctx->saved_data["slope"] = slope;
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["mode"] = mode;
    ctx->saved_data["padding_mode"] = padding_mode;
    return {output, of_output};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    only_first("dip_fast::norm_upsample_conv2d");
    static const auto op = operator_named<Backward>("dip_fast::norm_upsample_conv2d_backward"),
                      overwriting = operator_named<Backward>("dip_fast::norm_upsample_conv2d_backward", "overwriting");
    const variable_list saved = ctx->get_saved_variables();
    const std::vector<bool> wants = wanted(ctx, c10::ArrayRef(saved).slice(2));
    const auto& options = ctx->saved_data;
    const std::vector<Tensor> gradients =
        (nobody_elses(grads[0]) ? overwriting : op)
            .call(grads[0], grads[1], saved[0], saved[1], saved[2], or_none(saved[3]), or_none(saved[4]),
                  or_none(saved[5]), or_none(saved[6]), or_none(saved[7]), or_none(saved[8]), or_none(saved[9]),
                  saved[10], saved[11], saved[12], options.at("slope").toDouble(), options.at("eps").toDouble(),
                  options.at("mode").toStringRef(), options.at("padding_mode").toStringRef(), wants[11]);
    return only(wants, gradients, 4);
  }
};

std::tuple<Tensor, Tensor> norm_conv2d(const Tensor& input, const Optional& statistics, const Optional& norm_weight,
                                       const Optional& norm_bias, const Tensor& weight, const Optional& bias,
                                       double slope, double eps, int64_t stride, Text padding_mode) {
  const variable_list made = NormConv::apply(input, statistics, norm_weight, norm_bias, weight, bias, slope, eps,
                                             stride, std::string(padding_mode));
  return {made[0], made[1]};
}

std::tuple<Tensor, Tensor> norm_upsample_conv2d(const Tensor& deep, const Optional& deep_statistics,
                                                const Optional& deep_weight, const Optional& deep_bias,
                                                const Optional& skip, const Optional& skip_statistics,
                                                const Optional& skip_weight, const Optional& skip_bias,
                                                const Tensor& norm_weight, const Tensor& norm_bias,
                                                const Tensor& weight, const Optional& bias, double slope, double eps,
                                                Text mode, Text padding_mode) {
  const variable_list made = NormUpsampleConv::apply(
      deep, deep_statistics, deep_weight, deep_bias, skip, skip_statistics, skip_weight, skip_bias, norm_weight,
      norm_bias, weight, bias, slope, eps, std::string(mode), std::string(padding_mode));
  return {made[0], made[1]};
}

}  // namespace
}  // namespace dip_fast

TORCH_LIBRARY_IMPL(dip_fast, Autograd, m) {
  m.impl("norm_conv2d", TORCH_FN(dip_fast::norm_conv2d));
  m.impl("norm_upsample_conv2d", TORCH_FN(dip_fast::norm_upsample_conv2d));
}
