// The way back through upsampling and padding: of the gradient of a convolution's output, for each of its nine taps,
// what it gives to the pixels of the small image,
//
//   F_t(i, j) = sum_{o, p} a_t(o, i) a_t(p, j) G(o, p),   a_t: field_weight, the adjoint of upsampling and padding,
//
// for upsampling to the nearest and bilinearly, and for every padding.  The gradients of input and weight are then
// products of matrices over the small image, a quarter of the multiplications:
//
//   dx = sum_t W_t^T F_t      dW_t = x^T F_t
#include "kernels.cuh"
#include "product.cuh"

namespace dip_fast::cuda {
namespace {

template <class K>
struct Fields {
  OutputGrad<K> output_grad;
  bool bilinear;
  Padding padding;
  typename K::Stored* to;  // (H, W, 9, K)
};

constexpr int RUN = 8,  // pixels of a row that a thread goes along
    WINDOW = 6,         // outputs 2 i - 2 .. 2 i + 3, of which upsampling to the nearest has those between
    FIRST = -2;

// Of the outputs around pixel i of a line what each counts in its three fields.
template <class Sum>
struct Weights {
  Sum at[3][WINDOW];

  DIP_FAST_D Weights(int i, int size, bool bilinear, Padding padding) {
#pragma unroll
    for (int t = 0; t < 3; ++t)
#pragma unroll
      for (int o = 0; o < WINDOW; ++o) {
        if (i > 1 && i < size - 2) {        // no output in the window reads the padding, nor a pixel that is repeated
          const int r = o + FIRST + t - 1;  // from 2 i
          at[t][o] = r == 0 || r == 1    ? Sum(bilinear ? 0.75 : 1)
                     : r == -1 || r == 2 ? Sum(bilinear ? 0.25 : 0)
                                         : Sum(0);
        } else {
          at[t][o] = tap_grad_weight(2 * i + FIRST + o, i, t, size, bilinear, padding);
        }
      }
  }
};

template <class K, int width>
__global__ void __launch_bounds__(THREADS, 1) tap_grads_kernel(Fields<K> a) {
  using Sum = typename K::Sum;
  using Values = Vec<Sum, width>;
  const auto& grad = a.output_grad.grad;
  const int height = grad.height / 2, columns = grad.width / 2, quads = grad.channels / width,
            runs = ceil_div(columns, RUN);
  const int64_t index = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (index >= int64_t(height) * runs * quads) return;
  const int channel = int(index % quads) * width, run = int(index / quads);
  const int i = run / runs, begin = run % runs * RUN, end = begin + RUN < columns ? begin + RUN : columns;
  const auto output_grad = a.output_grad.template channels<width>(channel);
  const Weights<Sum> down(i, height, a.bilinear, a.padding);

  // Three sums over the rows of each column of the window, which moves on by two.
  Values window[WINDOW][3];
  const auto fill = [&](int p, Values(&sums)[3]) {
#pragma unroll
    for (int t = 0; t < 3; ++t) sums[t] = {};
    if (p < 0 || p >= grad.width) return;
#pragma unroll
    for (int o = 0; o < WINDOW; ++o) {
      const int row = 2 * i + FIRST + o;
      if (row < 0 || row >= grad.height || (!a.bilinear && (o == 0 || o == WINDOW - 1))) continue;
      const Values g = output_grad.at(int64_t(row) * grad.width + p);
#pragma unroll
      for (int t = 0; t < 3; ++t)
#pragma unroll
        for (int e = 0; e < width; ++e) sums[t].at[e] += down.at[t][o] * g.at[e];
    }
  };
#pragma unroll
  for (int c = 2; c < WINDOW; ++c) fill(2 * begin + FIRST + c - 2, window[c]);
  typename K::Stored* to = a.to + (int64_t(i) * columns + begin) * 9 * grad.channels + channel;
#pragma unroll 1
  for (int j = begin; j < end; ++j, to += 9 * grad.channels) {
#pragma unroll
    for (int c = 0; c < WINDOW; ++c) {
      if (c + 2 < WINDOW) {
#pragma unroll
        for (int t = 0; t < 3; ++t) window[c][t] = window[c + 2][t];
      } else {
        fill(2 * j + FIRST + c, window[c]);
      }
    }
    const Weights<Sum> across(j, columns, a.bilinear, a.padding);
#pragma unroll
    for (int t = 0; t < 9; ++t) {
      Values sum;
#pragma unroll
      for (int c = 0; c < WINDOW; ++c)
#pragma unroll
        for (int e = 0; e < width; ++e) sum.at[e] += across.at[t % 3][c] * window[c][t / 3].at[e];
      store(to + t * grad.channels, sum);
    }
  }
}

}  // namespace

template <class K>
void tap_grads(const OutputGrad<K>& output_grad, bool bilinear, Padding padding, typename K::Stored* to,
               Stream stream) {
  const auto& grad = output_grad.grad;
  const int64_t runs = int64_t(grad.height / 2) * ceil_div(grad.width / 2, RUN);
  const Fields<K> call{output_grad, bilinear, padding, to};
  constexpr int WIDE = sizeof(typename K::Sum) > 4 ? 1 : 4;  // four of float64 need more registers than there are
  const bool wide = grad.channels % WIDE == 0;
  const auto blocks = ceil_div(runs * (wide ? grad.channels / WIDE : grad.channels), THREADS);
  launch<false>(wide ? tap_grads_kernel<K, WIDE> : tap_grads_kernel<K, 1>, dim3(blocks), THREADS, 0, stream, call);
}

#define INSTANTIATE(K) template void tap_grads<K>(const OutputGrad<K>&, bool, Padding, K::Stored*, Stream);
DIP_FAST_EACH_KIND(INSTANTIATE)

}  // namespace dip_fast::cuda
