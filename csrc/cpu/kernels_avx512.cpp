// The kernels for AVX-512: 32 registers of 64 bytes, 24 of them for the sums.
#include "kernels.h"

namespace dip_fast::cpu {
namespace {

#include "passes.h"

constexpr Kernels<float> float32 = kernels_of<Tile<float, 16, 12, 2>>();
constexpr Kernels<double> float64 = kernels_of<Tile<double, 8, 12, 2>>();

}  // namespace

const Level avx512{"avx512", &float32, &float64};

}  // namespace dip_fast::cpu
