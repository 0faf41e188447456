// Convolutions of an image that is upsampled by two, with a thin one beside it.
//
// To the nearest, 4 of the 9 pixels that an output reads differ, and their taps are added beforehand: 16 products of
// matrices for the four phases, where there are too few sites for the nine of convolve_nine.cu, or sums are to round
// least.  Bilinearly upsampled is upsampled to the nearest and blurred, and a blur of the input is one of the output.
#include "convolve.cuh"

namespace dip_fast::cuda {

#define INSTANTIATE(K)                                                                                                 \
  template void convolve<K>(const Joined<K>&, const Work&, const K::Factor*, const Depths&, const Raw<K>&, Stream);    \
  template void convolve<K>(const Bordering<K>&, const Work&, const K::Factor*, const Depths&, const Raw<K>&, Stream); \
  template void convolve<K>(const Patch<K, Form::window>&, const Work&, const K::Factor*, const Depths&,               \
                            const Blurred<K>&, Stream);
DIP_FAST_EACH_KIND(INSTANTIATE)

}  // namespace dip_fast::cuda
