// The kernels of whole layers, for AVX-512.
#include "layers.h"

namespace dip_fast::cpu {
namespace {

#include "layer_passes.h"

}  // namespace

constinit const LayersInFull layers_avx512 = layers_in_full();
constinit const LayersTo16Bits layers_to_16_avx512 = layers_to_16_bits();

}  // namespace dip_fast::cpu
