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

// Four neighbouring channels of what arrives, as many as there are from `first` on.
template <class K, int width>
struct FourOf {
  typename Arriving<K>::template Channels<width> readers[4 / width];
  int count;

  DIP_FAST_D Some<typename K::Sum, 4> at(int pixel) const {
    Some<typename K::Sum, 4> result;
    if constexpr (width == 4) {
      if (count > 0) result = readers[0].at(pixel);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (i < count) result.at[i] = readers[i].at(pixel).at[0];
    }
    return result;
  }
};
template <int width, class K>
DIP_FAST_D FourOf<K, width> four_of(const Arriving<K>& arriving, int first) {
  const int count = arriving.grad.channels - first;
  const auto reader = [&](int i) { return arriving.template channels<width>(i < count ? first + i : 0); };
  if constexpr (width == 4)
    return {{reader(0)}, count};
  else
    return {{reader(0), reader(1), reader(2), reader(3)}, count};
}

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

  // Number i of the depth, of those that are the thread's.
  static constexpr int NUMBERS = COUNT * PER_WORD;
  DIP_FAST_D static int number(int i) { return word(i / PER_WORD) * PER_WORD + i % PER_WORD; }

  // `read(i)`: four rows of that.
  template <class Read>
  DIP_FAST_D void fetch(const Read& read) {
#pragma unroll
    for (int i = 0; i < NUMBERS; ++i) {
      const auto values = read(i);
#pragma unroll
      for (int e = 0; e < 4; ++e) held[i / PER_WORD].at[e].at[i % PER_WORD] = narrowed<Factor>(values.at[e]);
    }
  }

  DIP_FAST_D void keep(Factor* to) const {
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
      if (word(i) < P::WORDS)
        *reinterpret_cast<Quad<Word<Factor>>*>(to + (word(i) * PITCH + row()) * PER_WORD) = held[i];
  }
};

// left, right: channels that are read at once.
template <class K, class T, int left_width, int right_width>
__global__ void __launch_bounds__(THREADS, 1) gradient_kernel(Gradient<K> a) {
  using Factor = typename K::Factor;
  using Sum = typename K::Sum;
  using P = Product<Factor, T, Order::depths>;
  using S = Shared<Factor, T, Order::depths>;
  using Left = Share<Factor, P, T::M, P::LEFT>;
  using Right = Share<Factor, P, T::N, P::RIGHT>;
  const int depth = a.patch.depth(), channels = a.arriving.grad.channels, columns = a.arriving.grad.width;
  const int row = blockIdx.x * T::M + Left::row(), column = blockIdx.y * T::N + Right::row();
  const int begin = int(blockIdx.z) * a.per_part, total = a.arriving.grad.height * columns,
            end = begin + a.per_part < total ? begin + a.per_part : total;
  Factor* shared = shared_memory<Factor>();

  // A thread reads the same channels of all pixels.
  const auto patch = four_from<left_width>(a.patch, row < depth ? row : 0, 0);
  const auto arriving = four_of<right_width>(a.arriving, column);
  int pixel_row[Left::NUMBERS], pixel_column[Left::NUMBERS];  // of the numbers of the step that is fetched next
#pragma unroll
  for (int i = 0; i < Left::NUMBERS; ++i) {
    pixel_row[i] = (begin + Left::number(i)) / columns;
    pixel_column[i] = (begin + Left::number(i)) % columns;
  }
  Left left;
  Right right;
  const auto fetch = [&](int first) {
    left.fetch([&](int i) {
      Some<Sum, 4> values;
      if (first + Left::number(i) < end && row < depth) values = patch.at(pixel_row[i], pixel_column[i]);
      pixel_column[i] += P::DEPTH;
      while (pixel_column[i] >= columns) pixel_column[i] -= columns, ++pixel_row[i];
      return values;
    });
    right.fetch([&](int i) {
      const int pixel = first + Right::number(i);
      return pixel < end ? arriving.at(pixel) : Some<Sum, 4>{};
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
    auto kernel = gradient_kernel<K, T, 4, 4>;
    if constexpr (!FOURS_ALONE<Factor, T>) {
      if (!patch.quads())
        kernel = in_fours(columns) ? gradient_kernel<K, T, 1, 4> : gradient_kernel<K, T, 1, 1>;
      else if (!in_fours(columns))
        kernel = gradient_kernel<K, T, 4, 1>;
    }
    launch<true>(kernel, dim3(tiles.x, tiles.y, count), THREADS, Shared<Factor, T, Order::depths>::BYTES,
                 context.stream, Gradient<K>{patch, arriving, per_part, parts});
    const int taps = fields ? 9 : patch.taps * patch.taps, outputs = fields ? columns / 9 : columns;
    launch<false>(
        add_kernel<Sum>, dim3(quotient_up(int64_t(depth) * columns, THREADS)), THREADS, 0, context.stream,
        Add<Sum>{parts, count, depth, columns, patch.channels(), outputs, taps, offset, channels, fields, to});
  };
  if (columns <= Tiles<Factor>::Thin::N)
    run(typename Tiles<Factor>::Thin{});
  else if (depth <= 64 || !patch.quads() || !in_fours(columns))
    run(typename Tiles<Factor>::Small{});
  else
    run(typename Tiles<Factor>::Wide{});
}

#define INSTANTIATE(K)                                                                                         \
  template void weight_gradient<K>(const Patch<K, Form::window>&, const Arriving<K>&, bool, int, int, K::Sum*, \
                                   const Context&);
DIP_FAST_EACH_KIND(INSTANTIATE)

}  // namespace dip_fast::cuda
