// The fused layers in CUDA, as the bindings call them: pointers, sizes, a stream and scratch memory, without PyTorch.
// csrc/cpu/norm_conv2d.cpp states the algebra.
//
// An image is channels last, (H, W, C).  It is kept as its convolution wrote it; its batch norm and activation are
// applied whenever it is read.  The functions only launch kernels: they never wait for the GPU.
#pragma once

#include <cstdint>

#include "kinds.h"
#include "padding.h"

#ifndef DIP_FAST_EMULATED
struct CUstream_st;  // CUDA's type behind cudaStream_t
#endif

namespace dip_fast::cuda {

#ifdef DIP_FAST_EMULATED
using Stream = void*;
#else
using Stream = CUstream_st*;
#endif

// Scratch memory of one call; its owner frees it after the call.
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

// An image that a layer reads, with the batch norm to apply before the activation.  Without statistics there is neither
// norm nor activation.
template <class K>
struct NormedInput {
  Image<typename K::Stored> image;
  const double* statistics = nullptr;  // (2, C): mean and variance
  const typename K::Sum *weight = nullptr, *bias = nullptr;
};

// Where the gradients of a NormedInput go; null: not computed.
template <class K>
struct NormedInputGrad {
  typename K::Stored* image = nullptr;
  double* statistics = nullptr;
  typename K::Sum *weight = nullptr, *bias = nullptr;
};

// The output that the forward pass wrote, its statistics, and the gradients of both.  Without grad_statistics the
// statistics take no part in the loss.
template <class K>
struct OutputWithGrads {
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
void norm_conv2d(const NormedInput<K>& input, const typename K::Sum* weight, const typename K::Sum* bias, int outputs,
                 int taps, const Options& options, typename K::Stored* output, double* statistics,
                 const Context& context);

// A null grad_weight, grad_bias or grad_input.image is not computed; without grad_input.image nothing of grad_input is.
template <class K>
void norm_conv2d_backward(const OutputWithGrads<K>& output, const NormedInput<K>& input, const typename K::Sum* weight,
                          int outputs, int taps, const Options& options, const NormedInputGrad<K>& grad_input,
                          typename K::Sum* grad_weight, typename K::Sum* grad_bias, const Context& context);

// The batch norm between the concatenation and the convolution of norm_upsample_conv2d; null: none.  Its statistics are
// those of what it reads, so the layer computes them.
template <class K>
struct MidNorm {
  const typename K::Sum *weight = nullptr, *bias = nullptr;
};

template <class K>
struct MidNormGrad {
  typename K::Sum *weight = nullptr, *bias = nullptr;
};

// The convolution of the concatenation of skip, (2H, 2W, S), and of deep, (H, W, C), upsampled by two.
// weight: (K, S + C, 3, 3).  output: (2H, 2W, K).  skip.image.data may be null: no skip image.
template <class K>
void norm_upsample_conv2d(const NormedInput<K>& deep, const NormedInput<K>& skip, const MidNorm<K>& norm,
                          const typename K::Sum* weight, const typename K::Sum* bias, int outputs,
                          const Options& options, typename K::Stored* output, double* statistics,
                          const Context& context);

template <class K>
void norm_upsample_conv2d_backward(const OutputWithGrads<K>& output, const NormedInput<K>& deep,
                                   const NormedInput<K>& skip, const MidNorm<K>& norm, const typename K::Sum* weight,
                                   int outputs, const Options& options, const NormedInputGrad<K>& grad_deep,
                                   const NormedInputGrad<K>& grad_skip, const MidNormGrad<K>& grad_norm,
                                   typename K::Sum* grad_weight, typename K::Sum* grad_bias, const Context& context);

// output = z / divisor + deviation * noise, see csrc/cpu/perturb_kernel.h.  `step` is read on the GPU, so a captured
// CUDA graph sees its current value; null: step_value.  Z: float, uint8_t or int8_t.
template <class Z>
void perturb(const Z* z, int64_t size, float deviation, float divisor, uint64_t seed, const int64_t* step,
             uint64_t step_value, float* output, Stream stream);

}  // namespace dip_fast::cuda
