// The kernels of perturb as the host code sees them: a table of functions that is compiled once for each instruction
// set.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dip_fast::cpu {

constexpr int64_t NOISE_GROUP = 64;  // values that are drawn in one go

struct Noise {
  float deviation, divisor;
  uint64_t seed, step;
};

// output[i] = z[i] / divisor + deviation * noise[i], for the values i < size of the groups begin .. end.
template <class Z>
using PerturbKernel = void(const Noise&, const Z* z, float* output, int64_t size, int64_t begin, int64_t end);

// One kernel for each type that z is stored in.
struct PerturbKernels {
  PerturbKernel<float>* from_float;
  PerturbKernel<uint8_t>* from_uint8;
  PerturbKernel<int8_t>* from_int8;
};

// Defined in perturb_<instruction set>.cpp.
extern const PerturbKernels perturb_portable, perturb_avx2, perturb_avx512;

}  // namespace dip_fast::cpu
