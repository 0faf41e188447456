// The kernels of perturb, for any CPU.
#include "perturb.h"

namespace dip_fast::cpu {
namespace {

#include "perturb_kernel.h"

}  // namespace

constinit const PerturbKernels perturb_portable{perturb_groups<float>, perturb_groups<uint8_t>, perturb_groups<int8_t>};

}  // namespace dip_fast::cpu
