// Convolutions without upsampling: 1x1, 3x3, and 3x3 with stride 2.
#include "convolve.cuh"

namespace dip_fast::cuda {

#define INSTANTIATE(K)                                                                                            \
  template void convolve<K>(const Patch<K, Sampling::direct>&, const ConvShape&, const K::Factor*, const Depths&, \
                            const StoreEpilogue<K>&, Stream);
DIP_FAST_EACH_KIND(INSTANTIATE)

}  // namespace dip_fast::cuda
