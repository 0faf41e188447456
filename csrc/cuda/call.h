// One call of an operator on a GPU: its device, its stream and its scratch memory.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "layers.h"

#ifdef DIP_FAST_EMULATED
#define DIP_FAST_GPU_KEY CPU  // the dispatch key that the operators are registered for
#else
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#define DIP_FAST_GPU_KEY CUDA
#endif

namespace dip_fast::on_gpu {

// The device and stream of a call, and its scratch memory.  The memory may be freed before the kernels have run:
// PyTorch's allocator gives it only to later work of the same stream.
class Call : public cuda::Scratch {
 public:
  explicit Call(const at::Tensor& on)
      : options_(on.options().dtype(at::kByte).requires_grad(false))
#ifndef DIP_FAST_EMULATED
        ,
        guard_(on.device()),
        context{c10::cuda::getCurrentCUDAStream().stream(), *this}
#else
        ,
        context{nullptr, *this}
#endif
  {
  }
  void* take(int64_t bytes) override { return taken_.emplace_back(at::empty({bytes}, options_)).data_ptr(); }

 private:
  at::TensorOptions options_;
  std::vector<at::Tensor> taken_;
#ifndef DIP_FAST_EMULATED
  c10::cuda::CUDAGuard guard_;
#endif

 public:
  const cuda::Context context;
};

}  // namespace dip_fast::on_gpu
