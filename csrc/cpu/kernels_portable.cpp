// The kernels of upsample_conv2d, for any CPU.
#include "kernels.h"

namespace dip_fast::cpu {
namespace {

#include "passes.h"

}  // namespace

constinit const BothPrecisions<UpsampleKernels> upsample_portable{make_upsample_kernels<float>(),
                                                                  make_upsample_kernels<double>()};

}  // namespace dip_fast::cpu
