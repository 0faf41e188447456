// The kernels for any CPU.
#include "kernels.h"

namespace dip_fast::cpu {
namespace {

#include "passes.h"

constexpr Kernels<float> float32 = kernels_of<float>();
constexpr Kernels<double> float64 = kernels_of<double>();

}  // namespace

const Level portable{"portable", &float32, &float64};

}  // namespace dip_fast::cpu
