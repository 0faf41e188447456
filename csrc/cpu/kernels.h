// What the host wrapper knows of the kernels: shapes, and one table of functions for each instruction set.
//
// A pass is cut into items; each item is worked on by one thread, and no two items write to the same place.  Sums that
// cross items are cut by the shape alone; all else is computed in the same way wherever the cut is.  Results are
// therefore the same for any number of threads.
#pragma once

#include <cstdint>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "padding.h"

namespace dip_fast::cpu {

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

// A thin convolution beside upsample_conv2d, added where the outputs are formed: 3x3 taps of a padded image
// (S, 2H + 2, 2W + 2).
template <class T>
struct Beside {
  const T* image;
  int64_t channels;  // S, may be 0
  const T* weight;   // (K, 9 S) forward, (9 S, K) backward
};

// All tensors are contiguous.  Scratch is counted in elements and aligned to 64 bytes.
template <class T>
struct Kernels {
  // The nine weights of the products, and those of the ring, as (9, K, C) for the forward pass, else (9, C, K); of the
  // output channels k0 .. k1.
  int64_t (*packed_size)(const Shape&);
  void (*pack)(const Shape&, const T* weight, bool transposed, int64_t k0, int64_t k1, T* packed);

  int64_t (*forward_items)(const Shape&);
  // beside and moments, one a channel, of the outputs of the item: both or neither; then the number of threads must be
  // the same whatever it really is, as it decides where the items are cut.  forward_scratch: -1 channels for neither.
  int64_t (*forward_scratch)(const Shape&, int64_t beside);
  void (*forward)(const Shape&, const T* input, const T* packed, const T* bias, T* output, int64_t item, T* scratch,
                  const Beside<T>* beside, Moments* moments);

  int64_t (*data_gradient_items)(const Shape&);
  int64_t (*data_gradient_scratch)(const Shape&);
  void (*data_gradient)(const Shape&, const T* grad, const T* packed, T* grad_input, int64_t item, T* scratch);

  // Each item gives its own sums, which are added to the total in the order of the items; finish makes the gradients of
  // weight and bias (each may be null) from the total, for the output channels k0 .. k1.
  int64_t (*weight_gradient_items)(const Shape&);
  int64_t (*weight_gradient_scratch)(const Shape&);
  int64_t (*sums_size)(const Shape&);
  void (*weight_gradient)(const Shape&, const T* grad, const T* input, T* sums, int64_t item, T* scratch);
  void (*finish)(const Shape&, const T* total, int64_t k0, int64_t k1, T* grad_weight, T* grad_bias);
};

struct Level {
  const char* name;  // as in DIP_FAST_CPU
  const Kernels<float>* float32;
  const Kernels<double>* float64;
};

extern const Level portable, avx2, avx512;

// The level in use: the one forced through DIP_FAST_CPU or select, else the best that this CPU has.
const Level& level();
bool has(const char* name);     // whether this CPU can run a level
void select(const char* name);  // throws std::invalid_argument for one that is unknown or cannot run here

}  // namespace dip_fast::cpu
