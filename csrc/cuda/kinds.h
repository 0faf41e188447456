// The number formats that the kernels are instantiated for.
#pragma once

#include <cstdint>

namespace dip_fast::cuda {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};
struct TF32 {  // a float of which tensor cores read 10 bits of the fraction
  float value;
};

// One instantiation of the kernels.  Templates take it as K; the number of output channels, which comments call K too,
// is `outputs` or `channels` in code.
template <class Stored_, class Sum_, class Factor_>
struct Kind {
  using Stored = Stored_;  // images and their gradients in memory
  using Sum = Sum_;        // accumulators, parameters and the gradients of parameters
  using Factor = Factor_;  // what the matrix products multiply
};
using KindFloat64 = Kind<double, double, double>;
using KindFloat32 = Kind<float, float, float>;
using KindTF32 = Kind<float, float, TF32>;
using KindBFloat16 = Kind<BFloat16, float, BFloat16>;
using KindHalf = Kind<Half, float, Half>;

}  // namespace dip_fast::cuda
