// The tap gradients F_t: the gradient G of a convolution's output, taken back through upsampling and padding to the low
// resolution, for each tap t = (s, u) of the nine separately,
//
//   F_t(i, j) = sum over outputs (o, p) of a_s(o, i) a_u(p, j) G(o, p),    a: tap_grad_weight
//
// This holds for both upsampling modes and every padding.  The gradients of input and weight are then matrix products
// over the low-resolution image, with a quarter of the multiplications:
//
//   dx = sum over t of W_t^T F_t      dW_t = x^T F_t
#include "kernels.cuh"
#include "product.cuh"

namespace dip_fast::cuda {
namespace {

template <class K>
struct TapGrads {
  OutputGrad<K> output_grad;
  bool bilinear;
  Padding padding;
  typename K::Stored* to;  // (H, W, 9, K)
};

constexpr int RUN = 8,  // a thread computes so many consecutive pixels of a row
    WINDOW = 6,         // outputs 2 i - 2 .. 2 i + 3; nearest-neighbour: those at both ends have weight 0
    FIRST = -2;

// a_t(o, i) for a pixel i, the three taps t of a line, and the outputs o of its window.
template <class Sum>
struct Weights {
  Sum at[3][WINDOW];

  DIP_FAST_D Weights(int i, int size, bool bilinear, Padding padding) {
#pragma unroll
    for (int t = 0; t < 3; ++t)
#pragma unroll
      for (int o = 0; o < WINDOW; ++o) {
        if (i > 1 && i < size - 2) {        // no output of the window reads padding, nor a pixel repeated at the border
          const int r = o + FIRST + t - 1;  // relative to 2 i
          at[t][o] = r == 0 || r == 1    ? Sum(bilinear ? 0.75 : 1)
                     : r == -1 || r == 2 ? Sum(bilinear ? 0.25 : 0)
                                         : Sum(0);
        } else {
          at[t][o] = tap_grad_weight(2 * i + FIRST + o, i, t, size, bilinear, padding);
        }
      }
  }
};

// For column p of the outputs and row i of the low resolution: sums[s] = sum over o of a_s(o, i) G(o, p).
template <int width, class K, class Channels>
DIP_FAST_D void sum_rows(const TapGrads<K>& a, const Channels& output_grad, const Weights<typename K::Sum>& weights,
                         int i, int p, Vec<typename K::Sum, width> (&sums)[3]) {
  const auto& grad = a.output_grad.grad;
#pragma unroll
  for (int t = 0; t < 3; ++t) sums[t] = {};
  if (p < 0 || p >= grad.width) return;
  // All loads first, of a line that exists: a test between them would make each wait for the one before.
  typename Channels::Raw raw[WINDOW];
#pragma unroll
  for (int o = 0; o < WINDOW; ++o) {
    const int row = 2 * i + FIRST + o, near = row < 0 ? 0 : row < grad.height ? row : grad.height - 1;
    raw[o] = Channels::load(a.output_grad, output_grad.first, int64_t(near) * grad.width + p);
  }
#pragma unroll
  for (int o = 0; o < WINDOW; ++o) {
    const int row = 2 * i + FIRST + o;
    const bool read = row >= 0 && row < grad.height && (a.bilinear || (o > 0 && o < WINDOW - 1));
    const auto g = read ? output_grad.finish(raw[o]) : Vec<typename K::Sum, width>{};
#pragma unroll
    for (int t = 0; t < 3; ++t)
#pragma unroll
      for (int e = 0; e < width; ++e) sums[t].at[e] += weights.at[t][o] * g.at[e];
  }
}

// F_t of one pixel from the sums of its window's columns, the nine taps one after the other.
template <class K, class Values>
DIP_FAST_D void store_taps(const Values (&window)[WINDOW][3], const Weights<typename K::Sum>& weights, int channels,
                           typename K::Stored* to) {
#pragma unroll
  for (int t = 0; t < 9; ++t) {
    Values sum;
#pragma unroll
    for (int c = 0; c < WINDOW; ++c)
#pragma unroll
      for (int e = 0; e < int(sizeof(sum.at) / sizeof(sum.at[0])); ++e)
        sum.at[e] += weights.at[t % 3][c] * window[c][t / 3].at[e];
    store(to + t * channels, sum);
  }
}

template <class K, int width>
__global__ void __launch_bounds__(THREADS, 1) tap_grads_kernel(TapGrads<K> a) {
  using Sum = typename K::Sum;
  const auto& grad = a.output_grad.grad;
  const int height = grad.height / 2, columns = grad.width / 2, vectors = grad.channels / width,
            runs = ceil_div(columns, RUN);
  const int64_t index = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (index >= int64_t(height) * runs * vectors) return;
  const int channel = int(index % vectors) * width, run = int(index / vectors);
  const int i = run / runs, begin = run % runs * RUN, end = begin + RUN < columns ? begin + RUN : columns;
  const auto output_grad = a.output_grad.template channels<width>(channel);
  const Weights<Sum> row_weights(i, height, a.bilinear, a.padding);

  // The columns of the window, each summed over its rows.  From pixel to pixel the window moves by two columns, so four
  // of six are kept.
  Vec<Sum, width> window[WINDOW][3];
#pragma unroll
  for (int c = 2; c < WINDOW; ++c)
    sum_rows<width>(a, output_grad, row_weights, i, 2 * begin + FIRST + c - 2, window[c]);
  typename K::Stored* to = a.to + (int64_t(i) * columns + begin) * 9 * grad.channels + channel;
#pragma unroll 1
  for (int j = begin; j < end; ++j, to += 9 * grad.channels) {
#pragma unroll
    for (int c = 0; c < WINDOW; ++c) {
      if (c + 2 < WINDOW) {
#pragma unroll
        for (int t = 0; t < 3; ++t) window[c][t] = window[c + 2][t];
      } else {
        sum_rows<width>(a, output_grad, row_weights, i, 2 * j + FIRST + c, window[c]);
      }
    }
    const Weights<Sum> column_weights(j, columns, a.bilinear, a.padding);
    store_taps<K>(window, column_weights, grad.channels, to);
  }
}

}  // namespace

template <class K>
void tap_grads(const OutputGrad<K>& output_grad, bool bilinear, Padding padding, typename K::Stored* to,
               Stream stream) {
  const auto& grad = output_grad.grad;
  const int64_t runs = int64_t(grad.height / 2) * ceil_div(grad.width / 2, RUN);
  const TapGrads<K> call{output_grad, bilinear, padding, to};
  constexpr int WIDE = sizeof(typename K::Sum) > 4 ? 1 : 4;  // four float64 would need more registers than there are
  const bool wide = grad.channels % WIDE == 0;
  const auto blocks = ceil_div(runs * (wide ? grad.channels / WIDE : grad.channels), THREADS);
  launch<false>(wide ? tap_grads_kernel<K, WIDE> : tap_grads_kernel<K, 1>, dim3(blocks), THREADS, 0, stream, call);
}

#define INSTANTIATE(K) template void tap_grads<K>(const OutputGrad<K>&, bool, Padding, K::Stored*, Stream);
DIP_FAST_EACH_KIND(INSTANTIATE)

}  // namespace dip_fast::cuda
