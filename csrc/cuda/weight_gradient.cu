// Gradients of weights: a matrix product whose depth are the pixels of the output,
//
//   dW[(tap, c)][k] = sum over pixels of A[pixel][(tap, c)] G[pixel][k]
//
// with A what the convolution read (its patch) and G the gradient of its output.  The pixels are split into parts, one
// for each z of the grid, and a second kernel adds the parts in their order: the bits depend on the shape alone.
#include "kernels.cuh"
#include "product.cuh"

namespace dip_fast::cuda {
namespace {

constexpr Layout LAYOUT = Layout::rows_contiguous;

template <class K>
struct PartialGradients {
  Patch<K, Sampling::direct> patch;
  OutputGrad<K> output_grad;
  int per_part;            // pixels of a part
  typename K::Sum* parts;  // (parts, depth of the patch, channels of output_grad)
};

// ---- reading

// Four neighbouring channels of G from `first` on; `count` of them exist.
template <class K, int width>
struct OutputGradVec4 {
  typename OutputGrad<K>::template Channels<width> channels[4 / width];
  int count;

  struct Raw {
    typename OutputGrad<K>::template Channels<width>::Raw parts[4 / width];
    bool there;
  };

  // there: whether there is such a pixel; else the channels are zeros.
  DIP_FAST_D Raw load(int pixel, bool there) const {
    Raw raw{};
    raw.there = there;
#pragma unroll
    for (int i = 0; i < 4 / width; ++i)
      if (there && i < count) raw.parts[i] = channels[i].load(pixel);
    return raw;
  }
  DIP_FAST_D Vec<typename K::Sum, 4> finish(const Raw& raw) const {
    Vec<typename K::Sum, 4> result;
    if (!raw.there) return result;
#pragma unroll
    for (int i = 0; i < 4 / width; ++i) {
      if (i >= count) continue;
      const auto values = channels[i].finish(raw.parts[i]);
#pragma unroll
      for (int e = 0; e < width; ++e) result.at[i + e] = values.at[e];
    }
    return result;
  }
};
template <int width, class K>
DIP_FAST_D OutputGradVec4<K, width> output_grad_vec4(const OutputGrad<K>& output_grad, int first) {
  const int count = output_grad.grad.channels - first;
  const auto channel = [&](int i) { return output_grad.template channels<width>(i < count ? first + i : 0); };
  if constexpr (width == 4)
    return {{channel(0)}, count};
  else
    return {{channel(0), channel(1), channel(2), channel(3)}, count};
}

// Row and column of the pixels that a thread reads next; each advances by a step at a time.
template <int COUNT>
struct PixelCursor {
  int row[COUNT], column[COUNT], columns;

  template <class Number>
  DIP_FAST_D PixelCursor(int first, int columns_, const Number& number) : columns(columns_) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      row[i] = (first + number(i)) / columns;
      column[i] = (first + number(i)) % columns;
    }
  }
  DIP_FAST_D void advance(int i, int pixels) {
    column[i] += pixels;
    if (columns < pixels) {  // more than a line at once
      row[i] += column[i] / columns;
      column[i] %= columns;
    } else {
      const bool next_line = column[i] >= columns;
      column[i] -= next_line ? columns : 0;
      row[i] += next_line;
    }
  }
};

// What one thread loads of one matrix for each step: four neighbouring rows (channels) of some words of the depth
// (pixels).  Neighbouring threads have neighbouring rows, which are contiguous in global and in shared memory.
template <class Factor, class P, int ROWS, int PITCH, int THREADS, class Raw>
struct RowLoader {
  static constexpr int QUADS = ROWS / 4, LINES = THREADS / QUADS, COUNT = ceil_div(P::WORDS, LINES),
                       PER_WORD = Word<Factor>::COUNT;
  DIP_FAST_D static int row() { return int(threadIdx.x) % QUADS * 4; }
  DIP_FAST_D static int word(int i) { return int(threadIdx.x) / QUADS + i * LINES; }

  // The thread's i-th number of the depth.
  static constexpr int NUMBERS = COUNT * PER_WORD;
  Raw held[NUMBERS];  // what the numbers are computed from

  DIP_FAST_D static int number(int i) { return word(i / PER_WORD) * PER_WORD + i % PER_WORD; }

  // load(i): for the four rows at the thread's i-th number of the depth.
  template <class Load>
  DIP_FAST_D void fetch(const Load& load) {
#pragma unroll
    for (int i = 0; i < NUMBERS; ++i) held[i] = load(i);
  }

  template <class Finish>
  DIP_FAST_D void commit(Factor* to, const Finish& finish) const {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (word(i) >= P::WORDS) continue;
      Quad<Word<Factor>> words;
#pragma unroll
      for (int n = 0; n < PER_WORD; ++n) {
        const auto values = finish(held[i * PER_WORD + n]);
#pragma unroll
        for (int e = 0; e < 4; ++e) words.at[e].at[n] = narrowed<Factor>(values.at[e]);
      }
      *reinterpret_cast<Quad<Word<Factor>>*>(to + (word(i) * PITCH + row()) * PER_WORD) = words;
    }
  }
};

// ---- kernels

// A tile's sums from shared memory to the part of this block.
template <class K, class T>
DIP_FAST_D void store_part(const typename K::Sum* sums, int depth, int channels, typename K::Sum* parts) {
  constexpr int PITCH = Shared<typename K::Factor, T, LAYOUT>::PITCH;
  for (int i = threadIdx.x; i < T::M * T::N; i += T::THREADS) {
    const int m = int(blockIdx.x) * T::M + i / T::N, n = int(blockIdx.y) * T::N + i % T::N;
    if (m < depth && n < channels)
      parts[(int64_t(blockIdx.z) * depth + m) * channels + n] = sums[i / T::N * PITCH + i % T::N];
  }
}

// left_width, right_width: of the loads of A and of G.
template <class K, class T, int left_width, int right_width>
__global__ void __launch_bounds__(T::THREADS, 1) partial_gradients_kernel(PartialGradients<K> a) {
  using Factor = typename K::Factor;
  using Sum = typename K::Sum;
  using P = Product<Factor, T, LAYOUT>;
  using S = Shared<Factor, T, LAYOUT>;
  using Reader = decltype(vec4_reader<left_width>(a.patch, 0, 0));
  struct LeftRaw {
    typename Reader::Place place;
    typename Reader::Raw values;
  };
  using RightRaw = typename OutputGradVec4<K, right_width>::Raw;
  using Left = RowLoader<Factor, P, T::M, P::LEFT, T::THREADS, LeftRaw>;
  using Right = RowLoader<Factor, P, T::N, P::RIGHT, T::THREADS, RightRaw>;
  const int depth = a.patch.depth(), channels = a.output_grad.grad.channels, columns = a.output_grad.grad.width;
  const int row = blockIdx.x * T::M + Left::row(), column = blockIdx.y * T::N + Right::row();
  const int begin = int(blockIdx.z) * a.per_part, total = a.output_grad.grad.height * columns,
            end = begin + a.per_part < total ? begin + a.per_part : total;
  Factor* shared = shared_memory<Factor>();

  // A thread reads the same channels of every pixel.
  const auto patch = vec4_reader<left_width>(a.patch, row < depth ? row : 0, 0);
  const auto patch_channels = patch.channels();
  const auto output_grad = output_grad_vec4<right_width>(a.output_grad, column);
  PixelCursor<Left::NUMBERS> pixels(begin, columns, [](int i) { return Left::number(i); });
  Left left;
  Right right;
  const auto fetch = [&](int first) {
    left.fetch([&](int i) {
      LeftRaw raw;
      raw.place = patch.place(pixels.row[i], pixels.column[i]);
      if (first + Left::number(i) >= end || row >= depth) raw.place = {};
      raw.values = patch.load(raw.place);
      pixels.advance(i, P::DEPTH);
      return raw;
    });
    right.fetch([&](int i) {
      const int pixel = first + Right::number(i);
      return output_grad.load(pixel, pixel < end);
    });
  };
  const auto commit = [&](Factor* step) {
    left.commit(step, [&](const LeftRaw& raw) { return patch.finish(raw.values, patch_channels, raw.place, 0, 0); });
    right.commit(step + P::BEGIN, [&](const RightRaw& raw) { return output_grad.finish(raw); });
  };

  P product;
  fetch(begin);
  commit(shared);
  barrier();
  for (int first = begin, at = 0; first < end; first += P::DEPTH, at ^= 1) {
    const bool more = first + P::DEPTH < end;
    if (more) fetch(first + P::DEPTH);
    product.step(shared + at * S::STEP);
    if (more) commit(shared + (at ^ 1) * S::STEP);
    barrier();
  }

  Sum* sums = shared_memory<Sum>();
  product.store(sums, S::PITCH);
  barrier();
  store_part<K, T>(sums, depth, channels, a.parts);
}

template <class Sum>
struct AddParts {
  const Sum* parts;  // (count, depth, columns)
  int64_t count;
  int depth, columns, inputs, outputs, taps, offset, channels;
  bool from_tap_grads;
  Sum* to;
};

// Adds the parts and transposes the sum, [(tap, c)][k] or with from_tap_grads [c][(tap, k)], to the weight's
// [k][c][tap].
template <class Sum>
__global__ void add_parts_kernel(AddParts<Sum> a) {
  const int64_t size = int64_t(a.depth) * a.columns, i = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= size) return;
  double total = 0;
#pragma unroll 8  // loads of several parts are under way together
  for (int64_t part = 0; part < a.count; ++part) total += a.parts[part * size + i];
  const int m = int(i / a.columns), n = int(i % a.columns);
  const int tap = a.from_tap_grads ? n / a.outputs : m / a.inputs, c = a.from_tap_grads ? m : m % a.inputs,
            k = a.from_tap_grads ? n % a.outputs : n;
  a.to[(int64_t(k) * a.channels + a.offset + c) * a.taps + tap] = Sum(total);
}

// ---- host

struct Parts {
  int pixels, count;  // pixels of each, in whole steps
};
// Enough parts for 512 blocks, but none of fewer than 8 steps.
Parts split(int64_t pixels, int tiles, int step) {
  constexpr int BLOCKS = 512, LEAST_STEPS = 8;
  const int64_t most = ceil_div(pixels, int64_t(LEAST_STEPS) * step), wanted = ceil_div(BLOCKS, tiles);
  const int per_part = round_up(ceil_div(pixels, most < wanted ? most : wanted), step);
  return {per_part, ceil_div(pixels, per_part)};
}

template <class K, class T>
auto select_kernel(bool left_vec4, bool right_vec4) {
  auto kernel = partial_gradients_kernel<K, T, 4, 4>;
  if constexpr (!VEC4_ONLY<typename K::Factor, T>) {
    if (!left_vec4)
      kernel = right_vec4 ? partial_gradients_kernel<K, T, 1, 4> : partial_gradients_kernel<K, T, 1, 1>;
    else if (!right_vec4)
      kernel = partial_gradients_kernel<K, T, 4, 1>;
  }
  return kernel;
}

// Calls `use` with the tile for a gradient of depth x columns.
template <class Factor, class Use>
void with_gradient_tile(int depth, int columns, bool vec4, const Use& use) {
  if (columns <= Tiles<Factor>::Narrow::N)
    use(typename Tiles<Factor>::Narrow{});
  else if (depth <= 64 || !vec4)
    use(typename Tiles<Factor>::Small{});
  else
    use(typename Tiles<Factor>::Wide{});
}

}  // namespace

template <class K>
void weight_gradient(const Patch<K, Sampling::direct>& patch, const OutputGrad<K>& output_grad, bool from_tap_grads,
                     int offset, int channels, typename K::Sum* to, const Context& context) {
  using Sum = typename K::Sum;
  using Factor = typename K::Factor;
  const int depth = patch.depth(), columns = output_grad.grad.channels;
  const bool left_vec4 = patch.vec4(), right_vec4 = multiple_of_4(columns);
  with_gradient_tile<Factor>(depth, columns, left_vec4 && right_vec4, [&]<class T>(T) {
    const dim3 tiles(ceil_div(depth, T::M), ceil_div(columns, T::N));
    const Parts split_into = split(output_grad.grad.pixels(), tiles.x * tiles.y, Product<Factor, T>::DEPTH);
    Sum* parts = context.take<Sum>(int64_t(split_into.count) * depth * columns);
    launch<true>(select_kernel<K, T>(left_vec4, right_vec4), dim3(tiles.x, tiles.y, split_into.count), T::THREADS,
                 Shared<Factor, T, LAYOUT>::BYTES, context.stream,
                 PartialGradients<K>{patch, output_grad, split_into.pixels, parts});
    const int taps = from_tap_grads ? 9 : patch.taps * patch.taps, outputs = from_tap_grads ? columns / 9 : columns;
    launch<false>(add_parts_kernel<Sum>, dim3(ceil_div(int64_t(depth) * columns, THREADS)), THREADS, 0, context.stream,
                  AddParts<Sum>{parts, split_into.count, depth, columns, patch.channels(), outputs, taps, offset,
                                channels, from_tap_grads, to});
  });
}

#define INSTANTIATE(K)                                                                                               \
  template void weight_gradient<K>(const Patch<K, Sampling::direct>&, const OutputGrad<K>&, bool, int, int, K::Sum*, \
                                   const Context&);
DIP_FAST_EACH_KIND(INSTANTIATE)

}  // namespace dip_fast::cuda
