// The kernels for any CPU: vectors of 16 bytes, 8 registers of 16 for the sums.
#include "kernels.h"

namespace dip_fast::cpu {
namespace {

#include "passes.h"

constexpr Kernels<float> float32 = kernels_of<Tile<float, 4, 4, 2>>();
constexpr Kernels<double> float64 = kernels_of<Tile<double, 2, 4, 2>>();

}  // namespace

const Level portable{"portable", &float32, &float64};

}  // namespace dip_fast::cpu
