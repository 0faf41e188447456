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
  int per_part;            // pixels
  typename K::Sum* parts;  // (parts, depth of the patch, channels that arrive)
};

// A thread's share of one factor of a step on its way into shared memory: four neighbouring rows, which are channels,
// of some words of the depth, which are pixels.  Threads side by side have neighbouring rows, as memory and shared
// memory do.
template <class Factor, class P, int ROWS, int PITCH>
struct Share {
  static constexpr int QUADS = ROWS / 4, LINES = THREADS / QUADS, COUNT = quotient_up(P::WORDS, LINES),
                       PER_WORD = Word<Factor>::COUNT;
  Quad<Word<Factor>> held[COUNT];

  DIP_FAST_D static int row() { return int(threadIdx.x) % QUADS * 4; }
  DIP_FAST_D static int word(int i) { return int(threadIdx.x) / QUADS + i * LINES; }

  // `read(d)`: four rows of number d of the depth.
  template <class Read>
  DIP_FAST_D void fetch(const Read& read) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
#pragma unroll
      for (int part = 0; part < PER_WORD; ++part) {
        const auto values = read(word(i) * PER_WORD + part);
#pragma unroll
        for (int e = 0; e < 4; ++e) held[i].at[e].at[part] = narrowed<Factor>(values.at[e]);
      }
  }

  DIP_FAST_D void keep(Factor* to) const {
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
      if (word(i) < P::WORDS)
        *reinterpret_cast<Quad<Word<Factor>>*>(to + (word(i) * PITCH + row()) * PER_WORD) = held[i];
  }
};

template <class K, class T>
__global__ void __launch_bounds__(THREADS, 1) gradient_kernel(Gradient<K> a) {
  using Factor = typename K::Factor;
  using Sum = typename K::Sum;
  using P = Product<Factor, T, Order::depths>;
  using S = Shared<Factor, T, Order::depths>;
  const int depth = a.patch.depth(), channels = a.arriving.grad.channels, width = a.arriving.grad.width;
  Share<Factor, P, T::M, P::LEFT> left;
  Share<Factor, P, T::N, P::RIGHT> right;
  const int row = blockIdx.x * T::M + left.row(), column = blockIdx.y * T::N + right.row();
  const int begin = int(blockIdx.z) * a.per_part, total = a.arriving.grad.height * width,
            end = begin + a.per_part < total ? begin + a.per_part : total;
  Factor* shared = shared_memory<Factor>();

  const auto fetch = [&](int first) {
    left.fetch([&](int d) -> Some<Sum, 4> {
      const int pixel = first + d;
      if (pixel >= end || row >= depth) return {};
      return a.patch.four_at(pixel / width, pixel % width, row);
    });
    right.fetch([&](int d) {
      const int pixel = first + d;
      Some<Sum, 4> values;
      if (pixel >= end || column >= channels) return values;
      if (channels % 4 == 0) return a.arriving.template read<4>(pixel, column);
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (column + e < channels) values.at[e] = a.arriving.template read<1>(pixel, column + e).at[0];
      return values;
    });
  };
  const auto keep = [&](Factor* step) {
    left.keep(step);
    right.keep(step + P::BEGIN);
  };

  P product;
  fetch(begin);
  keep(shared);
  barrier();
  for (int first = begin, at = 0; first < end; first += P::DEPTH, at ^= 1) {
    const bool more = first + P::DEPTH < end;
    if (more) fetch(first + P::DEPTH);
    product.step(shared + at * S::STEP);
    if (more) keep(shared + (at ^ 1) * S::STEP);
    barrier();
  }

  Sum* sums = shared_memory<Sum>();
  product.put(sums, S::PITCH);
  barrier();
  for (int i = threadIdx.x; i < T::M * T::N; i += THREADS) {
    const int m = int(blockIdx.x) * T::M + i / T::N, n = int(blockIdx.y) * T::N + i % T::N;
    if (m < depth && n < channels)
      a.parts[(int64_t(blockIdx.z) * depth + m) * channels + n] = sums[i / T::N * S::PITCH + i % T::N];
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
    const int per_part = rounded_up(quotient_up(pixels, most < wanted ? most : wanted), STEP);
    const int count = quotient_up(pixels, per_part);
    Sum* parts = context.take<Sum>(int64_t(count) * depth * columns);
    launch<true>(gradient_kernel<K, T>, dim3(tiles.x, tiles.y, count), THREADS, Shared<Factor, T, Order::depths>::BYTES,
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
