// The kernels of whole layers, for AVX-512.
#include "layers.h"

namespace dip_fast::cpu {
namespace {

#include "layer_passes.h"

}  // namespace

constinit const BothPrecisions<LayerKernels> layers_avx512{make_layer_kernels<float>(), make_layer_kernels<double>()};

}  // namespace dip_fast::cpu
