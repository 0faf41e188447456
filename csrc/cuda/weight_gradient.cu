// Gradients of weights: products of matrices whose depth are the pixels of the image, cut into parts that are added in
// order, so that the bits depend on the shape alone.
#include "kernels.cuh"
#include "product.cuh"

namespace dip_fast::cuda {
namespace {

template <class K>
struct Gradient {
  Patch<K, Form::window> patch;
  Arriving<K> arriving;
  int64_t per_part;        // pixels
  typename K::Sum* parts;  // (parts, depth of the patch, channels that arrive)
};

template <class K, class T>
__global__ void __launch_bounds__(THREADS, 1) gradient_kernel(Gradient<K> a) {
  using Factor = typename K::Factor;
  using Sum = typename K::Sum;
  using P = Product<Factor, T>;
  using S = Shared<Factor, T>;
  // A warp's threads have neighbouring pixels: what they put into a row of shared memory then lies side by side.
  constexpr int QUADS = THREADS / P::DEPTH, LEFT = quotient_up(T::M / 4, QUADS), RIGHT = quotient_up(T::N / 4, QUADS);
  const int depth = a.patch.depth(), channels = a.arriving.grad.channels, width = a.arriving.grad.width;
  const int row = blockIdx.x * T::M, column = blockIdx.y * T::N;
  const int line = threadIdx.x % P::DEPTH, quad = threadIdx.x / P::DEPTH;
  const int64_t begin = int64_t(blockIdx.z) * a.per_part, total = int64_t(a.arriving.grad.height) * width,
                end = begin + a.per_part < total ? begin + a.per_part : total;
  Factor* shared = shared_memory<Factor>();

  Quad<Factor> left[LEFT], right[RIGHT];
  const auto fetch = [&](int64_t first) {
    const int64_t pixel = first + line;
    const bool there = pixel < end;
    const int y = int(pixel / width), x = int(pixel % width);
#pragma unroll
    for (int i = 0; i < LEFT; ++i) {
      const int at = 4 * (quad + i * QUADS);
      Some<Sum, 4> values;
      if (there && at < T::M && row + at < depth) values = a.patch.four_at(y, x, row + at);
#pragma unroll
      for (int e = 0; e < 4; ++e) left[i].at[e] = narrowed<Factor>(values.at[e]);
    }
#pragma unroll
    for (int i = 0; i < RIGHT; ++i) {
      const int at = 4 * (quad + i * QUADS), channel = column + at;
      Some<Sum, 4> values;
      if (there && at < T::N && channel < channels) {
        if (channels % 4 == 0) {
          values = a.arriving.template read<4>(pixel, channel);
        } else {
#pragma unroll
          for (int e = 0; e < 4; ++e)
            if (channel + e < channels) values.at[e] = a.arriving.template read<1>(pixel, channel + e).at[0];
        }
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) right[i].at[e] = narrowed<Factor>(values.at[e]);
    }
  };
  const auto keep = [&](Factor* step) {
#pragma unroll
    for (int i = 0; i < LEFT; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int at = 4 * (quad + i * QUADS) + e;
        if (at < T::M) step[at * P::PITCH + line] = left[i].at[e];
      }
#pragma unroll
    for (int i = 0; i < RIGHT; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int at = 4 * (quad + i * QUADS) + e;
        if (at < T::N) step[(T::M + at) * P::PITCH + line] = right[i].at[e];
      }
  };

  P product;
  fetch(begin);
  keep(shared);
  barrier();
  int at = 0;
  for (int64_t first = begin; first < end; first += P::DEPTH, at ^= 1) {
    const bool more = first + P::DEPTH < end;
    if (more) fetch(first + P::DEPTH);
    product.step(shared + at * S::STEP, shared + at * S::STEP + T::M * P::PITCH);
    if (more) keep(shared + (at ^ 1) * S::STEP);
    barrier();
  }

  Sum* sums = shared_memory<Sum>();
  product.put(sums, S::PITCH);
  barrier();
  for (int i = threadIdx.x; i < T::M * T::N; i += THREADS) {
    const int m = i / T::N, n = i % T::N;
    if (row + m < depth && column + n < channels)
      a.parts[(int64_t(blockIdx.z) * depth + row + m) * channels + column + n] = sums[m * S::PITCH + n];
  }
}

template <class Sum>
struct Add {
  const Sum* parts;
  int64_t count;
  int depth, columns, inputs, outputs, taps, offset, channels;
  bool fields;
  Sum* to;
};

// From (tap, c) x k, or from c x (tap, k), to the weight's (k, c, tap).
template <class Sum>
__global__ void add_kernel(Add<Sum> a) {
  const int64_t size = int64_t(a.depth) * a.columns, i = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= size) return;
  double total = 0;
  for (int64_t part = 0; part < a.count; ++part) total += a.parts[part * size + i];
  const int m = int(i / a.columns), n = int(i % a.columns);
  const int tap = a.fields ? n / a.outputs : m / a.inputs, c = a.fields ? m : m % a.inputs,
            k = a.fields ? n % a.outputs : n;
  a.to[(int64_t(k) * a.channels + a.offset + c) * a.taps + tap] = Sum(total);
}

}  // namespace

template <class K>
void weight_gradient(const Patch<K, Form::window>& patch, const Arriving<K>& arriving, bool fields, int offset,
                     int channels, typename K::Sum* to, const Context& context) {
  using Sum = typename K::Sum;
  using Factor = typename K::Factor;
  const int depth = patch.depth(), columns = arriving.grad.channels;
  const int64_t pixels = arriving.grad.pixels();
  const auto run = [&]<class T>(T) {
    constexpr int STEP = Product<Factor, T>::DEPTH, BLOCKS = 512, LEAST = 8;  // blocks aimed at; steps worth a block
    const dim3 tiles(quotient_up(depth, T::M), quotient_up(columns, T::N));
    const int64_t most = quotient_up(pixels, int64_t(LEAST) * STEP), wanted = quotient_up(BLOCKS, tiles.x * tiles.y);
    const int64_t per_part = rounded_up(quotient_up(pixels, most < wanted ? most : wanted), STEP);
    const int count = quotient_up(pixels, per_part);
    Sum* parts = context.take<Sum>(int64_t(count) * depth * columns);
    launch<true>(gradient_kernel<K, T>, dim3(tiles.x, tiles.y, count), THREADS, Shared<Factor, T>::BYTES,
                 context.stream, Gradient<K>{patch, arriving, per_part, parts});
    const int taps = fields ? 9 : patch.taps * patch.taps, outputs = fields ? columns / 9 : columns;
    launch<false>(
        add_kernel<Sum>, dim3(quotient_up(int64_t(depth) * columns, THREADS)), THREADS, 0, context.stream,
        Add<Sum>{parts, count, depth, columns, patch.channels(), outputs, taps, offset, channels, fields, to});
  };
  if (columns <= Tiles<Factor>::Thin::N)
    run(typename Tiles<Factor>::Thin{});
  else if (depth <= 64)
    run(typename Tiles<Factor>::Small{});
  else
    run(typename Tiles<Factor>::Wide{});
}

#define INSTANTIATE(K)                                                                                         \
  template void weight_gradient<K>(const Patch<K, Form::window>&, const Arriving<K>&, bool, int, int, K::Sum*, \
                                   const Context&);
DIP_FAST_EACH_KIND(INSTANTIATE)

}  // namespace dip_fast::cuda
