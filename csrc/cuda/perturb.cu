// Adds normal noise that is a function of seed, step and place: the counter-based generator Philox 4x32-10 and the
// Box-Muller transform, as csrc/cpu/perturb_kernel.h describes.  The random words are those of the CPU's kernel, the
// normal values differ by rounding, because the logarithm, sine and cosine of CUDA's library do.
#include "layers.h"
#include "philox.cuh"
#include "product.cuh"

namespace dip_fast::cuda {
namespace {

template <class Z>
struct Perturb {
  const Z* z;
  int64_t size;
  float deviation, divisor;
  uint64_t seed;
  const int64_t* step;  // null: step_value
  uint64_t step_value;
  float* output;
};

// Two normal values from two random words, as Box and Muller do.
DIP_FAST_D void normal_pair(uint32_t radius_word, uint32_t angle_word, float (&pair)[2]) {
  const float uniform = float(radius_word >> 1) * 0x1p-31f + 0x1p-32f;  // in (0, 1]
  const float radius = sqrtf(-2 * logf(uniform));
  // The angle is the nearest quarter turn, which is exact, and a rest of at most an eighth of a turn, which a float
  // holds with the least rounding.
  const uint32_t shifted = angle_word + 0x20000000u, quarter = shifted >> 30;
  const float rest = float(int32_t((shifted << 2) ^ 0x80000000u)) * 0x1p-33f;  // in half turns
  const float c = cospif(rest), s = sinpif(rest), x = quarter & 1 ? -s : c, y = quarter & 1 ? c : s;
  pair[0] = radius * (quarter & 2 ? -x : x);
  pair[1] = radius * (quarter & 2 ? -y : y);
}

// A thread computes one block of words, for four values of a group that are 16 apart.
template <class Z>
__global__ void perturb_kernel(Perturb<Z> a) {
  const int64_t block = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  const int64_t first = block / BLOCKS * GROUP + block % BLOCKS;
  if (first >= a.size) return;
  const uint64_t step = a.step == nullptr ? a.step_value : uint64_t(*a.step);
  uint32_t words[4];
  draw_block(uint64_t(block), step, a.seed, words);
  float noise[2][2];
  normal_pair(words[0], words[1], noise[0]);
  normal_pair(words[2], words[3], noise[1]);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int64_t i = first + j * BLOCKS;
    if (i < a.size) a.output[i] = float(a.z[i]) / a.divisor + a.deviation * noise[j / 2][j % 2];
  }
}

}  // namespace

template <class Z>
void perturb(const Z* z, int64_t size, float deviation, float divisor, uint64_t seed, const int64_t* step,
             uint64_t step_value, float* output, Stream stream) {
  if (size == 0) return;
  const int64_t blocks = (size + GROUP - 1) / GROUP * BLOCKS;
  launch<false>(perturb_kernel<Z>, dim3(unsigned((blocks + THREADS - 1) / THREADS)), THREADS, 0, stream,
                Perturb<Z>{z, size, deviation, divisor, seed, step, step_value, output});
}

template void perturb<float>(const float*, int64_t, float, float, uint64_t, const int64_t*, uint64_t, float*, Stream);
template void perturb<uint8_t>(const uint8_t*, int64_t, float, float, uint64_t, const int64_t*, uint64_t, float*,
                               Stream);
template void perturb<int8_t>(const int8_t*, int64_t, float, float, uint64_t, const int64_t*, uint64_t, float*, Stream);

}  // namespace dip_fast::cuda
