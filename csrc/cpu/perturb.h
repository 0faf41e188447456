// What the host wrapper knows of the kernels that add noise: one function for each instruction set.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dip_fast::cpu {

constexpr int64_t NOISE_GROUP = 64;  // values that are drawn together

struct Noise {
  float deviation, divisor;
  uint64_t seed, step;
};

// output[i] = z[i] / divisor + deviation * noise[i] for the values i < size of the groups begin .. end.
template <class Z>
using Perturb = void(const Noise&, const Z* z, float* output, int64_t size, int64_t begin, int64_t end);

// For z of each type that it is kept in.
struct Perturbs {
  Perturb<float>* from_float;
  Perturb<uint8_t>* from_uint8;
  Perturb<int8_t>* from_int8;
};

extern const Perturbs perturbs_portable, perturbs_avx2, perturbs_avx512;

}  // namespace dip_fast::cpu
