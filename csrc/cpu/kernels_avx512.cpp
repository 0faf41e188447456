// The kernels for AVX-512.
#include "kernels.h"

namespace dip_fast::cpu {
namespace {

#include "passes.h"

constexpr Kernels<float> float32 = kernels_of<float>();
constexpr Kernels<double> float64 = kernels_of<double>();

}  // namespace

const Level avx512{"avx512", &float32, &float64};

}  // namespace dip_fast::cpu
