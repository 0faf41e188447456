// How numbers are stored, what sums are kept in, and what products are made of.
#pragma once

#include <cstdint>

namespace dip_fast::cuda {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};
struct TF32 {  // a float of which products read 10 bits of the fraction
  float value;
};

template <class Stored_, class Sum_, class Factor_>
struct Kind {
  using Stored = Stored_;  // of images and their gradients
  using Sum = Sum_;        // of sums, of parameters and of their gradients
  using Factor = Factor_;  // of what is multiplied
};
using Float64 = Kind<double, double, double>;
using Float32 = Kind<float, float, float>;
using Tensor32 = Kind<float, float, TF32>;
using Brain16 = Kind<BFloat16, float, BFloat16>;
using Half16 = Kind<Half, float, Half>;

}  // namespace dip_fast::cuda
