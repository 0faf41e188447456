// dip_fast::perturb from tensors to pointers: checks, allocation, threads, registration.
#include "perturb.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "kernels.h"
#include "threads.h"

namespace dip_fast::cpu {
namespace {

using at::Tensor;

// Of the level in use.
Perturb* perturb_kernel() {
#if defined(__x86_64__)
  if (&level() == &avx512) return perturb_avx512;
  if (&level() == &avx2) return perturb_avx2;
#endif
  return perturb_portable;
}

Tensor perturb(const Tensor& z, double deviation, int64_t seed, int64_t step) {
  TORCH_CHECK_TYPE(z.scalar_type() == at::kFloat, "z must be of dtype float32, got ", z.scalar_type());
  const Tensor from = z.contiguous();
  Tensor output = at::empty(from.sizes(), from.options());
  const Noise noise{float(deviation), uint64_t(seed), uint64_t(step)};
  const float* source = from.const_data_ptr<float>();
  float* target = output.mutable_data_ptr<float>();
  const int64_t size = from.numel();
  Perturb* const kernel = perturb_kernel();
  // 512 groups take 50 microseconds, well over what it costs to wake a thread.
  for_each_stretch((size + NOISE_GROUP - 1) / NOISE_GROUP, 512,
                   [&](int64_t begin, int64_t end) { kernel(noise, source, target, size, begin, end); });
  return output;
}

}  // namespace
}  // namespace dip_fast::cpu

TORCH_LIBRARY_IMPL(dip_fast, CPU, m) { m.impl("perturb", TORCH_FN(dip_fast::cpu::perturb)); }
