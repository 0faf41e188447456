// The kernels of perturb, for AVX-512.
#include "perturb.h"

namespace dip_fast::cpu {
namespace {

#include "perturb_kernel.h"

}  // namespace

constinit const PerturbKernels perturb_avx512{perturb_groups<float>, perturb_groups<uint8_t>, perturb_groups<int8_t>};

}  // namespace dip_fast::cpu
