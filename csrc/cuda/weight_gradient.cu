// Gradients of weights: products of matrices whose depth are the pixels of the image, cut into parts that are added in
// order, so that the bits depend on the shape alone.
#include "kernels.cuh"
#include "product.cuh"

namespace dip_fast::cuda {
namespace {

template <class K>
struct Gradient {
  Patch<K, Sampling::direct> patch;
  OutputGrad<K> output_grad;
  int per_part;            // pixels
  typename K::Sum* parts;  // (parts, depth of the patch, channels that arrive)
};

// Four neighbouring channels of what arrives, as many as there are from `first` on.
template <class K, int width>
struct OutputGradVec4 {
  typename OutputGrad<K>::template Channels<width> readers[4 / width];
  int count;

  DIP_FAST_D Vec<typename K::Sum, 4> at(int pixel) const {
    Vec<typename K::Sum, 4> result;
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
DIP_FAST_D OutputGradVec4<K, width> output_grad_vec4(const OutputGrad<K>& output_grad, int first) {
  const int count = output_grad.grad.channels - first;
  const auto reader = [&](int i) { return output_grad.template channels<width>(i < count ? first + i : 0); };
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
  static constexpr int QUADS = ROWS / 4, LINES = THREADS / QUADS, COUNT = ceil_div(P::WORDS, LINES),
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
  using P = Product<Factor, T, Layout::rows_contiguous>;
  using S = Shared<Factor, T, Layout::rows_contiguous>;
  using Left = Share<Factor, P, T::M, P::LEFT>;
  using Right = Share<Factor, P, T::N, P::RIGHT>;
  const int depth = a.patch.depth(), channels = a.output_grad.grad.channels, columns = a.output_grad.grad.width;
  const int row = blockIdx.x * T::M + Left::row(), column = blockIdx.y * T::N + Right::row();
  const int begin = int(blockIdx.z) * a.per_part, total = a.output_grad.grad.height * columns,
            end = begin + a.per_part < total ? begin + a.per_part : total;
  Factor* shared = shared_memory<Factor>();

  // A thread reads the same channels of all pixels.
  const auto patch = vec4_reader<left_width>(a.patch, row < depth ? row : 0, 0);
  const auto output_grad = output_grad_vec4<right_width>(a.output_grad, column);
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
      Vec<Sum, 4> values;
      if (first + Left::number(i) < end && row < depth) values = patch.at(pixel_row[i], pixel_column[i]);
      pixel_column[i] += P::DEPTH;
      while (pixel_column[i] >= columns) pixel_column[i] -= columns, ++pixel_row[i];
      return values;
    });
    right.fetch([&](int i) {
      const int pixel = first + Right::number(i);
      return pixel < end ? output_grad.at(pixel) : Vec<Sum, 4>{};
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
  product.store(sums, S::PITCH);
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
void weight_gradient(const Patch<K, Sampling::direct>& patch, const OutputGrad<K>& output_grad, bool fields, int offset,
                     int channels, typename K::Sum* to, const Context& context) {
  using Sum = typename K::Sum;
  using Factor = typename K::Factor;
  const int depth = patch.depth(), columns = output_grad.grad.channels;
  const int64_t pixels = output_grad.grad.pixels();
  const auto run = [&]<class T>(T) {
    constexpr int STEP = Product<Factor, T>::DEPTH, BLOCKS = 512, LEAST = 8;  // blocks aimed at; steps worth a block
    const dim3 tiles(ceil_div(depth, T::M), ceil_div(columns, T::N));
    const int64_t most = ceil_div(pixels, int64_t(LEAST) * STEP), wanted = ceil_div(BLOCKS, tiles.x * tiles.y);
    const int per_part = round_up(ceil_div(pixels, most < wanted ? most : wanted), STEP);
    const int count = ceil_div(pixels, per_part);
    Sum* parts = context.take<Sum>(int64_t(count) * depth * columns);
    auto kernel = gradient_kernel<K, T, 4, 4>;
    if constexpr (!VEC4_ONLY<Factor, T>) {
      if (!patch.vec4())
        kernel = multiple_of_4(columns) ? gradient_kernel<K, T, 1, 4> : gradient_kernel<K, T, 1, 1>;
      else if (!multiple_of_4(columns))
        kernel = gradient_kernel<K, T, 4, 1>;
    }
    launch<true>(kernel, dim3(tiles.x, tiles.y, count), THREADS, Shared<Factor, T, Layout::rows_contiguous>::BYTES,
                 context.stream, Gradient<K>{patch, output_grad, per_part, parts});
    const int taps = fields ? 9 : patch.taps * patch.taps, outputs = fields ? columns / 9 : columns;
    launch<false>(
        add_kernel<Sum>, dim3(ceil_div(int64_t(depth) * columns, THREADS)), THREADS, 0, context.stream,
        Add<Sum>{parts, count, depth, columns, patch.channels(), outputs, taps, offset, channels, fields, to});
  };
  if (columns <= Tiles<Factor>::Narrow::N)
    run(typename Tiles<Factor>::Narrow{});
  else if (depth <= 64 || !patch.vec4() || !multiple_of_4(columns))
    run(typename Tiles<Factor>::Small{});
  else
    run(typename Tiles<Factor>::Wide{});
}

#define INSTANTIATE(K)                                                                                               \
  template void weight_gradient<K>(const Patch<K, Sampling::direct>&, const OutputGrad<K>&, bool, int, int, K::Sum*, \
                                   const Context&);
DIP_FAST_EACH_KIND(INSTANTIATE)

}  // namespace dip_fast::cuda
