// The kernel that adds noise, for any CPU.
#include "perturb.h"

namespace dip_fast::cpu {
namespace {

#include "perturb_kernel.h"

}  // namespace

void perturb_portable(const Noise& noise, const float* z, float* output, int64_t size, int64_t begin, int64_t end) {
  perturb_groups(noise, z, output, size, begin, end);
}

}  // namespace dip_fast::cpu
