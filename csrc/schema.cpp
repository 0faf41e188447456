// The schemas of the operators.
#include <torch/library.h>

#include <string>

TORCH_LIBRARY(dip_fast, m) {
  m.def("upsample_conv2d(Tensor input, Tensor weight, Tensor? bias, str mode, str padding_mode) -> Tensor");
  // The gradients of input, weight and bias; those that the mask leaves out are of shape (0,).
  m.def(
      "upsample_conv2d_backward(Tensor grad, Tensor input, Tensor weight, str mode, str padding_mode, bool[3] mask) -> "
      "(Tensor, Tensor, Tensor)");

  // Convolution of a raw image, stored as a convolution wrote it.  The image is normalised and activated while it is
  // read; statistics is (2, C), the mean and the variance of each channel in float64.  Returns the raw output and its
  // statistics.  dtype is that of the output, by default the image's.
  m.def(
      "norm_conv2d(Tensor input, Tensor? statistics, Tensor? norm_weight, Tensor? norm_bias, Tensor weight, "
      "Tensor? bias, float slope, float eps, int stride, str padding_mode, ScalarType? dtype=None) -> (Tensor, "
      "Tensor)");
  // The gradients of input, statistics, norm_weight, norm_bias, weight and bias.  The mask says which are computed: the
  // first four, that of weight, that of bias; the others are of shape (0,).  The overload may overwrite grad and return
  // it as the first result.
  const std::string conv_rest =
      " grad, Tensor grad_statistics, Tensor output, Tensor output_statistics, Tensor input, Tensor? statistics, "
      "Tensor? norm_weight, Tensor? norm_bias, Tensor weight, float slope, float eps, int stride, str padding_mode, "
      "bool[3] mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)";
  m.def(("norm_conv2d_backward(Tensor" + conv_rest).c_str());
  m.def(("norm_conv2d_backward.overwriting(Tensor(a!)" + conv_rest).c_str());
  // Upsampling of `deep` by two, concatenation with `skip` (whose channels come first), batch norm and convolution.
  // Both images are raw, as above.
  m.def(
      "norm_upsample_conv2d(Tensor deep, Tensor? deep_statistics, Tensor? deep_weight, Tensor? deep_bias, "
      "Tensor? skip, Tensor? skip_statistics, Tensor? skip_weight, Tensor? skip_bias, Tensor norm_weight, "
      "Tensor norm_bias, Tensor weight, Tensor? bias, float slope, float eps, str mode, str padding_mode, "
      "ScalarType? dtype=None) -> (Tensor, Tensor)");
  // The gradients of all tensors, in their order, of shape (0,) for those that are absent.  The overload is as above.
  const std::string upsample_rest =
      " grad, Tensor grad_statistics, Tensor output, Tensor output_statistics, Tensor deep, Tensor? deep_statistics, "
      "Tensor? deep_weight, Tensor? deep_bias, Tensor? skip, Tensor? skip_statistics, Tensor? skip_weight, "
      "Tensor? skip_bias, Tensor norm_weight, Tensor norm_bias, Tensor weight, float slope, float eps, str mode, "
      "str padding_mode, bool with_bias) -> Tensor[]";
  m.def(("norm_upsample_conv2d_backward(Tensor" + upsample_rest).c_str());
  m.def(("norm_upsample_conv2d_backward.overwriting(Tensor(a!)" + upsample_rest).c_str());

  // Layers of these two, one after another, as one function; returns the image of the last.  The gradient
  // of a parameter that no layer reads is zero.  Image 0 is z, image i + 1
  // the output of layer i.  A layer is 14 elements of the program and two of the numbers, slope and eps:
  //   0 norm_conv2d, 1 norm_upsample_conv2d; the image that is read, and the parameters that are its norm_weight and
  //   norm_bias; the same three of skip; those that are norm_weight, norm_bias, weight and bias; stride, or mode (0
  //   nearest, 1 bilinear); padding_mode (0 zeros, 1 reflect, 2 replicate); dtype (0 float32, 1 float64, 2
  //   bfloat16).
  // -1 stands for what is absent.
  m.def("norm_layers(Tensor z, Tensor[] parameters, int[] program, float[] numbers) -> Tensor");

  // z / divisor plus normal noise that depends on seed, step and place alone.
  m.def("perturb(Tensor z, float deviation, int seed, int step, float divisor=1) -> Tensor");
  // The same operator with the step in a tensor of one int64 on the device of z.
  m.def("perturb.counted(Tensor z, float deviation, int seed, Tensor step, float divisor=1) -> Tensor");

  // A view of the pictures y (N, C, H, W), with holes.  Returns the view with its holes filled and the mask, then the
  // view as it is.  masked_crop draws which view it is.
  m.def(
      "masked_crop(Tensor y, int side, int margin, float keep, int block, int seed, Tensor step) -> (Tensor, Tensor)");
  m.def(
      "masked_window(Tensor y, int n, int top, int left, int height, int width, int orientation, float keep, "
      "int block, int seed, Tensor step) -> (Tensor, Tensor)");

  // A step of Muon at the rate `rate` times `factor`, or none where `skipped` is 1 (dip_fast/fitting/muon.py).
  m.def(
      "muon_(Tensor(a!)[] weights, Tensor(b!)[] momenta, Tensor[] gradients, Tensor rate, Tensor? skipped, "
      "float factor, float momentum, float[] coefficients, int turns) -> ()");

  // Sums of the estimates of samples from patches that are alike, in units of 2^-32, and their numbers.
  m.def(
      "similar_patches(Tensor y, Tensor x, int n, int first, int rows, int alike, int neighbours, int reach, int near, "
      "Tensor variance, float low, float high) -> (Tensor, Tensor)");
}
