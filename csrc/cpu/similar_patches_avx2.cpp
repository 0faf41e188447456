// The kernels of similar_patches for AVX2 and FMA.
#include "similar_patches.h"

namespace dip_fast::cpu {
namespace {

#include "similar_patches_kernel.h"

}  // namespace

constinit const PatchKernels patches_avx2{row_of_groups};

}  // namespace dip_fast::cpu
