// Tests of the kernel of patches that are alike, without PyTorch: samples without noise are their own estimates, and a
// sanitizer sees what the kernel reads and writes.  Compiled once for each instruction set.
// Exit code 0: passed, 1: failed, 77: the CPU lacks the instructions.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "cpu/similar_patches.h"

namespace dip_fast::cpu {
namespace {

#include "cpu/similar_patches_kernel.h"

int failures = 0;

void test(int64_t C, int64_t H, int64_t W, int64_t alike, int64_t n) {
  const int64_t N = 2, size = H * W;
  std::mt19937 generator(0);
  std::uniform_real_distribution<float> uniform(0, 1);
  std::vector<float> x(N * C * size);
  for (float& value : x) value = uniform(generator);
  std::vector<PatchShift> shifts{{0, 0, 0}};
  for (int32_t k = 0; k < N; ++k)
    for (int32_t down = -3; down <= 3; ++down)
      for (int32_t right = -3; right <= 3; ++right)
        if (k != n || down != 0 || right != 0) shifts.push_back({k - int32_t(n), down, right});
  const std::vector<double> variance(2, 1e-12);
  std::vector<int64_t> sums(N * C * size), count(N * size);
  const PatchPass p{.y = x.data() + n * C * size,
                    .x = x.data() + n * C * size,
                    .C = C,
                    .H = H,
                    .W = W,
                    .shifts = shifts.data(),
                    .shift_count = int64_t(shifts.size()),
                    .alike = alike,
                    .variance = variance.data(),
                    .variance_steps = 1,
                    .low = 0,
                    .steps_a_unit = 1,
                    .sums = sums.data() + n * C * size,
                    .count = count.data() + n * size,
                    .channel = size};
  std::vector<double> scratch(p.scratch());
  for (int64_t row = 0; row <= (H - PATCH) / PATCH_STRIDE; ++row) row_of_groups(p, row, scratch.data());
  for (int64_t i = 0; i < N * C * size; ++i) {
    const int64_t times = count[i / (C * size) * size + i % size];
    const bool covered = i / (C * size) == n && i % W < p.columns() * PATCH_STRIDE + 2;
    const bool estimated = i % size / W < (H - PATCH) / PATCH_STRIDE * PATCH_STRIDE + PATCH && covered;
    if (estimated ? times > 0 && std::abs(double(sums[i]) * 0x1p-32 / double(times) - x[i]) < 1e-6
                  : times > 0 || sums[i] == 0)
      continue;
    if (++failures <= 20)
      std::fprintf(stderr, "FAILED sample %ld of %ldx%ldx%ld\n", long(i), long(C), long(H), long(W));
  }
}

}  // namespace
}  // namespace dip_fast::cpu

int main() {
  using namespace dip_fast::cpu;
#if defined(__AVX512F__)
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512vl")) return 77;
#elif defined(__AVX2__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 77;
#endif
  test(1, 5, 8, 2, 0);
  test(3, 12, 19, 9, 1);
  test(4, 9, 22, 16, 0);
  std::printf(failures == 0 ? "passed\n" : "%d failed\n", failures);
  return failures == 0 ? 0 : 1;
}
