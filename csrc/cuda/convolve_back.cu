// The gradient of a convolution's input: a transposed convolution, or for upsampled images a product of F_t
// (fields.cu).
#include "convolve.cuh"

namespace dip_fast::cuda {

#define INSTANTIATE(K)                                                                                            \
  template void convolve<K>(const TransposedPatch<K>&, const ConvShape&, const K::Factor*, const Depths&,         \
                            const BackwardEpilogue<K>&, Stream);                                                  \
  template void convolve<K>(const Patch<K, Sampling::direct>&, const ConvShape&, const K::Factor*, const Depths&, \
                            const BackwardEpilogue<K>&, Stream);
DIP_FAST_EACH_KIND(INSTANTIATE)

}  // namespace dip_fast::cuda
