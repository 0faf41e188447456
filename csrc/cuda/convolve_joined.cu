// Convolutions of a skip image concatenated with a deep image that is upsampled by two.
//
// For nearest-neighbour upsampling, only 2 x 2 of the 9 pixels that an output reads differ.  Taps that read the same
// pixel are added beforehand, which leaves four products for each of four phases: 16 in all.  The nine products of
// convolve_nine.cu are fewer, but round more and need more sites to fill a GPU.
//
// Bilinear upsampling is nearest-neighbour upsampling followed by a blur, and away from the padding a blur of the input
// is a blur of the output.  So the deep image is convolved as if upsampled by nearest neighbour (ConcatPatch without a
// skip image), the outputs on the border, which read the padding, are computed directly (BorderPatch), and the
// convolution of the skip image adds both (BlurEpilogue).
#include "convolve.cuh"

namespace dip_fast::cuda {

#define INSTANTIATE(K)                                                                                            \
  template void convolve<K>(const ConcatPatch<K>&, const ConvShape&, const K::Factor*, const Depths&,             \
                            const StoreEpilogue<K>&, Stream);                                                     \
  template void convolve<K>(const BorderPatch<K>&, const ConvShape&, const K::Factor*, const Depths&,             \
                            const StoreEpilogue<K>&, Stream);                                                     \
  template void convolve<K>(const Patch<K, Sampling::direct>&, const ConvShape&, const K::Factor*, const Depths&, \
                            const BlurEpilogue<K>&, Stream);
DIP_FAST_EACH_KIND(INSTANTIATE)

}  // namespace dip_fast::cuda
