// The kernels of whole layers, for AVX-512.
#include "layers.h"

namespace dip_fast::cpu {
namespace {

#include "layer_passes.h"

constexpr Layers<float> float32 = layers_of<float>();
constexpr Layers<double> float64 = layers_of<double>();

}  // namespace

const LayersOf avx512_layers{&float32, &float64};

}  // namespace dip_fast::cpu
