// What is prepared for the large kernels: affine maps of channels, and weights as right factors.  These take no time
// but that of a launch, so those that do not need each other are one.
#include "kernels.cuh"
#include "product.cuh"

namespace dip_fast::cuda {
namespace {

// ---- weights: rows are outputs of the product, the depth goes over taps and channels as the left factor has it, and
// zeros fill rows and depth to whole tiles

// Of three taps those that meet in one of the two pixels that an output of this parity reads, as bits.
DIP_FAST_D int meeting(int parity, int pixel) { return parity == 0 ? (pixel == 0 ? 1 : 6) : (pixel == 0 ? 3 : 4); }
// Those of one of three products: of the difference before, of the pixel, of the difference after.
DIP_FAST_D int multiplying(int product) { return product == 0 ? 1 : product == 1 ? 7 : 4; }

template <class K>
DIP_FAST_D void run(const PackJob<K>& a, int i) {
  using Sum = typename K::Sum;
  const PackedSlice<K>& to = a.to;
  const int per_phase = to.rows * to.depth, phase = i / per_phase, row = i % per_phase / to.depth, depth = i % to.depth;
  Sum value = 0;
  const auto weight = [&](int k, int c, int down, int across) {
    return to.weight[((int64_t(k) * to.channels + to.offset + c) * to.taps + down) * to.taps + across];
  };
  if (a.transposed) {
    const TapList down = phase / a.stride == 0 ? a.row_taps[0] : a.row_taps[1],
                  across = phase % a.stride == 0 ? a.column_taps[0] : a.column_taps[1];
    const int tap = depth / to.outputs, k = depth % to.outputs;
    if (row < to.count && tap < int(down.count * across.count))
      value = weight(k, row, down.at(tap / across.count), across.at(tap % across.count));
  } else if (row < to.outputs) {
    const int tap = depth / to.per_tap, c = depth % to.per_tap, side = a.sums == TapSums::folded ? 2 : to.taps;
    if (tap < side * side && c < to.count) {
      const int i = tap / side, j = tap % side;
      if (a.sums == TapSums::none) {
        value = weight(row, c, i, j);
      } else {
        const bool folded = a.sums == TapSums::folded;
        const int down = folded ? meeting(phase / 2, i) : multiplying(i),
                  across = folded ? meeting(phase % 2, j) : multiplying(j);
        for (int t = 0; t < 9; ++t)
          if ((down >> (t / 3) & 1) && (across >> (t % 3) & 1)) value += weight(row, c, t / 3, t % 3);
      }
    }
  }
  to.factors[(int64_t(phase) * to.rows + row) * to.pitch + to.begin + depth] = narrowed<typename K::Factor>(value);
}

// ---- affine maps

template <class Sum>
DIP_FAST_D void run(const AffineJob<Sum>& a, int c) {
  const double mean = a.statistics[c];
  if (a.grad_statistics == nullptr) {
    const double deviation = 1 / sqrt(a.statistics[a.pitch + c] + a.eps);
    a.to[c] = Sum(a.weight[c] * deviation);
    a.to[a.channels + c] = Sum(a.bias[c] - mean * a.weight[c] * deviation);
    a.to[2 * a.channels + c] = Sum(mean);
    a.to[3 * a.channels + c] = Sum(deviation);
  } else {
    const double by_value = 2 * a.grad_statistics[a.channels + c] / a.pixels;
    a.to[c] = Sum(a.grad_statistics[c] / a.pixels - by_value * mean);
    a.to[a.channels + c] = Sum(by_value);
  }
}

template <class K>
__global__ void small_jobs_kernel(const __grid_constant__ SmallJobBatch<K> a) {
  const SmallJob<K>& job = a.jobs[blockIdx.y];
  const int i = int(blockIdx.x) * THREADS + int(threadIdx.x);
  if (i >= job.size) return;
  if (job.packs)
    run(job.pack, i);
  else
    run(job.affine, i);
}

}  // namespace

template <class K>
void SmallJobs<K>::flush() {
  if (batch_.count == 0) return;
  int most = 0;
  for (int i = 0; i < batch_.count; ++i) most = batch_.jobs[i].size > most ? batch_.jobs[i].size : most;
  launch<false>(small_jobs_kernel<K>, dim3(ceil_div(most, THREADS), batch_.count), THREADS, 0, stream_, batch_);
  batch_.count = 0;
}

template <class K>
int packed_depth(int depth) {
  return round_up(depth, Product<typename K::Factor, typename Tiles<typename K::Factor>::Wide>::DEPTH);
}

#define INSTANTIATE(K)                 \
  template void SmallJobs<K>::flush(); \
  template int packed_depth<K>(int);
DIP_FAST_EACH_KIND(INSTANTIATE)

}  // namespace dip_fast::cuda
