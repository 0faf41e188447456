// The kernels for AVX2 and FMA: 16 registers of 32 bytes, 12 of them for the sums.
#include "kernels.h"

namespace dip_fast::cpu {
namespace {

#include "passes.h"

constexpr Kernels<float> float32 = kernels_of<Tile<float, 8, 6, 2>>();
constexpr Kernels<double> float64 = kernels_of<Tile<double, 4, 6, 2>>();

}  // namespace

const Level avx2{"avx2", &float32, &float64};

}  // namespace dip_fast::cpu
