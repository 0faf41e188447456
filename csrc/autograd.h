// What the autograd functions share: the operators below autograd, and what is done with gradients.
#pragma once

#include <ATen/ATen.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <tuple>
#include <vector>

namespace dip_fast {

using OptionalTensor = std::optional<at::Tensor>;
using Dtype = std::optional<at::ScalarType>;

template <class Signature>
c10::TypedOperatorHandle<Signature> operator_named(const char* name, const char* overload = "") {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).template typed<Signature>();
}

// norm_conv2d and its backward operators.
struct NormConvOperators {
  using Forward = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                                                     const OptionalTensor&, const at::Tensor&, const OptionalTensor&,
                                                     double, double, int64_t, c10::string_view, Dtype);
  using Backward = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>(
      const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
      const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const at::Tensor&, double, double, int64_t,
      c10::string_view, std::array<bool, 3>);

  c10::TypedOperatorHandle<Forward> forward = operator_named<Forward>("dip_fast::norm_conv2d");
  c10::TypedOperatorHandle<Backward> backward = operator_named<Backward>("dip_fast::norm_conv2d_backward"),
                                     overwriting =
                                         operator_named<Backward>("dip_fast::norm_conv2d_backward", "overwriting");
};

// norm_upsample_conv2d and its backward operators.
struct NormUpsampleConvOperators {
  using Forward = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                                                     const OptionalTensor&, const OptionalTensor&,
                                                     const OptionalTensor&, const OptionalTensor&,
                                                     const OptionalTensor&, const at::Tensor&, const at::Tensor&,
                                                     const at::Tensor&, const OptionalTensor&, double, double,
                                                     c10::string_view, c10::string_view, Dtype);
  using Backward = std::vector<at::Tensor>(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                           const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                                           const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                                           const OptionalTensor&, const OptionalTensor&, const at::Tensor&,
                                           const at::Tensor&, const at::Tensor&, double, double, c10::string_view,
                                           c10::string_view, bool);

  c10::TypedOperatorHandle<Forward> forward = operator_named<Forward>("dip_fast::norm_upsample_conv2d");
  c10::TypedOperatorHandle<Backward> backward = operator_named<Backward>("dip_fast::norm_upsample_conv2d_backward"),
                                     overwriting = operator_named<Backward>("dip_fast::norm_upsample_conv2d_backward",
                                                                            "overwriting");
};

inline const NormConvOperators& norm_conv_operators() {
  static const NormConvOperators operators;
  return operators;
}
inline const NormUpsampleConvOperators& norm_upsample_conv_operators() {
  static const NormUpsampleConvOperators operators;
  return operators;
}

// Returns whether the caller holds the only reference to a gradient and to its memory.
inline bool may_be_overwritten(const at::Tensor& grad) {
  return grad.use_count() == 1 && grad.has_storage() && grad.is_contiguous() && !at::isTensorSubclassLike(grad) &&
         grad.storage().use_count() == 1;
}

inline void check_first_derivative(const char* name) {
  TORCH_CHECK_NOT_IMPLEMENTED(!at::GradMode::is_enabled(), name,
                              ": it has first derivatives only; leave out create_graph, or use the plain network");
}

}  // namespace dip_fast
