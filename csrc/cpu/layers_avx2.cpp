// The kernels of whole layers, for AVX2 and FMA.
#include "layers.h"

namespace dip_fast::cpu {
namespace {

#include "layer_passes.h"

}  // namespace

constinit const AllLayerKernels layers_avx2 = all_layer_kernels();

}  // namespace dip_fast::cpu
