// The kernels of layers that write 16 bits, for AVX-512 with products of bfloat16.
#include "layers.h"

namespace dip_fast::cpu {
namespace {

#include "layer_passes.h"

}  // namespace

constinit const LayersTo16Bits layers_to_16_avx512_bf16 = layers_to_16_bits();

}  // namespace dip_fast::cpu
