#include <torch/library.h>

#include <string>

TORCH_LIBRARY(dip_fast, m) {
  m.def("upsample_conv2d(Tensor input, Tensor weight, Tensor? bias, str mode, str padding_mode) -> Tensor");
  // Gradients of input, weight and bias; one that the mask leaves out is an empty tensor of shape (0,).
  m.def(
      "upsample_conv2d_backward(Tensor grad, Tensor input, Tensor weight, str mode, str padding_mode, bool[3] mask) -> "
      "(Tensor, Tensor, Tensor)");

  // Convolution of an image that is kept as a convolution left it: normalised with its statistics, (2, C), the mean and
  // variance of each channel in float64, and activated, where it is read.  Gives the raw output and its statistics.
  m.def(
      "norm_conv2d(Tensor input, Tensor? statistics, Tensor? norm_weight, Tensor? norm_bias, Tensor weight, "
      "Tensor? bias, float slope, float eps, int stride, str padding_mode) -> (Tensor, Tensor)");
  // Gradients of input with statistics, norm_weight and norm_bias, of weight, and of bias; (0,) where not wanted.  The
  // overload may work in the memory of grad, and give it back as the first result.
  const std::string of_conv =
      " grad, Tensor grad_statistics, Tensor output, Tensor output_statistics, Tensor input, Tensor? statistics, "
      "Tensor? norm_weight, Tensor? norm_bias, Tensor weight, float slope, float eps, int stride, str padding_mode, "
      "bool[3] mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)";
  m.def(("norm_conv2d_backward(Tensor" + of_conv).c_str());
  m.def(("norm_conv2d_backward.overwriting(Tensor(a!)" + of_conv).c_str());
  // Upsampling by two of `deep`, concatenation after `skip`, batch norm and convolution.
  m.def(
      "norm_upsample_conv2d(Tensor deep, Tensor? deep_statistics, Tensor? deep_weight, Tensor? deep_bias, "
      "Tensor? skip, Tensor? skip_statistics, Tensor? skip_weight, Tensor? skip_bias, Tensor norm_weight, "
      "Tensor norm_bias, Tensor weight, Tensor? bias, float slope, float eps, str mode, str padding_mode) -> "
      "(Tensor, Tensor)");
  // Gradients of all tensors, in their order; (0,) for those that are not there.  The overload as above.
  const std::string of_join =
      " grad, Tensor grad_statistics, Tensor output, Tensor output_statistics, Tensor deep, Tensor? deep_statistics, "
      "Tensor? deep_weight, Tensor? deep_bias, Tensor? skip, Tensor? skip_statistics, Tensor? skip_weight, "
      "Tensor? skip_bias, Tensor norm_weight, Tensor norm_bias, Tensor weight, float slope, float eps, str mode, "
      "str padding_mode, bool with_bias) -> Tensor[]";
  m.def(("norm_upsample_conv2d_backward(Tensor" + of_join).c_str());
  m.def(("norm_upsample_conv2d_backward.overwriting(Tensor(a!)" + of_join).c_str());

  // z / divisor plus normal noise that depends on seed, step and place alone.
  m.def("perturb(Tensor z, float deviation, int seed, int step, float divisor=1) -> Tensor");
  // The same, of a step that is counted where z is: a tensor of one int64.
  m.def("perturb.counted(Tensor z, float deviation, int seed, Tensor step, float divisor=1) -> Tensor");
}
