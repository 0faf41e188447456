// The kernels of similar_patches for any CPU.
#include "similar_patches.h"

namespace dip_fast::cpu {
namespace {

#include "similar_patches_kernel.h"

}  // namespace

constinit const PatchKernels patches_portable{row_of_groups};

}  // namespace dip_fast::cpu
