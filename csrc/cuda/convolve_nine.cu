// The convolution of a skip image concatenated with a deep image upsampled by nearest neighbour, in nine products.
//
// Three taps w over a line x upsampled by nearest neighbour give two outputs for each pixel,
//
//   w0 x[i-1] + (w1 + w2) x[i] = P0 + P1        P0 = w0 (x[i-1] - x[i])    P1 = (w0 + w1 + w2) x[i]
//   (w0 + w1) x[i] + w2 x[i+1] = P1 + P2        P2 = w2 (x[i+1] - x[i])
//
// In two dimensions there are nine products P[a][b] for four outputs, the phases.  P[a][b] is part of even rows for
// a = 0, of all rows for a = 1, of odd rows for a = 2; likewise of columns for b.  A block computes one product after
// the other, each over all channels, and adds it to its phases, whose sums stay in registers.  The skip image, which
// has the resolution of the output, comes last: one more product for each phase.
#include "convolve.cuh"

namespace dip_fast::cuda {
namespace {

constexpr int PHASES = 4, NINE = 9;

template <class K>
struct NineArguments {
  DifferencePatch<K> operand;
  Sites sites;
  const typename K::Factor* factors;  // (rows, 9 deep + skip)
  int deep, skip, channels;           // depths in whole steps; channels of the output
  StoreEpilogue<K> epilogue;
};

// Whether a phase contains product p: one of the nine, or for p >= 9 that of the skip image for phase p - 9.
DIP_FAST_HD bool contributes_to(int p, int phase) {
  if (p >= NINE) return p - NINE == phase;
  const int row = phase / 2, column = phase % 2, down = p / 3, across = p % 3;
  return (down == row || down == row + 1) && (across == column || across == column + 1);
}

// Reads one of the nine products, or the skip image for one of the phases.  Its numbers take up to four loads, so they
// are computed at once: there are no registers for all that the next step needs.
template <class K>
struct NineReader {
  bool is_deep;
  int down, across;
  typename DifferencePatch<K>::Reader deep;
  typename Patch<K, Sampling::direct>::template Reader<4> skip;
  struct Place {
    int row = -1, column = 0;
  };
  using Raw = Vec<typename K::Sum, 4>;
  struct Channels {};

  DIP_FAST_D int tap() const { return -1; }
  DIP_FAST_D Place place(int row, int column) const { return {row, column}; }
  DIP_FAST_D Raw load(const Place& place) const {
    if (place.row < 0) return {};
    if (is_deep) return deep.at(place.row >> 1, place.column >> 1);
    const Pixel pixel = skip.place(place.row + down, place.column + across);
    return skip.finish(skip.load(pixel), skip.channels(), pixel, 0, 0);
  }
  DIP_FAST_D Channels channels() const { return {}; }
  DIP_FAST_D Raw finish(const Raw& raw, const Channels&, const Place&, int, int) const { return raw; }
};

template <class K, class T>
__global__ void __launch_bounds__(T::THREADS, 1) nine_kernel(NineArguments<K> a) {
  using Factor = typename K::Factor;
  using Sum = typename K::Sum;
  using P = Product<Factor, T>;
  using S = Shared<Factor, T>;
  const int channel = blockIdx.y * T::N, pitch = NINE * a.deep + a.skip, products = a.skip > 0 ? NINE + PHASES : NINE;
  const int64_t first = int64_t(blockIdx.x) * T::M;
  Factor* shared = shared_memory<Factor>();
  // A site is a pixel of the deep image, given as the output of phase 0.
  TileLoader<K, T, NineReader<K>> loader(a.sites, 0, first, a.factors + int64_t(channel) * pitch, pitch);
  const auto reader_at = [&](int product, int depth) {
    const int own = depth + 4 * loader.quad, down = product < NINE ? 0 : (product - NINE) / 2,
              across = product < NINE ? 0 : (product - NINE) % 2;
    return NineReader<K>{product < NINE, down, across, a.operand.reader(product < NINE ? product : 0, own),
                         a.operand.skip.template reader<4>(product < NINE ? 0 : own, 0)};
  };
  const auto fetch = [&](int product, int depth, Factor* step) {
    loader.fetch((product < NINE ? product : NINE) * a.deep + depth, step, reader_at(product, depth));
  };
  const auto commit = [&](int product, int depth, Factor* step) { loader.commit(step, reader_at(product, depth)); };

  P phases[PHASES], sum;
  fetch(0, 0, shared);
  commit(0, 0, shared);
  barrier();
  for (int product = 0, depth = 0, at = 0; product < products; at ^= 1) {
    const bool last = depth + P::DEPTH == (product < NINE ? a.deep : a.skip);
    const int next = last ? product + 1 : product, next_depth = last ? 0 : depth + P::DEPTH;
    if (next < products) fetch(next, next_depth, shared + (at ^ 1) * S::STEP);
    sum.step(shared + at * S::STEP);
    if (last) {
#pragma unroll
      for (int phase = 0; phase < PHASES; ++phase)
        if (contributes_to(product, phase)) phases[phase].add(sum);
      sum = P();
    }
    if (next < products) commit(next, next_depth, shared + (at ^ 1) * S::STEP);
    barrier();
    product = next, depth = next_depth;
  }

  Sum* sums = shared_memory<Sum>();
#pragma unroll
  for (int phase = 0; phase < PHASES; ++phase) {
    phases[phase].store(sums, S::PITCH);
    barrier();
    run_epilogue<K, T>(sums, a.sites, phase, first, channel, a.channels, a.epilogue);
    barrier();
  }
}

// Only on tensor cores: the differences round 1.7 times as much as the folded form does (docs/notes/cuda.md), more than
// float32 and float64 may.
template <class K>
constexpr bool ON_TENSOR_CORES = !std::is_same_v<typename K::Factor, typename K::Sum>;

template <class K, class Use>
auto with_tile_of(const ConvShape& shape, Use use) {
  if constexpr (ON_TENSOR_CORES<K>)
    if (shape.nine_products) return use(typename Tiles<typename K::Factor>::NineProducts{});
  return with_tile<typename K::Factor>(shape.sites.per_phase() * shape.sites.phases(), shape.channels, shape.vec4, use);
}

}  // namespace

template <class K>
bool nine_products_pay(const Sites& sites, int channels) {
  if constexpr (ON_TENSOR_CORES<K>) {
    using All = Tiles<typename K::Factor>;
    return channels > All::Narrow::N &&
           sites.per_phase() * channels >= int64_t(WIDE_TILES_TO_FILL) * All::NineProducts::M * All::NineProducts::N;
  }
  return false;
}

template <class K>
int64_t convolution_parts(const ConvShape& shape) {
  return with_tile_of<K>(shape, [&]<class T>(T) {
    return int64_t(ceil_div(shape.sites.per_phase(), T::M)) * shape.sites.phases() * (T::THREADS / T::N);
  });
}

template <class K>
int packed_rows(const ConvShape& shape) {
  return with_tile_of<K>(shape, [&]<class T>(T) { return round_up(shape.channels, T::N); });
}

template <class K>
void convolve_nine(const DifferencePatch<K>& operand, const ConvShape& shape, const typename K::Factor* factors,
                   int deep, int skip, const StoreEpilogue<K>& epilogue, Stream stream) {
  if constexpr (ON_TENSOR_CORES<K>) {
    using T = typename Tiles<typename K::Factor>::NineProducts;
    const dim3 grid(ceil_div(shape.sites.per_phase(), T::M), ceil_div(shape.channels, T::N));
    launch<true>(nine_kernel<K, T>, grid, T::THREADS, Shared<typename K::Factor, T>::BYTES, stream,
                 NineArguments<K>{operand, shape.sites, factors, deep, skip, shape.channels, epilogue});
  }
}

#define INSTANTIATE(K)                                                                                    \
  template bool nine_products_pay<K>(const Sites&, int);                                                  \
  template int64_t convolution_parts<K>(const ConvShape&);                                                \
  template int packed_rows<K>(const ConvShape&);                                                          \
  template void convolve_nine<K>(const DifferencePatch<K>&, const ConvShape&, const K::Factor*, int, int, \
                                 const StoreEpilogue<K>&, Stream);
DIP_FAST_EACH_KIND(INSTANTIATE)

}  // namespace dip_fast::cuda
