// The kernels of whole layers, for any CPU.
#include "layers.h"

namespace dip_fast::cpu {
namespace {

#include "layer_passes.h"

}  // namespace

constinit const BothPrecisions<LayerKernels> layers_portable{make_layer_kernels<float>(), make_layer_kernels<double>()};

}  // namespace dip_fast::cpu
