#include <torch/library.h>

TORCH_LIBRARY(dip_fast, m) {
  m.def("upsample_conv2d(Tensor input, Tensor weight, Tensor? bias, str mode, str padding_mode) -> Tensor");
  // Gradients of input, weight and bias; one that the mask leaves out is an empty tensor of shape (0,).
  m.def(
      "upsample_conv2d_backward(Tensor grad, Tensor input, Tensor weight, str mode, str padding_mode, bool[3] mask) -> "
      "(Tensor, Tensor, Tensor)");
}
