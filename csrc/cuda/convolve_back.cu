// The way back through convolutions, to their input.
#include "convolve.cuh"

namespace dip_fast::cuda {

#define INSTANTIATE(K)                                                                                         \
  template void convolve<K>(const Readers2d<K>&, const Work&, const K::Factor*, const Depths&, const Back<K>&, \
                            Stream);                                                                           \
  template void convolve<K>(const Patch<K, Form::window>&, const Work&, const K::Factor*, const Depths&,       \
                            const Back<K>&, Stream);
DIP_FAST_EACH_KIND(INSTANTIATE)

}  // namespace dip_fast::cuda
