// The convolution of an image that is upsampled to the nearest, with a thin one beside it, by nine products.
//
// Of a line x upsampled to the nearest, three taps w give for each pixel two outputs,
//
//   w0 x[i-1] + (w1 + w2) x[i] = P0 + P1        P0 = w0 (x[i-1] - x[i])    P1 = (w0 + w1 + w2) x[i]
//   (w0 + w1) x[i] + w2 x[i+1] = P1 + P2        P2 = w2 (x[i+1] - x[i])
//
// and of an image nine products give four, its phases: P[a][b] goes to rows of parity 0 for a = 0, to both for a = 1,
// to those of parity 1 for a = 2, and so for columns.  A block makes one product after the other, over all channels,
// and adds each to its phases, whose sums wait in registers.  The thin image, which has the size of the outputs, comes
// last, a phase at a time.
#include "convolve.cuh"

namespace dip_fast::cuda {
namespace {

constexpr int PHASES = 4, NINE = 9;

template <class K>
struct ByNine {
  Nine<K> operand;
  Sites sites;
  const typename K::Factor* factors;  // (rows, nine times deep and then thin)
  int deep, thin, channels;
  Raw<K> raw;
};

// Whether product p of nine, or that of the thin image with phase p - 9, is part of a phase.
DIP_FAST_HD bool goes_to(int p, int phase) {
  if (p >= NINE) return p - NINE == phase;
  const int row = phase / 2, column = phase % 2, down = p / 3, across = p % 3;
  return (down == row || down == row + 1) && (across == column || across == column + 1);
}

template <class K, class T>
__global__ void __launch_bounds__(THREADS, 1) nine_kernel(ByNine<K> a) {
  using Factor = typename K::Factor;
  using Sum = typename K::Sum;
  using P = Product<Factor, T>;
  using S = Shared<Factor, T>;
  const int channel = blockIdx.y * T::N, pitch = NINE * a.deep + a.thin, products = a.thin > 0 ? NINE + PHASES : NINE;
  const int64_t first = int64_t(blockIdx.x) * T::M;
  Factor* shared = shared_memory<Factor>();
  Feed<K, T> feed(a.sites, 0, first, a.factors + int64_t(channel) * pitch, pitch);  // a site is the pixel of phase 0
  const auto fetch = [&](int product, int depth, Factor* step) {
    if (product < NINE) {
      const auto deep = a.operand.from(product, depth + 4 * feed.quad);
      feed.fetch(product * a.deep + depth, step, [&](int row, int column) { return deep.at(row >> 1, column >> 1); });
    } else {
      const int down = (product - NINE) / 2, across = (product - NINE) % 2;
      const auto thin = a.operand.thin.template from<4>(depth + 4 * feed.quad, 0);
      feed.fetch(NINE * a.deep + depth, step,
                 [&](int row, int column) { return thin.at(row + down, column + across); });
    }
  };

  P phases[PHASES], sum;
  fetch(0, 0, shared);
  feed.keep(shared);
  barrier();
  for (int product = 0, depth = 0, at = 0; product < products; at ^= 1) {
    const bool last = depth + P::DEPTH == (product < NINE ? a.deep : a.thin);
    const int next = last ? product + 1 : product, next_depth = last ? 0 : depth + P::DEPTH;
    if (next < products) fetch(next, next_depth, shared + (at ^ 1) * S::STEP);
    sum.step(shared + at * S::STEP);
    if (last) {
#pragma unroll
      for (int phase = 0; phase < PHASES; ++phase)
        if (goes_to(product, phase)) phases[phase].add(sum);
      sum = P();
    }
    if (next < products) feed.keep(shared + (at ^ 1) * S::STEP);
    barrier();
    product = next, depth = next_depth;
  }

  Sum* sums = shared_memory<Sum>();
#pragma unroll
  for (int phase = 0; phase < PHASES; ++phase) {
    phases[phase].put(sums, S::PITCH);
    barrier();
    finish_tile<K, T>(sums, a.sites, phase, first, channel, a.channels, a.raw);
    barrier();
  }
}

// In float32 and float64 the sums of differences would round more than the multiplications saved are worth.
template <class K>
constexpr bool ON_TENSOR_CORES = !std::is_same_v<typename K::Factor, typename K::Sum>;

template <class K, class Use>
auto with_tile_of(const Work& work, Use use) {
  if constexpr (ON_TENSOR_CORES<K>)
    if (work.nine) return use(typename Tiles<typename K::Factor>::Nine{});
  return with_tile<typename K::Factor>(work.sites.most() * work.sites.phases(), work.channels, work.quads, use);
}

}  // namespace

template <class K>
bool takes_nine(const Sites& sites, int channels) {
  if constexpr (ON_TENSOR_CORES<K>) {
    using All = Tiles<typename K::Factor>;
    return channels > All::Thin::N && sites.most() * channels >= int64_t(BUSY) * All::Nine::M * All::Nine::N;
  }
  return false;
}

template <class K>
int64_t convolution_parts(const Work& work) {
  return with_tile_of<K>(work, [&]<class T>(T) {
    return int64_t(quotient_up(work.sites.most(), T::M)) * work.sites.phases() * (THREADS / T::N);
  });
}

template <class K>
int factor_rows(const Work& work) {
  return with_tile_of<K>(work, [&]<class T>(T) { return rounded_up(work.channels, T::N); });
}

template <class K>
void convolve_nine(const Nine<K>& operand, const Work& work, const typename K::Factor* factors, int deep, int thin,
                   const Raw<K>& raw, Stream stream) {
  if constexpr (ON_TENSOR_CORES<K>) {
    using T = typename Tiles<typename K::Factor>::Nine;
    const dim3 grid(quotient_up(work.sites.most(), T::M), quotient_up(work.channels, T::N));
    launch<true>(nine_kernel<K, T>, grid, THREADS, Shared<typename K::Factor, T>::BYTES, stream,
                 ByNine<K>{operand, work.sites, factors, deep, thin, work.channels, raw});
  }
}

#define INSTANTIATE(K)                                \
  template bool takes_nine<K>(const Sites&, int);     \
  template int64_t convolution_parts<K>(const Work&); \
  template int factor_rows<K>(const Work&);           \
  template void convolve_nine<K>(const Nine<K>&, const Work&, const K::Factor*, int, int, const Raw<K>&, Stream);
DIP_FAST_EACH_KIND(INSTANTIATE)

}  // namespace dip_fast::cuda
