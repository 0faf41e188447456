// The operators of whole layers in CUDA, as the bindings call them: pointers, sizes, a stream and scratch memory;
// nothing of PyTorch.  csrc/cpu/norm_conv2d.cpp states the algebra.
//
// Images are stored channels last, (H, W, C), one after the other where there are several.  Nothing waits for the GPU.
#pragma once

#include <cstdint>

#include "kinds.h"
#include "padding.h"

#ifndef DIP_FAST_EMULATED
struct CUstream_st;  // of CUDA, behind a cudaStream_t
#endif

namespace dip_fast::cuda {

#ifdef DIP_FAST_EMULATED
using Stream = void*;
#else
using Stream = CUstream_st*;
#endif

// Memory of one call, given back by whoever made it.
class Scratch {
 public:
  virtual ~Scratch() = default;
  virtual void* take(int64_t bytes) = 0;  // aligned to 256 bytes
};

struct Context {
  Stream stream;
  Scratch& scratch;

  template <class T>
  T* take(int64_t count) const {
    return static_cast<T*>(scratch.take(count * int64_t(sizeof(T))));
  }
};

template <class Stored>
struct Image {
  const Stored* data = nullptr;
  int height = 0, width = 0, channels = 0;

  int64_t pixels() const { return int64_t(height) * width; }
};

// A raw image with its batch norm; without statistics it is read as it is.
template <class K>
struct Given {
  Image<typename K::Stored> image;
  const double* statistics = nullptr;  // (2, C)
  const typename K::Sum *weight = nullptr, *bias = nullptr;
};

// What goes back to it; null where not wanted.
template <class K>
struct GivenGradient {
  typename K::Stored* image = nullptr;
  double* statistics = nullptr;
  typename K::Sum *weight = nullptr, *bias = nullptr;
};

// Raw output with its statistics, and the gradients of both; no statistics: nobody asks for them.
template <class K>
struct Output {
  const typename K::Stored *grad, *output = nullptr;
  const double *statistics = nullptr, *grad_statistics = nullptr;
};

struct Options {
  double slope = 0, eps = 0;
  int stride = 1;
  Padding padding = Padding::zeros;
  bool bilinear = false;
};

// weight: (K, C, taps, taps).  output: (ceil(H / stride), ceil(W / stride), K).
template <class K>
void norm_conv2d(const Given<K>& input, const typename K::Sum* weight, const typename K::Sum* bias, int outputs,
                 int taps, const Options& options, typename K::Stored* output, double* statistics,
                 const Context& context);

// to_weight and to_bias may be null, and so may to.image: then all of `to` is.
template <class K>
void norm_conv2d_backward(const Output<K>& output, const Given<K>& input, const typename K::Sum* weight, int outputs,
                          int taps, const Options& options, const GivenGradient<K>& to, typename K::Sum* to_weight,
                          typename K::Sum* to_bias, const Context& context);

// The batch norm between concatenation and convolution; null: none.
template <class K>
struct Between {
  const typename K::Sum *weight = nullptr, *bias = nullptr;
};

// weight: (K, S + C, 3, 3).  output: (2H, 2W, K).  A skip of no data is none.
template <class K>
void norm_upsample_conv2d(const Given<K>& deep, const Given<K>& skip, const Between<K>& norm,
                          const typename K::Sum* weight, const typename K::Sum* bias, int outputs,
                          const Options& options, typename K::Stored* output, double* statistics,
                          const Context& context);

template <class K>
void norm_upsample_conv2d_backward(const Output<K>& output, const Given<K>& deep, const Given<K>& skip,
                                   const Between<K>& norm, const typename K::Sum* weight, int outputs,
                                   const Options& options, const GivenGradient<K>& to_deep,
                                   const GivenGradient<K>& to_skip, typename K::Sum* to_norm_weight,
                                   typename K::Sum* to_norm_bias, typename K::Sum* to_weight, typename K::Sum* to_bias,
                                   const Context& context);

// z / divisor plus noise, see csrc/cpu/perturb_kernel.h; the step is read where it lies.  Z: float, uint8_t or int8_t.
template <class Z>
void perturb(const Z* z, int64_t size, float deviation, float divisor, uint64_t seed, const int64_t* step,
             uint64_t step_value, float* output, Stream stream);

}  // namespace dip_fast::cuda
