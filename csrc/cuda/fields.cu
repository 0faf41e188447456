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
  Arriving<K> arriving;
  bool bilinear;
  Padding padding;
  typename K::Stored* to;  // (H, W, 9, K)
};

template <class K, int width>
__global__ void __launch_bounds__(THREADS, 1) fields_kernel(Fields<K> a) {
  using Sum = typename K::Sum;
  const auto& grad = a.arriving.grad;
  const int height = grad.height / 2, columns = grad.width / 2, quads = grad.channels / width;
  const int64_t index = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (index >= int64_t(height) * columns * quads) return;
  const int channel = int(index % quads) * width;
  const int64_t pixel = index / quads;
  const int i = int(pixel / columns), j = int(pixel % columns);
  const int reach = a.bilinear ? 2 : 1;  // outputs 2 i - reach .. 2 i + 1 + reach

  const auto arriving = a.arriving.template channels<width>(channel);
  Some<Sum, width> sums[9];
  for (int o = 2 * i - reach; o <= 2 * i + 1 + reach; ++o) {
    if (o < 0 || o >= grad.height) continue;
    Some<Sum, width> line[3];
    for (int p = 2 * j - reach; p <= 2 * j + 1 + reach; ++p) {
      if (p < 0 || p >= grad.width) continue;
      const auto g = arriving.at(int64_t(o) * grad.width + p);
#pragma unroll
      for (int t = 0; t < 3; ++t) {
        const Sum weight = field_weight(p, j, t, columns, a.bilinear, a.padding);
#pragma unroll
        for (int e = 0; e < width; ++e) line[t].at[e] += weight * g.at[e];
      }
    }
#pragma unroll
    for (int down = 0; down < 3; ++down) {
      const Sum weight = field_weight(o, i, down, height, a.bilinear, a.padding);
#pragma unroll
      for (int across = 0; across < 3; ++across)
#pragma unroll
        for (int e = 0; e < width; ++e) sums[3 * down + across].at[e] += weight * line[across].at[e];
    }
  }
  typename K::Stored* to = a.to + pixel * 9 * grad.channels + channel;
#pragma unroll
  for (int t = 0; t < 9; ++t) store<width>(to + t * grad.channels, sums[t]);
}

}  // namespace

template <class K>
void fields(const Arriving<K>& arriving, bool bilinear, Padding padding, typename K::Stored* to, Stream stream) {
  const auto& grad = arriving.grad;
  const int64_t values = grad.pixels() / 4 * grad.channels;
  const Fields<K> call{arriving, bilinear, padding, to};
  if (grad.channels % 4 == 0)
    launch<false>(fields_kernel<K, 4>, dim3(quotient_up(values / 4, THREADS)), THREADS, 0, stream, call);
  else
    launch<false>(fields_kernel<K, 1>, dim3(quotient_up(values, THREADS)), THREADS, 0, stream, call);
}

#define INSTANTIATE(K) template void fields<K>(const Arriving<K>&, bool, Padding, K::Stored*, Stream);
DIP_FAST_EACH_KIND(INSTANTIATE)

}  // namespace dip_fast::cuda
