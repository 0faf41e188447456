// The kernels of perturb and of masked views, which are made of the same random words, for AVX2 and FMA.
#include "masking.h"
#include "perturb.h"

namespace dip_fast::cpu {
namespace {

#include "perturb_kernel.h"
// after it, since it draws the same words
#include "masking_kernel.h"

}  // namespace

constinit const PerturbKernels perturb_avx2{perturb_groups<float>, perturb_groups<uint8_t>, perturb_groups<int8_t>};
constinit const MaskingKernels masking_avx2{draw_words, mask_band};

}  // namespace dip_fast::cpu
