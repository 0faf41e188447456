// Reductions over the pixels of each channel: statistics, the gradients of batch norms and biases, and the way back
// through norm and activation.
//
// A sum over pixels comes in parts, one for each thread's run of pixels.  A second kernel merges the parts in their
// order, in double: the bits depend on the shape alone.
#include "kernels.cuh"
#include "product.cuh"
#include "windows.cuh"

namespace dip_fast::cuda {
namespace {

constexpr int RUN = 64;  // pixels of a part

// How channels and pixels are distributed: neighbouring threads of a block have neighbouring channels, up to 128, and
// each thread has one channel of a run of pixels.
struct Runs {
  int channels, across;  // across: threads side by side, a power of two
  int64_t pixels;

  Runs(int channels_, int64_t pixels_) : channels(channels_), across(1), pixels(pixels_) {
    while (across < channels && across < 128) across *= 2;
  }
  DIP_FAST_HD int64_t count() const { return int64_t(blocks()) * (THREADS / across); }
  DIP_FAST_HD int blocks() const { return ceil_div(pixels, int64_t(RUN) * (THREADS / across)); }
  dim3 grid() const { return dim3(blocks(), ceil_div(channels, across)); }

  DIP_FAST_D int channel() const { return int(blockIdx.y) * across + int(threadIdx.x) % across; }
  DIP_FAST_D int64_t part() const { return int64_t(blockIdx.x) * (THREADS / across) + threadIdx.x / across; }
  // The parts of a block interleave their pixels, so that the threads of a warp read contiguous memory.
  template <class Use>
  DIP_FAST_D void each(const Use& use) const {
    const int lines = THREADS / across;
    int64_t pixel = int64_t(blockIdx.x) * RUN * lines + threadIdx.x / across;
    if (pixel + int64_t(RUN - 1) * lines < pixels) {
#pragma unroll 8  // without a test between them, loads of several pixels are under way together
      for (int i = 0; i < RUN; ++i, pixel += lines) use(pixel);
    } else {
      for (; pixel < pixels; pixel += lines) use(pixel);
    }
  }
  // A part's pixels one after the other, for what reads their neighbours too.
  template <class Use>
  DIP_FAST_D void each_in_line(const Use& use) const {
    const int64_t first = part() * RUN, end = first + RUN < pixels ? first + RUN : pixels;
    for (int64_t pixel = first; pixel < end; ++pixel) use(pixel);
  }
};

// ---- merging parts: a block merges one column.  Each of its threads adds every 256th part, then a tree adds the
// results of the threads

struct MergedSum {
  double sum = 0;
  DIP_FAST_D void add(const MergedSum& other) { sum += other.sum; }
};

// T. F. Chan, G. H. Golub, R. J. LeVeque, "Algorithms for computing the sample variance", 1983.
// The mean is `near` + `offset`, with `near` that of the first part: where all values are alike, differences are exact.
struct MergedMoment {
  double count = 0, near = 0, offset = 0, squares = 0;
  DIP_FAST_D void add(const MergedMoment& other) {
    if (other.count == 0) return;
    if (count == 0) {
      *this = other;
      return;
    }
    const double all = count + other.count, difference = (other.near - near) + (other.offset - offset),
                 share = other.count / all;
    offset += difference * share;
    squares += other.squares + difference * difference * count * share;
    count = all;
  }
};

// A pair of sums: of t, and of t (x - mean).
struct MergedPair {
  double sum = 0, moment = 0;
  DIP_FAST_D void add(const MergedPair& other) { sum += other.sum, moment += other.moment; }
};

DIP_FAST_D MergedSum merged(double part) { return {part}; }
template <class Sum>
DIP_FAST_D MergedMoment merged(const Moment<Sum>& part) {
  return {double(part.count), double(part.mean), double(part.mean_low), double(part.squares)};
}
template <class To>
DIP_FAST_D void store(const MergedSum& all, To* to, int) {
  *to = To(all.sum);
}
DIP_FAST_D void store(const MergedMoment& all, double* to, int pitch) {
  to[0] = all.near + all.offset;
  const double variance = all.squares / all.count;
  to[pitch] = variance < 0 ? 0 : variance;  // written so that a NaN stays one
}

// Merges `count` parts; the result is valid in thread 0.
template <class Merged, class Read>
DIP_FAST_D Merged merge_in_block(int64_t count, const Read& read) {
  Merged all;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < count; i += THREADS) all.add(read(i));
  Merged* shared = shared_memory<Merged>();
  for (int stride = 1; stride < THREADS; stride *= 2) {
    shared[threadIdx.x] = all;
    barrier();
    if (threadIdx.x % (2 * stride) == 0) all.add(shared[threadIdx.x + stride]);
    barrier();
  }
  return all;
}

template <class Part, class To>
struct Merge {
  const Part* parts;  // (count, columns)
  int64_t count;
  int columns, pitch;
  To* to;
};

template <class Part, class To>
__global__ void __launch_bounds__(THREADS, 1) merge_kernel(Merge<Part, To> a) {
  const int column = blockIdx.x;
  const auto all = merge_in_block<decltype(merged(Part{}))>(
      a.count, [&](int64_t i) { return merged(a.parts[i * a.columns + column]); });
  if (threadIdx.x == 0) store(all, a.to + column, a.pitch);
}

template <class Part, class To>
void merge(const Part* parts, int64_t count, int columns, To* to, int pitch, Stream stream) {
  launch<true>(merge_kernel<Part, To>, dim3(columns), THREADS, THREADS * int(sizeof(MergedMoment)), stream,
               Merge<Part, To>{parts, count, columns, pitch, to});
}

// ---- gradients of a batch norm: with u = gamma r (x - m) + beta and t = dL/du
//
//   dbeta = sum t    dgamma = r sum t (x - m)    dm = -gamma r sum t    dv = -gamma r^3 sum t (x - m) / 2

template <class K>
struct NormSums {
  const typename K::Sum* parts;  // (count, 2, channels)
  int64_t count;
  int channels;
  double* sums;
  NormGrad<K> norm;
};

template <class K>
__global__ void __launch_bounds__(THREADS, 1) norm_grad_kernel(NormSums<K> a) {
  using Sum = typename K::Sum;
  const int c = blockIdx.x, C = a.channels;
  const MergedPair all = merge_in_block<MergedPair>(a.count, [&](int64_t i) {
    return MergedPair{double(a.parts[2 * i * C + c]), double(a.parts[(2 * i + 1) * C + c])};
  });
  if (threadIdx.x > 0) return;
  if (a.sums != nullptr) a.sums[c] = all.sum, a.sums[C + c] = all.moment;
  if (a.norm.coefficients == nullptr) return;
  const double r = a.norm.coefficients[3 * C + c], gamma = a.norm.weight[c];
  a.norm.to_bias[c] = Sum(all.sum);
  a.norm.to_weight[c] = Sum(r * all.moment);
  if (a.norm.to_statistics == nullptr) return;
  a.norm.to_statistics[c] = -gamma * r * all.sum;
  a.norm.to_statistics[C + c] = -0.5 * gamma * r * r * r * all.moment;
}

// ---- statistics of an image as it is read

template <class K>
struct Moments {
  NormActImage<K> source;
  Runs runs;  // of the pixels of the source
  bool bilinear;
  Moment<typename K::Sum>* parts;
};

template <class K>
__global__ void __launch_bounds__(THREADS, 1) moments_kernel(Moments<K> a) {
  using Sum = typename K::Sum;
  const int channel = a.runs.channel();
  if (channel >= a.runs.channels) return;
  const auto source = a.source.template channels<1>(channel);
  const auto read = [&](int64_t pixel) -> Sum { return source.at(pixel).at[0]; };
  RunningMoment<Sum> moment;
  if (a.bilinear) {
    Window<Sum> window;
    a.runs.each_in_line([&](int64_t pixel) {
      window.move_to(pixel, a.source.image.height, a.source.image.width, read);
      Sum pixels[4];
      upsample(window, pixels);
      moment.add(pixels);
    });
  } else {
    a.runs.each([&](int64_t pixel) {
      const Sum values[1] = {read(pixel)};
      moment.add(values);
    });
  }
  a.parts[a.runs.part() * a.runs.channels + channel] = moment.result();
}

// ---- the way back through the norm after a concatenation, and through an image's own norm and activation
//
// Let a be an image after its own norm and activation, U the image upsampled from it, of n pixels, and A the adjoint of
// upsampling: A 1 = f, where f = 4, or 1 without upsampling.  The norm after the concatenation has mean m, deviation
// 1/r and weight gamma.  With e = A dL/dz, the gradient of its output z brought back to the resolution of a,
//
//   da = gamma r (e - f sum(e) / n - r^2 sum(e (a - m)) / n A(U - m))
//
// A U is f a for nearest-neighbour upsampling and without upsampling.  For bilinear upsampling it is the stencil
// (3, 10, 3) / 8 in both directions, with border pixels repeated.
//
// The image's own norm and activation follow: t = leaky'(u) da, and dx = scale t.

template <class K>
struct NormActBackwardParts {
  NormActBackward<K> call;
  Runs runs;
  typename K::Sum* parts;  // (parts, 2, C), sums of t and t (x - mean); null: the image has no norm of its own
};

// The terms of da that a channel's pixels share.
template <class Sum>
struct MidNormTerms {
  Sum scale = 1, mean = 0, constant = 0, by_value = 0;
};
template <class K>
DIP_FAST_D MidNormTerms<typename K::Sum> mid_norm_terms(const NormActBackward<K>& call, typename K::Sum f,
                                                        int64_t pixels, int channel, int C) {
  using Sum = typename K::Sum;
  if (call.mid_norm == nullptr) return {};
  const double n = double(pixels) * f, r = call.mid_norm[3 * C + channel];
  return {call.mid_norm[channel], call.mid_norm[2 * C + channel], Sum(f * call.mid_norm_sums[channel] / n),
          Sum(r * r * call.mid_norm_sums[C + channel] / n)};
}

template <class K>
__global__ void __launch_bounds__(THREADS, 1) norm_act_backward_kernel(NormActBackwardParts<K> a) {
  using Sum = typename K::Sum;
  const NormActBackward<K>& call = a.call;
  const auto& image = call.image.image;
  const int channel = a.runs.channel(), C = a.runs.channels;
  if (channel >= C) return;
  const Sum f = call.upsampled ? 4 : 1;
  const MidNormTerms<Sum> mid = mid_norm_terms(call, f, a.runs.pixels, channel, C);
  const Sum* own = call.own_norm.coefficients;
  const Sum own_scale = own == nullptr ? Sum(1) : own[channel], own_shift = own == nullptr ? Sum(0) : own[C + channel],
            own_mean = own == nullptr ? Sum(0) : own[2 * C + channel];
  const auto source = call.image.template channels<1>(channel);
  const auto read = [&](int64_t pixel) { return source.at(pixel).at[0]; };
  Sum total = 0, moment = 0;
  const auto back = [&](int64_t pixel, Sum adjoint) {
    Sum grad = widened(call.grad[pixel * C + channel]);
    if (call.mid_norm != nullptr) grad = mid.scale * (grad - mid.constant - mid.by_value * adjoint);
    if (own != nullptr) {
      const Sum x = widened(image.data[pixel * C + channel]), u = x * own_scale + own_shift;
      if (u <= 0) grad *= call.image.norm_act.slope;
      total += grad;
      moment += grad * (x - own_mean);
      grad *= own_scale;
    }
    call.to[pixel * C + channel] = narrowed<typename K::Stored>(grad);
  };
  if (call.bilinear && call.mid_norm != nullptr) {
    Window<Sum> window;
    a.runs.each_in_line([&](int64_t pixel) {
      window.move_to(pixel, image.height, image.width, read);
      back(pixel, adjoint_of_upsampled(window, mid.mean));
    });
  } else {
    a.runs.each([&](int64_t pixel) { back(pixel, call.mid_norm == nullptr ? Sum(0) : f * (read(pixel) - mid.mean)); });
  }
  if (a.parts == nullptr) return;
  a.parts[2 * a.runs.part() * C + channel] = total;
  a.parts[(2 * a.runs.part() + 1) * C + channel] = moment;
}

// ---- gradients of biases

template <class K>
struct ChannelSums {
  OutputGrad<K> output_grad;
  Runs runs;
  double* parts;  // double costs little here: only the few channels of an output layer have a bias
};

template <class K>
__global__ void __launch_bounds__(THREADS, 1) channel_sums_kernel(ChannelSums<K> a) {
  const int channel = a.runs.channel();
  if (channel >= a.runs.channels) return;
  const auto output_grad = a.output_grad.template channels<1>(channel);
  double total = 0;
  a.runs.each([&](int64_t pixel) { total += output_grad.at(pixel).at[0]; });
  a.parts[a.runs.part() * a.runs.channels + channel] = total;
}

}  // namespace

template <class K>
void merge_moments(const Moment<typename K::Sum>* parts, int64_t count, int channels, double* statistics, int pitch,
                   Stream stream) {
  merge(parts, count, channels, statistics, pitch, stream);
}

template <class K>
void merge_norm_sums(const typename K::Sum* parts, int64_t count, int channels, double* sums, const NormGrad<K>& norm,
                     Stream stream) {
  launch<true>(norm_grad_kernel<K>, dim3(channels), THREADS, THREADS * int(sizeof(MergedPair)), stream,
               NormSums<K>{parts, count, channels, sums, norm});
}

template <class K>
void moments(const NormActImage<K>& source, bool bilinear, double* statistics, int pitch, const Context& context) {
  const auto& image = source.image;
  const Runs runs(image.channels, image.pixels());
  auto* parts = context.take<Moment<typename K::Sum>>(runs.count() * image.channels);
  launch<false>(moments_kernel<K>, runs.grid(), THREADS, 0, context.stream, Moments<K>{source, runs, bilinear, parts});
  merge(parts, runs.count(), image.channels, statistics, pitch, context.stream);
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
  const int channels = output_grad.grad.channels;
  const Runs runs(channels, output_grad.grad.pixels());
  double* parts = context.take<double>(runs.count() * channels);
  launch<false>(channel_sums_kernel<K>, runs.grid(), THREADS, 0, context.stream,
                ChannelSums<K>{output_grad, runs, parts});
  merge(parts, runs.count(), channels, to, 0, context.stream);
}

#define INSTANTIATE(K)                                                                                \
  template void merge_moments<K>(const Moment<K::Sum>*, int64_t, int, double*, int, Stream);          \
  template void merge_norm_sums<K>(const K::Sum*, int64_t, int, double*, const NormGrad<K>&, Stream); \
  template void moments<K>(const NormActImage<K>&, bool, double*, int, const Context&);               \
  template void norm_act_backward<K>(const NormActBackward<K>&, const Context&);                      \
  template void channel_sums<K>(const OutputGrad<K>&, K::Sum*, const Context&);
DIP_FAST_EACH_KIND(INSTANTIATE)

}  // namespace dip_fast::cuda
