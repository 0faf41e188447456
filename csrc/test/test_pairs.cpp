// Tests of the paired tile against sums in float64 of rounded factors.  Exit code 0: passed, 1: failed, 77: the CPU
// lacks the instructions.
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "cpu/kernels.h"

namespace dip_fast::cpu {
namespace {

#include "cpu/passes.h"

using Paired = LayerTile<BFloat16>;
static_assert(Paired::PAIRS);

int failures = 0;
std::mt19937 generator(0);

std::vector<float> noise(int64_t count) {
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> values(count);
  for (float& value : values) value = uniform(generator);
  return values;
}

double rounded(float value) { return value_of(stored<BFloat16>(value)); }

void check(float got, double expected, const char* what, int64_t depth, int64_t i, int64_t j) {
  if (std::abs(got - expected) <= 1e-5) return;
  if (++failures <= 20)
    std::fprintf(stderr, "FAILED %s of depth %ld at %ld, %ld\n", what, long(depth), long(i), long(j));
}

// Operands are paired in their place, in memory that ends with them; what is beyond an odd depth counts for nothing.
template <class Tile>
void test_products(int64_t depth, const char* what) {
  constexpr int64_t NR = Paired::NR, rows = Tile::MR;
  const auto a = noise(rows * depth), b = noise(depth * NR);
  auto pairs = a, panel = b;
  std::vector<float> out(rows * NR, std::numeric_limits<float>::quiet_NaN());
  for (int64_t i = 0; i < rows; ++i) Paired::pair_row(pairs.data() + i * depth, depth, pairs.data() + i * depth);
  Paired::pair_panel(panel.data(), NR, depth, NR);
  Tile::upto(rows, depth, pairs.data(), depth, panel.data(), out.data(), NR, false, NR);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < Tile::NR; ++j) {
      double expected = 0;
      for (int64_t r = 0; r < depth; ++r) expected += rounded(a[i * depth + r]) * rounded(b[r * NR + j]);
      check(out[i * NR + j], expected, what, depth, i, j);
    }
}

}  // namespace
}  // namespace dip_fast::cpu

int main() {
  using namespace dip_fast::cpu;
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vl")) return 77;
  for (int64_t depth : {1, 2, 7, 31, 32, 33, 64}) {
    test_products<Paired>(depth, "a tile");
    test_products<Paired::HalfTile>(depth, "one vector");
    test_products<Paired::RestTile>(depth, "half a vector");
  }
  std::printf(failures == 0 ? "passed\n" : "%d failed\n", failures);
  return failures == 0 ? 0 : 1;
}
