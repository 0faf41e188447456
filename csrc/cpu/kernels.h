// The kernels of upsample_conv2d as the host code sees them: the shape of a call, and a table of functions that is
// compiled once for each instruction set.
//
// A pass is cut into items.  One thread works on an item, and no two items write to the same place.  Where sums cross
// items, the shape alone decides how the items are cut; everything else is computed in the same way wherever the cut
// is.  Results are therefore the same for any number of threads.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "padding.h"

namespace dip_fast::cpu {

// An image may be stored in the upper 16 bits of its floats; all that is computed with it is computed in float.
enum class BFloat16 : uint16_t {};

// The type that images which are stored as S are computed with.
template <class S>
using Computed = std::conditional_t<std::is_same_v<S, BFloat16>, float, S>;

struct Shape {
  int64_t N, C, K, H, W;  // input (N, C, H, W), weight (K, C, 3, 3), output (N, K, 2H, 2W)
  bool bilinear;
  Padding padding;
  int64_t threads = 1;  // which share the work; no bit of a result depends on it
};

// The count, the mean and the sum of the squared deviations of some values.
struct Moments {
  double count, mean, squares;
};

// The convolution of the skip channels, which is added to that of the upsampled channels where the outputs are formed:
// 3x3 taps of an image that has been padded, (S, 2H + 2, 2W + 2).
template <class T>
struct SkipConv {
  const T* image;
  int64_t channels;  // S, may be 0
  const T* weight;   // (K, 9 S)
};

// All tensors are contiguous.  Scratch sizes count elements, and scratch is aligned to 64 bytes.
template <class T>
struct UpsampleKernels {
  // Packs the nine weights of the products, which the ring uses too, for the output channels k0 .. k1: (9, K, C) for
  // the forward pass, (9, C, K) if transposed.
  int64_t (*packed_size)(const Shape&);
  void (*pack)(const Shape&, const T* weight, bool transposed, int64_t k0, int64_t k1, T* packed);

  // `skip` and `moments` (one for each channel, of the outputs of the item) are both given, for bilinear alone, or both
  // null.  With them the caller sets Shape::threads to a constant, because it decides where the items are cut, and the
  // moments depend on that.  forward_scratch takes skip_channels = -1 where they are null.
  int64_t (*forward_items)(const Shape&);
  int64_t (*forward_scratch)(const Shape&, int64_t skip_channels);
  template <class O>
  using Forward = void(const Shape&, const T* input, const T* packed, const T* bias, O* output, int64_t item,
                       T* scratch, const SkipConv<T>* skip, Moments* moments);
  Forward<T>* forward;

  int64_t (*data_gradient_items)(const Shape&);
  int64_t (*data_gradient_scratch)(const Shape&);
  void (*data_gradient)(const Shape&, const T* grad, const T* packed, T* grad_input, int64_t item, T* scratch);

  // Each item has sums of its own, which the caller adds to the total in the order of the items.  `finish` turns the
  // total into the gradients of weight and bias (either may be null) for the output channels k0 .. k1.
  int64_t (*weight_gradient_items)(const Shape&);
  int64_t (*weight_gradient_scratch)(const Shape&);
  int64_t (*sums_size)(const Shape&);
  void (*weight_gradient)(const Shape&, const T* grad, const T* input, T* sums, int64_t item, T* scratch);
  void (*finish)(const Shape&, const T* total, int64_t k0, int64_t k1, T* grad_weight, T* grad_bias);
};

// A table of kernels for both precisions.
template <template <class> class Kernels>
struct BothPrecisions {
  Kernels<float> float32;
  Kernels<double> float64;

  template <class T>
  const Kernels<T>& of() const {
    if constexpr (sizeof(T) == sizeof(float))
      return float32;
    else
      return float64;
  }
};

// Defined in kernels_<instruction set>.cpp.
extern const BothPrecisions<UpsampleKernels> upsample_portable, upsample_avx2, upsample_avx512;

}  // namespace dip_fast::cpu
