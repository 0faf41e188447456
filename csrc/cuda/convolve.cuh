// Convolutions as products of matrices that are never made: the left factor, sites by taps and channels, is read,
// normalised, activated, padded and upsampled on its way into shared memory.
//
// Instantiated by the convolve_*.cu, one for each operand.
#pragma once

#include "kernels.cuh"
#include "product.cuh"

namespace dip_fast::cuda {
namespace {

template <class K, class Operand, class Finish>
struct Convolve {
  Operand operand;
  Sites sites;
  const typename K::Factor* factors;  // (phases, rows, pitch)
  Depths depths;
  int rows, channels;
  Finish finish;
};

// Sites of a tile, one after the other.
struct Walk {
  int row, column, columns;
  DIP_FAST_D Walk(int64_t site, int columns_)
      : row(int(site / columns_)), column(int(site % columns_)), columns(columns_) {}
  DIP_FAST_D void next() {
    if (++column == columns) column = 0, ++row;
  }
};

// y = sum + bias, written, and the moments of what was written.
template <class K, class Each>
DIP_FAST_D void finish_column(const Raw<K>& raw, int channel, int64_t part, int channels, const Each& each) {
  using Sum = typename K::Sum;
  const Sum bias = raw.bias == nullptr ? Sum(0) : raw.bias[channel];
  Sum count = 0, total = 0;
  each([&](Sum& sum, int64_t pixel) {
    const auto stored = narrowed<typename K::Stored>(sum + bias);
    raw.output[pixel * channels + channel] = stored;
    sum = widened(stored);
    total += sum;
    count += 1;
  });
  if (raw.parts == nullptr) return;
  raw.parts[part * channels + channel] =
      moment_of(count, total, [&](auto use) { each([&](Sum& sum, int64_t) { use(sum); }); });
}

// An image blurred by (1, 2, 1) / 4 either way, one channel of it; pixels one after the other take three loads each.
template <class K>
struct Blur {
  using Sum = typename K::Sum;
  const Blurred<K>& of;
  int channel, channels;
  int64_t next = -1;
  Sum left = 0, centre = 0;

  DIP_FAST_D Sum column_sum(int row, int column) const {
    const auto* from = of.nearest + (int64_t(row) * of.width + column) * channels + channel;
    const int64_t line = int64_t(of.width) * channels;
    return Sum(0.5) * widened(*from) + Sum(0.25) * (widened(*(from - line)) + widened(*(from + line)));
  }

  DIP_FAST_D Sum at(int64_t pixel) {
    const int row = int(pixel) / of.width, column = int(pixel) % of.width;
    const Border border = border_of(row, column, of.height, of.width);
    if (border.side >= 0)
      return widened(of.border[(int64_t(border.side) * of.longest + border.at) * channels + channel]);
    if (pixel != next) left = column_sum(row, column - 1), centre = column_sum(row, column);
    const Sum right = column_sum(row, column + 1), result = Sum(0.5) * centre + Sum(0.25) * (left + right);
    left = centre, centre = right, next = pixel + 1;
    return result;
  }
};

template <class K, class Each>
DIP_FAST_D void finish_column(const Blurred<K>& blurred, int channel, int64_t part, int channels, const Each& each) {
  Blur<K> blur{blurred, channel, channels};
  each([&](typename K::Sum& sum, int64_t pixel) { sum += blur.at(pixel); });
  finish_column(blurred.raw, channel, part, channels, each);
}

template <class K, class Each>
DIP_FAST_D void finish_column(const Back<K>& back, int channel, int64_t part, int channels, const Each& each) {
  using Sum = typename K::Sum;
  const auto& reading = back.image.reading;
  const bool summed = back.image.image.data != nullptr;
  const Sum scale = reading.scale == nullptr ? Sum(1) : reading.scale[channel],
            shift = reading.scale == nullptr ? Sum(0) : reading.shift[channel],
            centre = summed ? back.centre[channel] : Sum(0);
  Sum total = 0, moment = 0;
  each([&](Sum& sum, int64_t pixel) {
    Sum t = sum, value = sum;
    if (summed) {
      const Sum x = widened(back.image.image.data[pixel * channels + channel]), u = x * scale + shift;
      if (back.through && u <= 0) t *= reading.slope;
      value = back.through ? t * scale : t;
      const Sum read = back.through ? x : u > 0 ? u : reading.slope * u;
      total += t;
      moment += t * (read - centre);
    }
    back.output[pixel * channels + channel] = narrowed<typename K::Stored>(value);
  });
  if (!summed) return;
  back.parts[2 * part * channels + channel] = total;
  back.parts[(2 * part + 1) * channels + channel] = moment;
}

// A thread's share of the factors of a step on their way into shared memory: some lines of both, four numbers of each.
template <class K, class T>
struct Feed {
  using Factor = typename K::Factor;
  using P = Product<Factor, T>;
  static constexpr int QUADS = P::DEPTH / 4, ROWS = THREADS / QUADS, LEFT = quotient_up(T::M, ROWS),
                       RIGHT = quotient_up(T::N, ROWS);
  int line, quad, pitch;
  const Factor* factors;
  int place[LEFT];  // row and column of a site in 16 bits each; -1: none
  Quad<Factor> left[LEFT];

  // Of the sites of a phase from `first` on, and of the rows of the right factor from `row` on.
  DIP_FAST_D Feed(const Sites& sites, int phase, int64_t first, const Factor* row, int pitch_)
      : line(threadIdx.x / QUADS), quad(threadIdx.x % QUADS), pitch(pitch_) {
    factors = row + int64_t(line) * pitch + 4 * quad;
    const int columns = sites.columns(phase);
    const int64_t total = int64_t(sites.rows(phase)) * columns;
#pragma unroll
    for (int i = 0; i < LEFT; ++i) {
      const int64_t site = first + line + i * ROWS;
      if (site >= total || line + i * ROWS >= T::M) {
        place[i] = -1;
        continue;
      }
      const int row = int(site / columns) * sites.step + phase / sites.step,
                column = int(site % columns) * sites.step + phase % sites.step;
      place[i] = row << 16 | column;
    }
  }

  // The left factor goes through registers, as it is not what lies in memory; the right one does.
  template <class Read>
  DIP_FAST_D void fetch(int depth, Factor* step, const Read& read) {
    Factor* to = step + P::BEGIN + line * P::PITCH + 4 * quad;
#pragma unroll
    for (int i = 0; i < RIGHT; ++i)
      if (line + i * ROWS < T::N)
        copy_quad<P::PITCH>(to + i * ROWS * P::PITCH, factors + int64_t(i) * ROWS * pitch + depth);
#pragma unroll
    for (int i = 0; i < LEFT; ++i) {
      Some<typename K::Sum, 4> values;
      if (place[i] >= 0) values = read(place[i] >> 16, place[i] & 0xffff);
#pragma unroll
      for (int e = 0; e < 4; ++e) left[i].at[e] = narrowed<Factor>(values.at[e]);
    }
  }

  DIP_FAST_D void keep(Factor* step) {
    Factor* to = step + line * P::PITCH + 4 * quad;
#pragma unroll
    for (int i = 0; i < LEFT; ++i)
      if (line + i * ROWS < T::M) put_quad<P::PITCH>(to + i * ROWS * P::PITCH, left[i]);
    copies_done();
  }
};

// A tile's sums, of the sites of a phase from `first` on, out of shared memory: each thread has a run of one channel.
template <class K, class T, class Finish>
DIP_FAST_D void finish_tile(typename K::Sum* sums, const Sites& sites, int phase, int64_t first, int channel,
                            int channels, const Finish& finish) {
  constexpr int PARTS = THREADS / T::N, HEIGHT = T::M / PARTS, PITCH = Shared<typename K::Factor, T>::PITCH;
  const int own = threadIdx.x % T::N, part = threadIdx.x / T::N, columns = sites.columns(phase);
  if (channel + own >= channels) return;
  const int64_t begin = first + part * HEIGHT;
  const int count = int(sites_of_part(begin / HEIGHT, HEIGHT, int64_t(sites.rows(phase)) * columns));
  typename K::Sum* at = sums + part * HEIGHT * PITCH + own;
  const int64_t index = (int64_t(phase) * gridDim.x + blockIdx.x) * PARTS + part;
  finish_column(finish, channel + own, index, channels, [&](auto use) {
    if (count == 0) return;  // and perhaps no columns
    Walk walk(begin, columns);
    for (int i = 0; i < count; ++i, walk.next())
      use(at[i * PITCH], int64_t(walk.row * sites.step + phase / sites.step) * sites.width + walk.column * sites.step +
                             phase % sites.step);
  });
}

template <class K, class T, int width, class Operand, class Finish>
__global__ void __launch_bounds__(THREADS, 1) convolve_kernel(Convolve<K, Operand, Finish> a) {
  using Factor = typename K::Factor;
  using Sum = typename K::Sum;
  using P = Product<Factor, T>;
  using S = Shared<Factor, T>;
  const int phase = blockIdx.z, channel = blockIdx.y * T::N, end = a.depths.of(phase);
  const int64_t first = int64_t(blockIdx.x) * T::M;
  Factor* shared = shared_memory<Factor>();
  Feed<K, T> feed(a.sites, phase, first, a.factors + (int64_t(phase) * a.rows + channel) * a.depths.pitch,
                  a.depths.pitch);
  const auto fetch = [&](int depth, Factor* step) {
    const auto four = four_from<width>(a.operand, depth + 4 * feed.quad, phase);
    feed.fetch(depth, step, [&](int row, int column) { return four.at(row, column); });
  };

  P product;
  if (end > 0) {
    fetch(0, shared);
    feed.keep(shared);
  }
  barrier();
  for (int depth = 0, at = 0; depth < end; depth += P::DEPTH, at ^= 1) {
    const bool more = depth + P::DEPTH < end;
    Factor *current = shared + at * S::STEP, *next = shared + (at ^ 1) * S::STEP;
    if (more) fetch(depth + P::DEPTH, next);
    product.step(current);
    if (more) feed.keep(next);
    barrier();
  }

  Sum* sums = shared_memory<Sum>();
  product.put(sums, S::PITCH);
  barrier();
  finish_tile<K, T>(sums, a.sites, phase, first, channel, a.channels, a.finish);
}

}  // namespace

template <class K, class Operand, class Finish>
void convolve(const Operand& operand, const Work& work, const typename K::Factor* factors, const Depths& depths,
              const Finish& finish, Stream stream) {
  const Sites& sites = work.sites;
  with_tile<typename K::Factor>(sites.most() * sites.phases(), work.channels, work.quads, [&]<class T>(T) {
    const int rows = rounded_up(work.channels, T::N);
    const dim3 grid(quotient_up(sites.most(), T::M), rows / T::N, sites.phases());
    const Convolve<K, Operand, Finish> call{operand, sites, factors, depths, rows, work.channels, finish};
    auto kernel = convolve_kernel<K, T, 4, Operand, Finish>;
    if constexpr (!FOURS_ALONE<typename K::Factor, T>)
      if (!work.quads) kernel = convolve_kernel<K, T, 1, Operand, Finish>;
    launch<true>(kernel, grid, THREADS, Shared<typename K::Factor, T>::BYTES, stream, call);
  });
}

}  // namespace dip_fast::cuda
