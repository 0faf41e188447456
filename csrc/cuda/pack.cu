// Weights as right factors: rows are outputs of the product, the depth goes over taps and channels as the left factor
// has it, and zeros fill rows and depth to whole tiles.
#include "kernels.cuh"
#include "product.cuh"

namespace dip_fast::cuda {
namespace {

template <class K>
struct Pack {
  Packing<K> to;
  Taps taps;
  bool transposed;
  int stride;
  Digits row_taps[2], column_taps[2];
};

// Of three taps those that meet in one of the two pixels that an output of this parity reads, as bits.
DIP_FAST_D int meeting(int parity, int pixel) { return parity == 0 ? (pixel == 0 ? 1 : 6) : (pixel == 0 ? 3 : 4); }
// Those of one of three products: of the difference before, of the pixel, of the difference after.
DIP_FAST_D int multiplying(int product) { return product == 0 ? 1 : product == 1 ? 7 : 4; }

template <class K>
__global__ void __launch_bounds__(THREADS, 1) pack_kernel(Pack<K> a) {
  using Sum = typename K::Sum;
  const Packing<K>& to = a.to;
  const int phase = blockIdx.y;
  const int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= int64_t(to.rows) * to.depth) return;
  const int row = int(i / to.depth), depth = int(i % to.depth);
  Sum value = 0;
  const auto weight = [&](int k, int c, int down, int across) {
    return to.weight[((int64_t(k) * to.channels + to.offset + c) * to.taps + down) * to.taps + across];
  };
  if (a.transposed) {
    const Digits down = phase / a.stride == 0 ? a.row_taps[0] : a.row_taps[1],
                 across = phase % a.stride == 0 ? a.column_taps[0] : a.column_taps[1];
    const int tap = depth / to.outputs, k = depth % to.outputs;
    if (row < to.count && tap < int(down.count * across.count))
      value = weight(k, row, down.at(tap / across.count), across.at(tap % across.count));
  } else if (row < to.outputs) {
    const int tap = depth / to.per_tap, c = depth % to.per_tap, side = a.taps == Taps::folded ? 2 : to.taps;
    if (tap < side * side && c < to.count) {
      const int i = tap / side, j = tap % side;
      if (a.taps == Taps::single) {
        value = weight(row, c, i, j);
      } else {
        const bool folded = a.taps == Taps::folded;
        const int down = folded ? meeting(phase / 2, i) : multiplying(i),
                  across = folded ? meeting(phase % 2, j) : multiplying(j);
        for (int t = 0; t < 9; ++t)
          if ((down >> (t / 3) & 1) && (across >> (t % 3) & 1)) value += weight(row, c, t / 3, t % 3);
      }
    }
  }
  to.factors[(int64_t(phase) * to.rows + row) * to.pitch + to.begin + depth] = narrowed<typename K::Factor>(value);
}

template <class K>
void run(const Pack<K>& call, int phases, Stream stream) {
  launch<false>(pack_kernel<K>, dim3(quotient_up(int64_t(call.to.rows) * call.to.depth, THREADS), phases), THREADS, 0,
                stream, call);
}

}  // namespace

template <class K>
void pack(const Packing<K>& packing, Taps taps, int phases, Stream stream) {
  run<K>({packing, taps, false, 1, {}, {}}, phases, stream);
}

template <class K>
void pack_transposed(const Packing<K>& packing, const Digits (&row_taps)[2], const Digits (&column_taps)[2], int stride,
                     Stream stream) {
  run<K>({packing, Taps::single, true, stride, {row_taps[0], row_taps[1]}, {column_taps[0], column_taps[1]}},
         stride * stride, stream);
}

template <class K>
int rounded_depth(int depth) {
  return rounded_up(depth, Product<typename K::Factor, typename Tiles<typename K::Factor>::Wide>::DEPTH);
}

#define INSTANTIATE(K)                                                                                      \
  template void pack<K>(const Packing<K>&, Taps, int, Stream);                                              \
  template void pack_transposed<K>(const Packing<K>&, const Digits(&)[2], const Digits(&)[2], int, Stream); \
  template int rounded_depth<K>(int);
DIP_FAST_EACH_KIND(INSTANTIATE)

}  // namespace dip_fast::cuda
