// The operator perturb on a CPU: checks, allocation, sharing among threads, registration.
#include "perturb.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "arguments.h"
#include "dispatch.h"
#include "threads.h"

namespace dip_fast::cpu {
namespace {

using at::Tensor;

template <class Z>
void add_noise(PerturbKernel<Z>* kernel, const Noise& noise, const Tensor& z, float* output) {
  const Z* source = z.const_data_ptr<Z>();
  const int64_t size = z.numel();
  // 512 groups take 50 microseconds, well over what it costs to wake a thread.
  for_each_range((size + NOISE_GROUP - 1) / NOISE_GROUP, 512,
                 [&](int64_t begin, int64_t end) { kernel(noise, source, output, size, begin, end); });
}

Tensor perturb(const Tensor& z, double deviation, int64_t seed, int64_t step, double divisor) {
  const Tensor from = z.contiguous();
  Tensor output = workspace::empty(from.sizes(), from.options().dtype(at::kFloat));
  const Noise noise{float(deviation), float(divisor), uint64_t(seed), uint64_t(step)};
  float* to = output.mutable_data_ptr<float>();
  const PerturbKernels& kernels = level().perturb;
  switch (z.scalar_type()) {
    case at::kFloat:
      add_noise(kernels.from_float, noise, from, to);
      break;
    case at::kByte:
      add_noise(kernels.from_uint8, noise, from, to);
      break;
    case at::kChar:
      add_noise(kernels.from_int8, noise, from, to);
      break;
    default:
      TORCH_CHECK_TYPE(false, "z must be of dtype float32, uint8 or int8, got ", z.scalar_type());
  }
  return output;
}

Tensor perturb_counted(const Tensor& z, double deviation, int64_t seed, const Tensor& step, double divisor) {
  check_step(step, "z", z);
  return perturb(z, deviation, seed, *step.const_data_ptr<int64_t>(), divisor);
}

}  // namespace
}  // namespace dip_fast::cpu

TORCH_LIBRARY_IMPL(dip_fast, CPU, m) {
  m.impl("perturb", TORCH_FN(dip_fast::cpu::perturb));
  m.impl("perturb.counted", TORCH_FN(dip_fast::cpu::perturb_counted));
}
