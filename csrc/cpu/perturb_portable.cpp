// The kernels of perturb and of masked views, which are made of the same random words, for any CPU.
#include "masking.h"
#include "perturb.h"

namespace dip_fast::cpu {
namespace {

#include "perturb_kernel.h"
// after it, since it draws the same words
#include "masking_kernel.h"

}  // namespace

constinit const PerturbKernels perturb_portable{perturb_groups<float>, perturb_groups<uint8_t>, perturb_groups<int8_t>};
constinit const MaskingKernels masking_portable{draw_words, mask_band};

}  // namespace dip_fast::cpu
