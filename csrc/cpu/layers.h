// The kernels of whole layers as the host code sees them: a convolution, the batch norm and the activation before it,
// and the statistics of what it writes.
//
// An image is stored raw, as a convolution wrote it, together with the mean and the variance of each channel.  The next
// convolution normalises and activates it while it reads it,  a = leaky(scale x + shift).  Convolutions of 3x3 taps
// read a padded copy of the rows that an item needs, which `pad` makes in the thread's own memory, so none of them
// handles borders; those of one tap read the image itself.
//
// Images are stored as I, where they are read, and as O, where they are written: as the type T that all is computed
// with, or in 16 bits, which halves the memory that a fit keeps and most of what it moves.  A gradient is stored as its
// image is.
#pragma once

#include <type_traits>

#include "kernels.h"

namespace dip_fast::cpu {

// a = leaky(scale x + shift), with a scale and a shift for each channel; without them the image is read as it is.
template <class T>
struct Activation {
  const T *scale = nullptr, *shift = nullptr;
  T slope = 1;
};

// The gradient of a raw output y, with the part that comes through its statistics:
//
//   G = grad + constant + factor y, with a constant and a factor for each channel
//
// `output` is null where the statistics have no gradient; then constant and factor are zero.
template <class O, class T = Computed<O>>
struct RawGradient {
  const O *grad, *output;
  const T *constant, *factor;
};

// A padded copy of an image.  Row r and column q of the copy are row r - before and column q - before of the image; the
// copy is zero beyond the padding.  If `split`, a row holds the even columns first and then the odd ones, so that every
// other column is contiguous.
struct PaddedCopy {
  int64_t height, width;  // of the image
  int64_t before;
  Padding padding;
  int64_t cols;  // of the copy
  bool split;
};

struct Rows {
  int64_t first, count;
};

// Bands of rows of a padded copy of one channel, `stride` elements apart.  Each begins `step` rows below the one before
// and has `rows` rows, which reach into the next ones.
template <class T>
struct BandsOfRows {
  const T* data;
  int64_t count, stride, step, rows;
};

// Some rows of a padded copy, of all channels, or a whole image.
template <class T>
struct Window {
  const T* data;
  Rows rows;
  const T* upsampled = nullptr;  // ConvShape::upsampled channels, a whole copy padded by one pixel, before upsampling
};

// How a convolution is computed: as sums of products of fields, on a lattice of sites (algorithms.h).
//
//   pointwise         one tap; a site is a pixel
//   strided           3x3 taps, every second row and column; a site is an output
//   winograd          3x3 taps; a site is a square of 2x2 outputs, made of 16 products (F(2x2, 3x3)), of 9 for channels
//                     that are upsampled by two, nearest
//   strided_gradient  the adjoint of strided; a site is a square of 2x2 outputs, made of 9 products of 4 fields
//
// strided and winograd read a split copy of 2 rows + 2 by 2 cols + 2 pixels, in which the window of site (i, j) begins
// at row 2i and column 2j.  strided_gradient reads rows + 1 by cols + 1 pixels, for site (i, j) those at the rows i and
// i + 1 and the columns j and j + 1.
enum class Algorithm { pointwise, strided, winograd, strided_gradient };

struct ConvShape {
  Algorithm algorithm;
  int64_t inputs, outputs;  // channels
  int64_t rows, cols;       // of sites; pointwise: 1 and all pixels
  int64_t height, width;    // of the output image, which the squares may reach beyond
  int64_t upsampled = 0;    // winograd: how many of the inputs, the last ones, are upsampled from rows x cols pixels
  bool blurs = false;       // winograd, back: what these add to the outputs is blurred, which makes nearest bilinear
};

// The batch norm and the activation of one channel, to go back through; without an image there are none.
template <class I, class T = Computed<I>>
struct NormedChannel {
  const I* image;
  T mean, scale, shift, slope;
};

template <class I, class O, class T = Computed<I>>
struct LayerKernels {
  // ---- one channel at a time; `line` holds a row of the copy and 64 elements more

  // Fills rows of a padded copy with leaky(scale x + shift).
  void (*pad)(const PaddedCopy&, Rows, const I* image, T scale, T shift, T slope, T* copy, T* line);
  // Fills them with gradient + constant + factor * output; output may be null.
  void (*pad_gradient)(const PaddedCopy&, Rows, const O* gradient, const O* output, T constant, T factor, T* copy,
                       T* line);
  // The adjoint of the padding of a copy whose gradient is a sum over bands of rows, which overlap; `lines` is memory
  // for three rows.
  void (*bands_adjoint)(const PaddedCopy&, const BandsOfRows<T>&, T* lines, T* image);
  // The same, and then from the gradient of leaky(scale x + shift) to that of x, with the sums of t = grad * leaky' and
  // of t (x - mean).
  void (*normed_adjoint)(const PaddedCopy&, const BandsOfRows<T>&, const NormedChannel<I>&, T* lines, I* grad_image,
                         double* sums);

  void (*norm_act)(int64_t count, const I* image, T scale, T shift, T slope, T* activated);
  // The mean and the variance of an image after upsampling by two (nearest changes neither, bilinear the variance).
  void (*upsampled_moments)(int64_t height, int64_t width, bool bilinear, const T* image, double* mean,
                            double* variance);
  // The sums of g and of g (a - mean), with which the caller forms the factors of norm_gradient:
  // out = factor g + constant + by_deviation (a - mean), for bilinear with U^T U (a - mean) / 4 in place of (a - mean),
  // where U is the upsampling.
  void (*norm_sums)(int64_t count, const T* grad, const T* image, double mean, double* sums);
  void (*norm_gradient)(int64_t height, int64_t width, bool bilinear, const T* grad, const T* image, double mean,
                        double factor, double constant, double by_deviation, T* out);

  // ---- convolutions; scratch sizes count elements

  // Packs the weights (outputs, inputs, taps) for the products, for the outputs k0 .. k1.  For an adjoint the weights
  // are those of the convolution, (inputs, outputs, taps).
  int64_t (*packed_size)(const ConvShape&);
  void (*pack)(const ConvShape&, const T* weight, bool adjoint, int64_t k0, int64_t k1, T* packed);
  int64_t (*items)(const ConvShape&);
  Rows (*input_rows)(const ConvShape&, int64_t item);  // that the item reads; the first item reads the most
  int64_t (*scratch)(const ConvShape&);
  // moments: one for each channel, of the outputs of the item.  bias and moments may be null.  An adjoint, which is
  // that of the padded copy, has neither, and is not stored.
  template <class Read, class Written>
  using Convolve = void(const ConvShape&, const Window<Read>& input, const Activation<T>&, const T* packed,
                        const T* bias, Written* output, Moments* moments, int64_t item, T* scratch);
  Convolve<I, O>* pointwise;
  Convolve<T, O>* convolve;  // strided and winograd
  Convolve<T, T>* adjoint;   // strided_gradient

  // strided: the gradient of the weights.  `gradient` is padded as the adjoint reads it.
  int64_t (*weight_gradient_items)(const ConvShape&);
  Rows (*weight_gradient_input_rows)(const ConvShape&, int64_t item);
  Rows (*weight_gradient_grad_rows)(const ConvShape&, int64_t item);
  int64_t (*weight_gradient_scratch)(const ConvShape&);
  int64_t (*sums_size)(const ConvShape&);
  void (*weight_gradient)(const ConvShape&, const Window<T>& input, const Window<T>& gradient, T* sums, int64_t item,
                          T* scratch);
  // From the total of the sums to the gradient of the weights, for the inputs c0 .. c1.
  void (*finish)(const ConvShape&, const T* total, int64_t c0, int64_t c1, T* grad_weight);

  // winograd: all gradients in one pass (winograd_gradient.h).  `packed` holds the adjoint's weights.  Each item has
  // sums, those of the bias first, and a part of the gradients of the padded inputs, `local`, for bands_adjoint.
  int64_t (*winograd_gradient_items)(const ConvShape&);
  int64_t (*winograd_gradient_rows)(const ConvShape&);  // of sites in an item
  Rows (*winograd_gradient_input_rows)(const ConvShape&, int64_t item);
  int64_t (*winograd_gradient_scratch)(const ConvShape&);
  int64_t (*winograd_sums_size)(const ConvShape&);
  int64_t (*winograd_local_size)(const ConvShape&);
  void (*winograd_gradient)(const ConvShape&, const RawGradient<O>&, const Window<T>& input, const T* packed, T* local,
                            bool of_weight, T* sums, int64_t item, T* scratch);
  void (*winograd_finish)(const ConvShape&, const T* total, int64_t k0, int64_t k1, T* grad_weight);

  // pointwise: all gradients in one pass (pointwise.h).  grad_input may be null.  input_sums has two sums for each
  // channel, of t and of t (x - mean); it may be null where there is no activation.  sums: those of the weight
  // (outputs, inputs rounded up), then those of the bias.
  int64_t (*pointwise_gradient_scratch)(const ConvShape&);
  int64_t (*pointwise_sums_size)(const ConvShape&);
  void (*pointwise_gradient)(const ConvShape&, const RawGradient<O>&, const I* input, const Activation<T>&,
                             const double* mean, const T* packed, I* grad_input, double* input_sums, T* sums,
                             int64_t item, T* scratch);

  // ---- the forward pass of norm_upsample_conv2d after bilinear upsampling: upsample_conv2d's, which adds the
  // convolution of the skip channels and has moments
  void (*pack_upsampled)(const Shape&, const T* weight, int64_t k0, int64_t k1, T* packed);
  typename UpsampleKernels<T>::template Forward<O>* upsampled;

  int64_t (*repeat_products)(int64_t count);  // see tile.h
  // out (rows, cols) = a (rows, depth) b (depth, cols); cols is a multiple of 32, as many as the widest tile has.
  void (*multiply)(int64_t rows, int64_t cols, int64_t depth, const T* a, int64_t lda, const T* b, int64_t ldb, T* out,
                   int64_t ldo);

  // ---- what the ring adds to the backward pass of norm_upsample_conv2d: see ring_gradient.h

  int64_t (*ring_sums_size)(const Shape&);
  int64_t (*ring_lines_size)(const Shape&);
  int64_t (*ring_scratch)(const Shape&);
  void (*ring_gradient)(const Shape&, const RawGradient<O>&, const T* deep, const T* packed, T* sums, T* lines,
                        int64_t side, T* scratch);
  void (*add_ring_lines)(const Shape&, const T* lines, int64_t channel, T* image);
};

// A table for each way in which images are stored: those that are written as they are computed, and those that are
// written in 16 bits, whose factors are rounded to 16 bits too where the instruction set multiplies these faster.
struct LayersInFull {
  LayerKernels<float, float> float32;
  LayerKernels<double, double> float64;
  LayerKernels<BFloat16, float> from_16_bits;
};
struct LayersTo16Bits {
  LayerKernels<float, BFloat16> float32;
  LayerKernels<BFloat16, BFloat16> bfloat16;
};

// Defined in layers_<instruction set>.cpp.
extern const LayersInFull layers_portable, layers_avx2, layers_avx512;
extern const LayersTo16Bits layers_to_16_portable, layers_to_16_avx2, layers_to_16_avx512, layers_to_16_avx512_bf16;

}  // namespace dip_fast::cpu
