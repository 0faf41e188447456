// Convolutions of an image of the same size, or of half: 1x1, 3x3, 3x3 with stride 2.
#include "convolve.cuh"

namespace dip_fast::cuda {

#define INSTANTIATE(K)                                                                                   \
  template void convolve<K>(const Patch<K, Form::window>&, const Work&, const K::Factor*, const Depths&, \
                            const Raw<K>&, Stream);
DIP_FAST_EACH_KIND(INSTANTIATE)

}  // namespace dip_fast::cuda
