// What the host wrapper knows of the kernels that add noise: one function for each instruction set.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dip_fast::cpu {

constexpr int64_t NOISE_GROUP = 64;  // values that are drawn together

struct Noise {
  float deviation;
  uint64_t seed, step;
};

// output[i] = z[i] + deviation * noise[i] for the values i < size of the groups begin .. end.
using Perturb = void(const Noise&, const float* z, float* output, int64_t size, int64_t begin, int64_t end);

Perturb perturb_portable, perturb_avx2, perturb_avx512;

}  // namespace dip_fast::cpu
