// The kernels of whole layers, for any CPU.
#include "layers.h"

namespace dip_fast::cpu {
namespace {

#include "layer_passes.h"

}  // namespace

constinit const LayersInFull layers_portable = layers_in_full();
constinit const LayersTo16Bits layers_to_16_portable = layers_to_16_bits();

}  // namespace dip_fast::cpu
