// The kernels of whole layers, for any CPU.
#include "layers.h"

namespace dip_fast::cpu {
namespace {

#include "layer_passes.h"

}  // namespace

constinit const AllLayerKernels layers_portable = all_layer_kernels();

}  // namespace dip_fast::cpu
