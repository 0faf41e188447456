// What the host wrapper knows of the kernels of whole layers: convolutions with the batch norm and the activation
// before them in their prologue, and the statistics of what they write in their epilogue.
//
// An image is kept as a convolution left it, with the mean and variance of each channel; what reads it normalises and
// activates it on the way,  a = leaky(scale x + shift).  Convolutions of 3x3 taps read a padded copy of the rows that
// an item needs, made by `spread` in the thread's own memory, so that none of them knows of borders; those of one tap
// read the image itself.
#pragma once

#include "kernels.h"

namespace dip_fast::cpu {

template <class T>
struct Activation {
  const T *scale = nullptr, *shift = nullptr;  // per channel; none: the image is read as it is
  T slope = 1;
};

// How an image is padded.  Row r and column q of the copy are those of the image less `before`; what lies beyond the
// padding is zero.  In split rows the even columns come first, then the odd ones, so that every other column is a line.
struct Spread {
  int64_t height, width;  // of the image
  int64_t before;
  Padding padding;
  int64_t cols;  // of the copy
  bool split;
};

struct Rows {
  int64_t first, count;
};

// Rows of such a copy, of all channels; or an image itself.
template <class T>
struct Window {
  const T* data;
  Rows rows;
};

// A convolution as sums of products of fields, on a lattice of sites:
//
//   pointwise         one tap; a site is a pixel
//   strided           3x3 taps, every second row and column; a site is an output
//   winograd          3x3 taps; a site is a square of 2x2 outputs, made of 16 products (F(2x2, 3x3))
//   strided_gradient  the adjoint of strided: a site is a square of 2x2 outputs, made of 9 products of 4 fields
//
// strided and winograd read split rows, 2 rows + 2 by 2 cols + 2 of them, a site's window beginning at row 2i and
// column 2j.  strided_gradient reads rows + 1 by cols + 1 pixels, those of a site being i, i + 1 and j, j + 1.
enum class Form { pointwise, strided, winograd, strided_gradient };

struct Lattice {
  Form form;
  int64_t inputs, outputs;  // channels
  int64_t rows, cols;       // of sites; pointwise: 1 and all pixels
  int64_t height, width;    // of the output image, which squares may reach beyond
};

template <class T>
struct LayerKernels {
  // ---- one channel at a time; `line` holds a row of the copy, and 64 elements more

  void (*spread)(const Spread&, Rows, const T* image, T scale, T shift, T slope, T* copy, T* line);
  // Of gradient + constant + factor * output; output may be null.
  void (*spread_gradient)(const Spread&, Rows, const T* gradient, const T* output, T constant, T factor, T* copy,
                          T* line);
  // The adjoint of the padding: the gradient of a copy with plain rows, `pitch` apart, to that of the image.
  void (*fold)(const Spread&, const T* copy, int64_t pitch, T* image);

  void (*activate)(int64_t count, const T* image, T scale, T shift, T slope, T* activated);
  // The gradient of leaky(scale x + shift) to that of x, and the sums of t = d leaky and of t (x - mean).
  void (*activate_gradient)(int64_t count, const T* grad, const T* image, double mean, T scale, T shift, T slope,
                            T* grad_image, double* sums);
  // Mean and variance of an image after upsampling by two (bilinear; nearest leaves both as they are).
  void (*upsampled_moments)(int64_t height, int64_t width, bool bilinear, const T* image, double* mean,
                            double* variance);
  // Sums of g and of g (a - mean), then  out = factor g + constant + by_deviation d variance / d a.
  void (*sums_with)(int64_t count, const T* grad, const T* image, double mean, double* sums);
  void (*normalise_gradient)(int64_t height, int64_t width, bool bilinear, const T* grad, const T* image, double mean,
                             double factor, double constant, double by_deviation, T* out);

  // ---- convolutions; scratch is counted in elements

  int64_t (*packed_size)(const Lattice&);
  // The weights (outputs, inputs, taps) as the products take them, for the outputs k0 .. k1; those of an adjoint come
  // as they are of the convolution, with the channels exchanged.
  void (*pack)(const Lattice&, const T* weight, bool adjoint, int64_t k0, int64_t k1, T* packed);
  int64_t (*items)(const Lattice&);
  Rows (*rows)(const Lattice&, int64_t item);  // that it reads; the first item has the most
  int64_t (*scratch)(const Lattice&);
  // moments: of the outputs of the item, one a channel; may be null, as bias may.
  void (*convolve)(const Lattice&, const Window<T>& input, const Activation<T>&, const T* packed, const T* bias,
                   T* output, Moments* moments, int64_t item, T* scratch);

  // strided and winograd: `gradient` as the adjoint reads it.
  int64_t (*weight_gradient_items)(const Lattice&);
  Rows (*weight_gradient_rows)(const Lattice&, int64_t item, bool of_gradient);
  int64_t (*weight_gradient_scratch)(const Lattice&);
  int64_t (*sums_size)(const Lattice&);
  void (*weight_gradient)(const Lattice&, const Window<T>& input, const Window<T>& gradient, T* sums, int64_t item,
                          T* scratch);
  // For the inputs c0 .. c1.
  void (*finish)(const Lattice&, const T* total, int64_t c0, int64_t c1, T* grad_weight);

  // pointwise: all gradients in one pass.  grad_input may be null; its sums are two a channel and item, of t and of
  // t (x - mean).  sums: those of the weight (outputs, inputs rounded up), then those of the bias.
  int64_t (*pointwise_gradient_scratch)(const Lattice&);
  int64_t (*pointwise_sums_size)(const Lattice&);
  void (*pointwise_gradient)(const Lattice&, const T* grad, const T* output, const T* constant, const T* factor,
                             const T* input, const Activation<T>&, const double* mean, const T* packed, T* grad_input,
                             double* input_sums, T* sums, int64_t item, T* scratch);
  // ---- beside upsample_conv2d, the way back: see JointGradient in joint.h

  int64_t (*joint_items)(const Shape&);
  int64_t (*joint_rows)(const Shape&);
  int64_t (*joint_scratch)(const Shape&, int64_t channels);
  int64_t (*joint_sums_size)(const Shape&, int64_t channels);
  void (*joint_gradient)(const Shape&, const T* grad, const T* output, const T* constant, const T* factor,
                         const SkipConv<T>&, T* full, T* sums, T* local, int64_t item, T* scratch);

  int64_t row_of_sums;  // rows of sums of weights are rounded up to a multiple of it
};

// Defined in layers_<instruction set>.cpp.
extern const BothPrecisions<LayerKernels> layers_portable, layers_avx2, layers_avx512;

}  // namespace dip_fast::cpu
