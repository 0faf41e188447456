// What is done to single channels: statistics, the affine maps of batch norms, and the way back through them.
//
// Sums over pixels come in parts, a thread's own run of pixels each, and parts are joined in their order, in double.
#include "kernels.cuh"
#include "product.cuh"

namespace dip_fast::cuda {
namespace {

constexpr int RUN = 64;  // pixels of a part

// Threads of a block side by side have neighbouring channels, as many as there are up to 128.
struct Runs {
  int channels, across;  // across: a power of two
  int64_t pixels;

  Runs(int channels_, int64_t pixels_) : channels(channels_), across(1), pixels(pixels_) {
    while (across < channels && across < 128) across *= 2;
  }
  DIP_FAST_HD int64_t count() const { return int64_t(blocks()) * (THREADS / across); }
  DIP_FAST_HD int blocks() const { return ceil_div(pixels, int64_t(RUN) * (THREADS / across)); }
  dim3 grid() const { return dim3(blocks(), ceil_div(channels, across)); }

  DIP_FAST_D int channel() const { return int(blockIdx.y) * across + int(threadIdx.x) % across; }
  DIP_FAST_D int64_t part() const { return int64_t(blockIdx.x) * (THREADS / across) + threadIdx.x / across; }
  // The part's pixels are as far apart as the block has parts, so that threads read what lies side by side.
  template <class Use>
  DIP_FAST_D void each(const Use& use) const {
    const int lines = THREADS / across;
    int64_t pixel = int64_t(blockIdx.x) * RUN * lines + threadIdx.x / across;
    for (int i = 0; i < RUN && pixel < pixels; ++i, pixel += lines) use(pixel);
  }
};

// ---- joining parts: a block for each column, a thread for a stretch of parts, then the threads in pairs

struct Total {
  double sum = 0;
  DIP_FAST_D void add(const Total& other) { sum += other.sum; }
};

// T. F. Chan, G. H. Golub, R. J. LeVeque, "Algorithms for computing the sample variance", 1983.
// The mean is `near` + `offset`: where all values are alike their differences are exact.
struct Whole {
  double count = 0, near = 0, offset = 0, squares = 0;
  DIP_FAST_D void add(const Whole& other) {
    if (other.count == 0) return;
    if (count == 0) {
      *this = other;
      return;
    }
    const double all = count + other.count, apart = (other.near - near) + (other.offset - offset);
    offset += apart * other.count / all;
    squares += other.squares + apart * apart * count * other.count / all;
    count = all;
  }
};

DIP_FAST_D Total as_whole(double x) { return {x}; }
template <class Sum>
DIP_FAST_D Whole as_whole(const Moment<Sum>& x) {
  return {double(x.count), double(x.mean), double(x.mean_low), double(x.squares)};
}
template <class To>
DIP_FAST_D void put(const Total& total, To* to, int) {
  *to = To(total.sum);
}
DIP_FAST_D void put(const Whole& whole, double* to, int pitch) {
  to[0] = whole.near + whole.offset;
  const double variance = whole.squares / whole.count;
  to[pitch] = variance < 0 ? 0 : variance;  // what is not a number stays so
}

template <class Part, class To>
struct Join {
  const Part* parts;  // (count, columns)
  int64_t count;
  int columns, pitch;
  To* to;
};

// The whole of `count` parts, in the first thread: a stretch of them for each thread, then the threads in pairs.
template <class All, class Read>
DIP_FAST_D All whole_of(int64_t count, const Read& read) {
  const int64_t each = (count + THREADS - 1) / THREADS, begin = each * threadIdx.x,
                end = begin + each < count ? begin + each : count;
  All all;
  for (int64_t i = begin; i < end; ++i) all.add(read(i));
  All* shared = shared_memory<All>();
  for (int stride = 1; stride < THREADS; stride *= 2) {
    shared[threadIdx.x] = all;
    barrier();
    if (threadIdx.x % (2 * stride) == 0) all.add(shared[threadIdx.x + stride]);
    barrier();
  }
  return all;
}

template <class Part, class To>
__global__ void __launch_bounds__(THREADS, 1) join_kernel(Join<Part, To> a) {
  const int column = blockIdx.x;
  const auto all = whole_of<decltype(as_whole(Part{}))>(
      a.count, [&](int64_t i) { return as_whole(a.parts[i * a.columns + column]); });
  if (threadIdx.x == 0) put(all, a.to + column, a.pitch);
}

template <class Part, class To>
void join(const Part* parts, int64_t count, int columns, To* to, int pitch, Stream stream) {
  launch<true>(join_kernel<Part, To>, dim3(columns), THREADS, THREADS * int(sizeof(Whole)), stream,
               Join<Part, To>{parts, count, columns, pitch, to});
}

// ---- sums of t and t (x - mean), and what a norm makes of them

struct Two {
  double total = 0, moment = 0;
  DIP_FAST_D void add(const Two& other) { total += other.total, moment += other.moment; }
};

template <class K>
struct Sums {
  const typename K::Sum* parts;  // (count, 2, channels)
  int64_t count;
  int channels;
  double* sums;
  NormGrad<K> norm;
};

template <class K>
__global__ void __launch_bounds__(THREADS, 1) norm_grad_kernel(Sums<K> a) {
  using Sum = typename K::Sum;
  const int c = blockIdx.x, C = a.channels;
  const Two all = whole_of<Two>(
      a.count, [&](int64_t i) { return Two{double(a.parts[2 * i * C + c]), double(a.parts[(2 * i + 1) * C + c])}; });
  if (threadIdx.x > 0) return;
  if (a.sums != nullptr) a.sums[c] = all.total, a.sums[C + c] = all.moment;
  if (a.norm.coefficients == nullptr) return;
  const double r = a.norm.coefficients[3 * C + c], gamma = a.norm.weight[c];
  a.norm.to_bias[c] = Sum(all.total);
  a.norm.to_weight[c] = Sum(r * all.moment);
  if (a.norm.to_statistics == nullptr) return;
  a.norm.to_statistics[c] = -gamma * r * all.total;
  a.norm.to_statistics[C + c] = -0.5 * gamma * r * r * r * all.moment;
}

// ---- statistics of what is read

template <class K>
struct Moments {
  NormActImage<K> from;
  Runs runs;
  bool bilinear;
  Moment<typename K::Sum>* parts;
};

template <class K>
__global__ void __launch_bounds__(THREADS, 1) moments_kernel(Moments<K> a) {
  using Sum = typename K::Sum;
  const int channel = a.runs.channel();
  if (channel >= a.runs.channels) return;
  const auto of = a.from.template channels<1>(channel);
  const auto read = [&](int64_t pixel) -> Sum {
    if (!a.bilinear) return of.at(pixel).at[0];
    const int width = 2 * a.from.image.width;
    return upsampled<Sum>(of, int(pixel) / width, int(pixel) % width, a.from.image.height, a.from.image.width).at[0];
  };
  Sum count = 0, total = 0;
  a.runs.each([&](int64_t pixel) { total += read(pixel), count += 1; });
  a.parts[a.runs.part() * a.runs.channels + channel] =
      moment_of(count, total, [&](auto use) { a.runs.each([&](int64_t pixel) { use(read(pixel)); }); });
}

// ---- back through the norm between and what is read before it
//
// With e the gradient of the norm's output brought back to the small image, a what is read, U its upsampled image of n
// pixels, m and r of the norm between, and A the adjoint of upsampling, A 1 = f (4, or 1 where nothing is upsampled):
//
//   da = gamma r (e - f sum(e) / n - r^2 sum(e (a - m)) / n A(U - m))
//
// A(U) is f a to the nearest, and bilinearly a stencil of (3, 10, 3) / 8 either way, with the border's pixels repeated.

template <class K>
struct NormActBackwardParts {
  NormActBackward<K> call;
  Runs runs;
  typename K::Sum* parts;  // (parts, 2, C); null: not wanted
};

template <class K>
__global__ void __launch_bounds__(THREADS, 1) norm_act_backward_kernel(NormActBackwardParts<K> a) {
  using Sum = typename K::Sum;
  const NormActBackward<K>& call = a.call;
  const auto& image = call.image.image;
  const int channel = a.runs.channel(), C = a.runs.channels;
  if (channel >= C) return;
  Sum scale = 1, mean = 0, constant = 0, by_value = 0;
  const Sum factor = call.upsampled ? 4 : 1;
  if (call.mid_norm != nullptr) {
    const double n = double(a.runs.pixels) * factor, r = call.mid_norm[3 * C + channel];
    scale = call.mid_norm[channel];
    mean = call.mid_norm[2 * C + channel];
    constant = Sum(factor * call.mid_norm_sums[channel] / n);
    by_value = Sum(r * r * call.mid_norm_sums[C + channel] / n);
  }
  const Sum* own = call.own_norm.coefficients;
  const Sum own_scale = own == nullptr ? Sum(1) : own[channel], own_shift = own == nullptr ? Sum(0) : own[C + channel],
            own_mean = own == nullptr ? Sum(0) : own[2 * C + channel];
  const auto of = call.image.template channels<1>(channel);
  const auto read = [&](int64_t pixel) { return of.at(pixel).at[0]; };
  Sum total = 0, moment = 0;
  a.runs.each([&](int64_t pixel) {
    Sum da = widened(call.grad[pixel * C + channel]);
    if (call.mid_norm != nullptr) {
      Sum apart = 0;
      if (call.bilinear) {
        const int row = int(pixel) / image.width, column = int(pixel) % image.width;
        for (int e = 0; e < 9; ++e) {
          const int64_t r = padded_index(row + e / 3 - 1, image.height, Padding::replicate),
                        c = padded_index(column + e % 3 - 1, image.width, Padding::replicate);
          apart += (e / 3 == 1 ? Sum(1.25) : Sum(0.375)) * (e % 3 == 1 ? Sum(1.25) : Sum(0.375)) *
                   (read(r * image.width + c) - mean);
        }
      } else {
        apart = factor * (read(pixel) - mean);
      }
      da = scale * (da - constant - by_value * apart);
    }
    if (own != nullptr) {
      const Sum x = widened(image.data[pixel * C + channel]), u = x * own_scale + own_shift;
      if (u <= 0) da *= call.image.norm_act.slope;
      total += da;
      moment += da * (x - own_mean);
      da *= own_scale;
    }
    call.to[pixel * C + channel] = narrowed<typename K::Stored>(da);
  });
  if (a.parts == nullptr) return;
  a.parts[2 * a.runs.part() * C + channel] = total;
  a.parts[(2 * a.runs.part() + 1) * C + channel] = moment;
}

template <class K>
struct Columns {
  OutputGrad<K> output_grad;
  Runs runs;
  double* parts;  // few channels are summed so: those of a head
};

template <class K>
__global__ void __launch_bounds__(THREADS, 1) channel_sums_kernel(Columns<K> a) {
  const int channel = a.runs.channel();
  if (channel >= a.runs.channels) return;
  const auto of = a.output_grad.template channels<1>(channel);
  double total = 0;
  a.runs.each([&](int64_t pixel) { total += of.at(pixel).at[0]; });
  a.parts[a.runs.part() * a.runs.channels + channel] = total;
}

}  // namespace

template <class K>
void merge_moments(const Moment<typename K::Sum>* parts, int64_t count, int channels, double* statistics, int pitch,
                   Stream stream) {
  join(parts, count, channels, statistics, pitch, stream);
}

template <class K>
void merge_norm_sums(const typename K::Sum* parts, int64_t count, int channels, double* sums, const NormGrad<K>& norm,
                     Stream stream) {
  launch<true>(norm_grad_kernel<K>, dim3(channels), THREADS, THREADS * int(sizeof(Two)), stream,
               Sums<K>{parts, count, channels, sums, norm});
}

template <class K>
void moments(const NormActImage<K>& pixels, bool bilinear, double* statistics, int pitch, const Context& context) {
  const auto& image = pixels.image;
  const Runs runs(image.channels, image.pixels() * (bilinear ? 4 : 1));
  auto* parts = context.take<Moment<typename K::Sum>>(runs.count() * image.channels);
  launch<false>(moments_kernel<K>, runs.grid(), THREADS, 0, context.stream, Moments<K>{pixels, runs, bilinear, parts});
  join(parts, runs.count(), image.channels, statistics, pitch, context.stream);
}

template <class K>
void norm_act_backward(const NormActBackward<K>& call, const Context& context) {
  using Sum = typename K::Sum;
  const auto& image = call.image.image;
  const Runs runs(image.channels, image.pixels());
  Sum* parts = call.own_norm.coefficients == nullptr ? nullptr : context.take<Sum>(2 * runs.count() * image.channels);
  launch<false>(norm_act_backward_kernel<K>, runs.grid(), THREADS, 0, context.stream,
                NormActBackwardParts<K>{call, runs, parts});
  if (parts != nullptr) merge_norm_sums<K>(parts, runs.count(), image.channels, nullptr, call.own_norm, context.stream);
}

template <class K>
void channel_sums(const OutputGrad<K>& output_grad, typename K::Sum* to, const Context& context) {
  const int K_ = output_grad.grad.channels;
  const Runs runs(K_, output_grad.grad.pixels());
  double* parts = context.take<double>(runs.count() * K_);
  launch<false>(channel_sums_kernel<K>, runs.grid(), THREADS, 0, context.stream, Columns<K>{output_grad, runs, parts});
  join(parts, runs.count(), K_, to, 0, context.stream);
}

#define INSTANTIATE(K)                                                                                \
  template void merge_moments<K>(const Moment<K::Sum>*, int64_t, int, double*, int, Stream);          \
  template void merge_norm_sums<K>(const K::Sum*, int64_t, int, double*, const NormGrad<K>&, Stream); \
  template void moments<K>(const NormActImage<K>&, bool, double*, int, const Context&);               \
  template void norm_act_backward<K>(const NormActBackward<K>&, const Context&);                      \
  template void channel_sums<K>(const OutputGrad<K>&, K::Sum*, const Context&);
DIP_FAST_EACH_KIND(INSTANTIATE)

}  // namespace dip_fast::cuda
