// Small preparation jobs: the coefficients of norms, and weights packed as right matrices.  Such a job costs little but
// its launch, so a batch of them is one launch; the jobs of a batch do not depend on each other.
#include "kernels.cuh"
#include "product.cuh"

namespace dip_fast::cuda {
namespace {

// ---- packing weights: a row for each output of the product; the depth goes over (tap, channel) in the operand's
// order; zeros fill rows and depth to whole tiles

// For an image upsampled by nearest neighbour, an output reads two different pixels along a line.  The taps that read
// the first or second of them, as a bit mask: {0} and {1, 2} for even outputs, {0, 1} and {2} for odd ones.
DIP_FAST_D int folded_taps(int parity, int pixel) { return parity == 0 ? (pixel == 0 ? 1 : 6) : (pixel == 0 ? 3 : 4); }
// The taps whose sum one of the three products along a line multiplies, as a bit mask, see convolve_nine.cu: w0,
// w0 + w1 + w2, w2.
DIP_FAST_D int product_taps(int product) { return product == 0 ? 1 : product == 1 ? 7 : 4; }

template <class K>
DIP_FAST_D typename K::Sum weight_at(const PackedSlice<K>& slice, int k, int c, int tap_row, int tap_column) {
  return slice
      .weight[((int64_t(k) * slice.channels + slice.offset + c) * slice.taps + tap_row) * slice.taps + tap_column];
}

// Row k, depth (tap, c), with the taps added that belong together.
template <class K>
DIP_FAST_D typename K::Sum forward_value(const PackJob<K>& job, int phase, int row, int depth) {
  const PackedSlice<K>& slice = job.to;
  if (row >= slice.outputs) return 0;
  const int tap = depth / slice.per_tap, c = depth % slice.per_tap, side = job.sums == TapSums::folded ? 2 : slice.taps;
  if (tap >= side * side || c >= slice.count) return 0;
  const int i = tap / side, j = tap % side;
  if (job.sums == TapSums::none) return weight_at(slice, row, c, i, j);
  const bool folded = job.sums == TapSums::folded;
  const int row_taps = folded ? folded_taps(phase / 2, i) : product_taps(i),
            column_taps = folded ? folded_taps(phase % 2, j) : product_taps(j);
  typename K::Sum sum = 0;
  for (int t = 0; t < 9; ++t)
    if ((row_taps >> (t / 3) & 1) && (column_taps >> (t % 3) & 1)) sum += weight_at(slice, row, c, t / 3, t % 3);
  return sum;
}

// Row c, depth (tap, k), where the taps are those that pixels of this phase are read through.
template <class K>
DIP_FAST_D typename K::Sum transposed_value(const PackJob<K>& job, int phase, int row, int depth) {
  const PackedSlice<K>& slice = job.to;
  const TapList rows = phase / job.stride == 0 ? job.row_taps[0] : job.row_taps[1],
                columns = phase % job.stride == 0 ? job.column_taps[0] : job.column_taps[1];
  const int tap = depth / slice.outputs, k = depth % slice.outputs;
  if (row >= slice.count || tap >= int(rows.count * columns.count)) return 0;
  return weight_at(slice, k, row, rows.at(tap / columns.count), columns.at(tap % columns.count));
}

template <class K>
DIP_FAST_D void run(const PackJob<K>& job, int i) {
  const PackedSlice<K>& to = job.to;
  const int per_phase = to.rows * to.depth, phase = i / per_phase, row = i % per_phase / to.depth, depth = i % to.depth;
  const auto value = job.transposed ? transposed_value(job, phase, row, depth) : forward_value(job, phase, row, depth);
  to.factors[(int64_t(phase) * to.rows + row) * to.pitch + to.begin + depth] = narrowed<typename K::Factor>(value);
}

// ---- coefficients

template <class Sum>
DIP_FAST_D void run(const AffineJob<Sum>& job, int c) {
  const double mean = job.statistics[c];
  if (job.grad_statistics == nullptr) {
    const double r = 1 / sqrt(job.statistics[job.pitch + c] + job.eps);
    job.to[c] = Sum(job.weight[c] * r);
    job.to[job.channels + c] = Sum(job.bias[c] - mean * job.weight[c] * r);
    job.to[2 * job.channels + c] = Sum(mean);
    job.to[3 * job.channels + c] = Sum(r);
  } else {
    const double factor = 2 * job.grad_statistics[job.channels + c] / job.pixels;
    job.to[c] = Sum(job.grad_statistics[c] / job.pixels - factor * mean);
    job.to[job.channels + c] = Sum(factor);
  }
}

// y of the grid: a job of the batch.
template <class K>
__global__ void small_jobs_kernel(const __grid_constant__ SmallJobBatch<K> batch) {
  const SmallJob<K>& job = batch.jobs[blockIdx.y];
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
  int largest = 0;
  for (int i = 0; i < batch_.count; ++i) largest = batch_.jobs[i].size > largest ? batch_.jobs[i].size : largest;
  launch<false>(small_jobs_kernel<K>, dim3(ceil_div(largest, THREADS), batch_.count), THREADS, 0, stream_, batch_);
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
