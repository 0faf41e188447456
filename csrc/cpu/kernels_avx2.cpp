// The kernels of upsample_conv2d, for AVX2 and FMA.
#include "kernels.h"

namespace dip_fast::cpu {
namespace {

#include "passes.h"

}  // namespace

constinit const BothPrecisions<UpsampleKernels> upsample_avx2{make_upsample_kernels<float>(),
                                                              make_upsample_kernels<double>()};

}  // namespace dip_fast::cpu
