// Convolutions of an image that is upsampled by two, with a thin one beside it.
//
// To the nearest, 4 of the 9 pixels that an output reads differ, and their taps are added beforehand: 16 products of
// matrices for the four phases.  The design's nine have as many multiplications fewer as they have sums more: each
// product adds to up to four phases, whose sums must be held at once, so that a warp's tile is a quarter as large and
// reads its factors from shared memory four times as often, and that is what binds here.  Backward (fields.cu), where
// all products add to the same sums, there are nine.
//
// Bilinearly upsampled is upsampled to the nearest and blurred, and a blur of the input is one of the output.
#include "convolve.cuh"

namespace dip_fast::cuda {

#define INSTANTIATE(K)                                                                                              \
  template void convolve<K>(const Joined<K, Form::folded>&, const Sites&, const K::Factor*, const Depths&, int,     \
                            const Raw<K>&, Stream);                                                                 \
  template void convolve<K>(const Bordering<K>&, const Sites&, const K::Factor*, const Depths&, int, const Raw<K>&, \
                            Stream);                                                                                \
  template void convolve<K>(const Patch<K, Form::window>&, const Sites&, const K::Factor*, const Depths&, int,      \
                            const Blurred<K>&, Stream);
DIP_FAST_EACH_KIND(INSTANTIATE)

}  // namespace dip_fast::cuda
