// The interface between layers.cu, which puts layers together, and the kernels: each function launches kernels on a
// stream and returns.
//
// A convolution is an implicit matrix product.  M: sites, which are output pixels.  N: output channels.  The depth:
// (tap, input channel).  The left matrix is an operand (operands.cuh), the right one a packed weight.
#pragma once

#include "operands.cuh"

#define DIP_FAST_EACH_KIND(use) use(KindFloat64) use(KindFloat32) use(KindTF32) use(KindBFloat16) use(KindHalf)

namespace dip_fast::cuda {

// The sites of a product.  With step = 2 they are split into four phases by the parity of row and column; a phase is
// one z of the grid and has a weight of its own.
struct Sites {
  int height, width, step;

  DIP_FAST_HD int phases() const { return step * step; }
  DIP_FAST_HD int rows(int phase) const { return ceil_div(height - phase / step, step); }
  DIP_FAST_HD int columns(int phase) const { return ceil_div(width - phase % step, step); }
  DIP_FAST_HD int64_t per_phase() const { return int64_t(rows(0)) * columns(0); }  // of the largest phase
};

// The depth of the product of each phase, a multiple of a tile's step, and the pitch of the packed weight.
struct Depths {
  int pitch, phase[4];
  DIP_FAST_HD int of(int p) const { return p < 2 ? (p == 0 ? phase[0] : phase[1]) : p == 2 ? phase[2] : phase[3]; }
};

// Count, mean and sum of squared deviations of a set of values.  The mean is mean + mean_low, as one float would be too
// coarse where the mean is much larger than the deviations.
template <class Sum>
struct Moment {
  Sum count, mean, mean_low, squares;
};
// The moment of values whose count and total are known; `each` visits them once more.
//   m = total / n    e = sum(v - m) / n    mean = m + e    squares = sum (v - m)^2 - n e^2
template <class Sum, class Each>
DIP_FAST_D Moment<Sum> moment_of(Sum count, Sum total, const Each& each) {
  const Sum mean = count > 0 ? total / count : Sum(0);
  Sum rest = 0, squares = 0;
  each([&](Sum value) {
    const Sum deviation = value - mean;
    rest += deviation;
    squares += deviation * deviation;
  });
  const Sum mean_low = count > 0 ? rest / count : Sum(0);
  return {count, mean, mean_low, squares - rest * mean_low};
}

// ---- small preparation jobs

// A slice of a weight (K, channels, taps, taps) and where it goes in a packed weight, [phase][row][pitch].
template <class K>
struct PackedSlice {
  const typename K::Sum* weight;
  int outputs, channels, taps;  // of the whole weight
  int offset, count;            // the input channels of the slice
  int per_tap;                  // depth of a tap: count, and then zeros
  typename K::Factor* factors;
  int rows, pitch;   // rows of the packed weight, of which the last are zeros, and its pitch
  int begin, depth;  // the part of each row that is written
};
// Which taps are added while packing: none; for a folded patch (see `Sampling`) those that read the same pixel; or
// those that each of the nine products of convolve_nine.cu multiplies.
enum class TapSums { none, folded, nine };
// Packs a slice: row k has depth (tap, c).  Transposed, for the gradient of the input: row c has depth (tap, k), and
// the taps of each phase are those of TransposedPatch.
template <class K>
struct PackJob {
  PackedSlice<K> to;
  TapSums sums;
  int phases;
  bool transposed;
  int stride;
  TapList row_taps[2], column_taps[2];
};

// Makes per-channel coefficients from statistics.  Without grad_statistics those of a batch norm, (4, channels):
//
//   scale = weight r    shift = bias - mean weight r    mean    r = 1 / sqrt(variance + eps)
//
// with it those of OutputGrad, (2, channels), for n pixels:
//
//   constant = dmean / n - factor mean    factor = 2 dvariance / n
template <class Sum>
struct AffineJob {
  const double* statistics;  // (2, pitch)
  int pitch, channels;
  const Sum *weight, *bias;
  double eps;
  const double* grad_statistics;
  double pixels;
  Sum* to;
};

template <class K>
struct SmallJob {
  int size;  // in threads
  bool packs;
  PackJob<K> pack;
  AffineJob<typename K::Sum> affine;
};
template <class K>
struct SmallJobBatch {
  static constexpr int CAPACITY = 8;
  int count;
  SmallJob<K> jobs[CAPACITY];
};
// Batches small preparation jobs into one launch: such a job costs little but its launch.  The jobs of a batch must not
// depend on each other.
template <class K>
class SmallJobs {
 public:
  explicit SmallJobs(Stream stream) : stream_(stream) {}
  void add(const PackJob<K>& pack) { add({pack.phases * pack.to.rows * pack.to.depth, true, pack, {}}); }
  void add(const AffineJob<typename K::Sum>& affine) { add({affine.channels, false, {}, affine}); }
  void flush();

 private:
  void add(const SmallJob<K>& job) {
    if (batch_.count == SmallJobBatch<K>::CAPACITY) flush();
    batch_.jobs[batch_.count++] = job;
  }
  SmallJobBatch<K> batch_{};
  Stream stream_;
};

// ---- convolutions: the epilogue says what is done with the sums of a product

// Adds the bias, stores the output, and computes the moments of each part of what was stored.
template <class K>
struct StoreEpilogue {
  const typename K::Sum* bias;  // may be null
  typename K::Stored* output;
  Moment<typename K::Sum>* parts;  // (parts, channels); null: no moments
};
// The product is the skip image's share of an output whose deep image is upsampled bilinearly.  Adds the deep image's
// share: its convolution with nearest-neighbour upsampling, blurred, and on the border the outputs of BorderPatch.
template <class K>
struct BlurEpilogue {
  StoreEpilogue<K> store;
  const typename K::Stored* nearest;  // (height, width, channels)
  const typename K::Stored* border;   // (4, longest, channels), see `Border`
  int height, width, longest;
};
// The product is t, the gradient of what the convolution read of an image x.  Stores it.  With `image` it also reduces
// two sums per channel, from which the batch norm's gradients follow.
//
//   through:  the norm and activation of x are part of the way back: t *= leaky'(u); stores dx = scale t;
//             sums of t and of t (x - mean)
//   else:     a norm follows x's own norm and activation, a = leaky(u); stores t; sums of t and of t (a - mean)
template <class K>
struct BackwardEpilogue {
  typename K::Stored* output;
  NormActImage<K> image;  // x; image.image.data null: no sums
  const typename K::Sum* mean;
  bool through;
  typename K::Sum* parts;  // (parts, 2, channels)
};

// What the tiles of a convolution depend on.
struct ConvShape {
  Sites sites;
  int channels;  // of the output
  bool vec4;     // the channels that are read are a multiple of 4
  bool nine_products = false;
};
// Whether to convolve an image upsampled by nearest neighbour in nine products, see convolve_nine.cu.
template <class K>
bool nine_products_pay(const Sites& sites, int channels);
// How many parts the epilogue's sums over pixels come in.
template <class K>
int64_t convolution_parts(const ConvShape& shape);
// Depth and rows of a packed weight, rounded up to whole steps and tiles.
template <class K>
int packed_depth(int depth);
template <class K>
int packed_rows(const ConvShape& shape);

template <class K, class Operand, class Epilogue>
void convolve(const Operand& operand, const ConvShape& shape, const typename K::Factor* factors, const Depths& depths,
              const Epilogue& epilogue, Stream stream);

// deep, skip: the depth of each of the nine products and that of the skip image, in whole steps.
template <class K>
void convolve_nine(const DifferencePatch<K>& operand, const ConvShape& shape, const typename K::Factor* factors,
                   int deep, int skip, const StoreEpilogue<K>& epilogue, Stream stream);

// The gradient of input channels `offset` on of a weight that has `channels`:
//
//   dW[k][c][tap] = sum over output pixels of G[k] x[c], x as the patch reads it through the tap
//
// from_tap_grads: output_grad holds F_t of tap_grads instead, nine times K channels for each low-resolution pixel, and
// the patch reads one tap.
template <class K>
void weight_gradient(const Patch<K, Sampling::direct>& patch, const OutputGrad<K>& output_grad, bool from_tap_grads,
                     int offset, int channels, typename K::Sum* to, const Context& context);

// F_t (H, W, 9, K): the gradient of the output at the low resolution, separately for each tap, see fields.cu.
template <class K>
void tap_grads(const OutputGrad<K>& output_grad, bool bilinear, Padding padding, typename K::Stored* to, Stream stream);

// ---- per-channel reductions and norms

// Mean and variance of an image as it is read, or of it upsampled bilinearly, to statistics (2, pitch).
// Nearest-neighbour upsampling does not change them.
template <class K>
void moments(const NormActImage<K>& source, bool bilinear, double* statistics, int pitch, const Context& context);
// The same from the moments of parts, (count, channels).
template <class K>
void merge_moments(const Moment<typename K::Sum>* parts, int64_t count, int channels, double* statistics, int pitch,
                   Stream stream);
// Where the gradients of a batch norm go; they follow from the sums of t and t (x - mean).
template <class K>
struct NormGrad {
  const typename K::Sum *coefficients = nullptr, *weight = nullptr;  // (4, C), see AffineJob; null: there is no norm
  double* to_statistics = nullptr;                                   // null: not computed
  typename K::Sum *to_weight = nullptr, *to_bias = nullptr;
};
// Adds parts of sums, (count, 2, channels), in their order and in double, to `sums` (2, channels), which may be null,
// and computes the gradients of the norm from them.
template <class K>
void merge_norm_sums(const typename K::Sum* parts, int64_t count, int channels, double* sums, const NormGrad<K>& norm,
                     Stream stream);
// The sum of G over all pixels: the gradient of a bias.
template <class K>
void channel_sums(const OutputGrad<K>& output_grad, typename K::Sum* to, const Context& context);

// Backward through the norm after a concatenation and then through an image's own norm and activation.  `grad` is the
// gradient of what the convolution read, at the image's resolution; `to` becomes the gradient of the image.
template <class K>
struct NormActBackward {
  const typename K::Stored* grad;
  NormActImage<K> image;            // with its own norm and activation only
  const typename K::Sum* mid_norm;  // coefficients (4, C) of the norm after the concatenation; null: there is none
  const double* mid_norm_sums;      // (2, C): sums of grad and grad (a - mean)
  NormGrad<K> own_norm;
  bool upsampled, bilinear;
  typename K::Stored* to;  // may be `grad`
};
template <class K>
void norm_act_backward(const NormActBackward<K>& call, const Context& context);

}  // namespace dip_fast::cuda
