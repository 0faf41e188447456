// The kernels of whole layers, for AVX2 and FMA.
#include "layers.h"

namespace dip_fast::cpu {
namespace {

#include "layer_passes.h"

}  // namespace

constinit const LayersInFull layers_avx2 = layers_in_full();
constinit const LayersTo16Bits layers_to_16_avx2 = layers_to_16_bits();

}  // namespace dip_fast::cpu
