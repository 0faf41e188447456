// The convolution kernel: an implicit matrix product.
//
//   Y[site][k] = sum over (tap, c) of A[site][(tap, c)] B[k][(tap, c)]
//
// A is the operand: it is read, normalised, activated, padded and upsampled on its way into shared memory and never
// exists in global memory.  B is the packed weight.  The epilogue then goes over Y channel by channel.
//
// Each convolve_*.cu instantiates the kernel for the operands of one use.
#pragma once

#include "kernels.cuh"
#include "product.cuh"

namespace dip_fast::cuda {
namespace {

template <class K, class Operand, class Epilogue>
struct Convolve {
  Operand operand;
  Sites sites;
  const typename K::Factor* factors;  // (phases, rows, pitch)
  Depths depths;
  int rows, channels;
  Epilogue epilogue;
};

// Steps through consecutive sites without a division for each.
struct SiteWalk {
  int row, column, columns;
  DIP_FAST_D SiteWalk(int64_t site, int columns_)
      : row(int(site / columns_)), column(int(site % columns_)), columns(columns_) {}
  DIP_FAST_D void next() {
    if (++column == columns) column = 0, ++row;
  }
};

// ---- epilogues.  A thread has one channel of a run of sites, which are one part of the sums over pixels.
// each(load, use) visits them as use(sum, pixel, load(pixel)), and loads some pixels ahead of their use

struct Nothing {};

// y = sum + bias, stored, and the moment of the stored values.
template <class K, class Each>
DIP_FAST_D void epilogue_column(const StoreEpilogue<K>& to, int channel, int64_t part, int channels, const Each& each) {
  using Sum = typename K::Sum;
  const Sum bias = to.bias == nullptr ? Sum(0) : to.bias[channel];
  Sum count = 0, total = 0;
  const auto nothing = [](int64_t) { return Nothing{}; };
  each(nothing, [&](Sum& sum, int64_t pixel, Nothing) {
    const auto stored = narrowed<typename K::Stored>(sum + bias);
    to.output[pixel * channels + channel] = stored;
    sum = widened(stored);
    total += sum;
    count += 1;
  });
  if (to.parts == nullptr) return;
  to.parts[part * channels + channel] =
      moment_of(count, total, [&](auto use) { each(nothing, [&](Sum& sum, int64_t, Nothing) { use(sum); }); });
}

// One channel of BlurEpilogue's deep image: `nearest` blurred by (1, 2, 1) / 4 in both directions, and `border` on the
// border.  The vertical sums of two columns are kept, so a pixel that follows its left neighbour takes three loads.
template <class K>
struct Blur {
  using Sum = typename K::Sum;
  using Stored = typename K::Stored;
  struct Raw {
    Stored above, here, below;  // the column on the right; of a border pixel `here` alone, its value
    bool is_border;
  };
  const BlurEpilogue<K>& source;
  int channel, channels;
  int64_t next = -1;
  Sum left = 0, centre = 0;

  DIP_FAST_D Raw load(int64_t pixel) const {
    const int row = int(pixel) / source.width, column = int(pixel) % source.width;
    const Border border = border_of(row, column, source.height, source.width);
    if (border.side < 0) return load_column(pixel + 1);
    const auto* from = source.border + (int64_t(border.side) * source.longest + border.at) * channels + channel;
    return {*from, *from, *from, true};
  }

  DIP_FAST_D Sum finish(int64_t pixel, const Raw& raw) {
    if (raw.is_border) return widened(raw.here);
    if (pixel != next) left = column_sum(load_column(pixel - 1)), centre = column_sum(load_column(pixel));
    const Sum right = column_sum(raw), result = Sum(0.5) * centre + Sum(0.25) * (left + right);
    left = centre, centre = right, next = pixel + 1;
    return result;
  }

 private:
  DIP_FAST_D Raw load_column(int64_t pixel) const {
    const auto* from = source.nearest + pixel * channels + channel;
    const int64_t line = int64_t(source.width) * channels;
    return {from[-line], from[0], from[line], false};
  }
  DIP_FAST_D static Sum column_sum(const Raw& raw) {
    return Sum(0.5) * widened(raw.here) + Sum(0.25) * (widened(raw.above) + widened(raw.below));
  }
};

template <class K, class Each>
DIP_FAST_D void epilogue_column(const BlurEpilogue<K>& blurred, int channel, int64_t part, int channels,
                                const Each& each) {
  Blur<K> blur{blurred, channel, channels};
  each([&](int64_t pixel) { return blur.load(pixel); },
       [&](typename K::Sum& sum, int64_t pixel, const auto& raw) { sum += blur.finish(pixel, raw); });
  epilogue_column(blurred.store, channel, part, channels, each);
}

// See BackwardEpilogue for what is stored and summed.
template <class K, class Each>
DIP_FAST_D void epilogue_column(const BackwardEpilogue<K>& back, int channel, int64_t part, int channels,
                                const Each& each) {
  using Sum = typename K::Sum;
  const auto& norm_act = back.image.norm_act;
  const bool summed = back.image.image.data != nullptr;
  const Sum scale = norm_act.scale == nullptr ? Sum(1) : norm_act.scale[channel],
            shift = norm_act.scale == nullptr ? Sum(0) : norm_act.shift[channel],
            mean = summed ? back.mean[channel] : Sum(0);
  Sum total = 0, moment = 0;
  const auto load = [&](int64_t pixel) {
    return summed ? back.image.image.data[pixel * channels + channel] : typename K::Stored{};
  };
  each(load, [&](Sum& sum, int64_t pixel, typename K::Stored loaded) {
    Sum t = sum, value = sum;
    if (summed) {
      const Sum x = widened(loaded), u = x * scale + shift;
      if (back.through && u <= 0) t *= norm_act.slope;
      value = back.through ? t * scale : t;
      const Sum value_read = back.through ? x : u > 0 ? u : norm_act.slope * u;
      total += t;
      moment += t * (value_read - mean);
    }
    back.output[pixel * channels + channel] = narrowed<typename K::Stored>(value);
  });
  if (!summed) return;
  back.parts[2 * part * channels + channel] = total;
  back.parts[(2 * part + 1) * channels + channel] = moment;
}

// ---- the main loop

// What one thread loads of each step: four neighbouring numbers of the depth, of LEFT rows of the left matrix and RIGHT
// rows of the right one.
template <class K, class T, class Reader>
struct TileLoader {
  using Factor = typename K::Factor;
  using P = Product<Factor, T>;
  static constexpr int QUADS = P::DEPTH / 4, ROWS = T::THREADS / QUADS, LEFT = ceil_div(T::M, ROWS),
                       RIGHT = ceil_div(T::N, ROWS);
  int line, quad, pitch;
  const Factor* factors;
  int sites_at[LEFT];  // row and column of each site, 16 bits each; -1: no site
  int tap = -1;        // the places are those of this tap
  typename Reader::Place places[LEFT];
  typename Reader::Raw left[LEFT];

  // For the sites of a phase from `first` on, and the rows of the packed weight from `row` on.
  DIP_FAST_D TileLoader(const Sites& sites, int phase, int64_t first, const Factor* row, int pitch_)
      : line(threadIdx.x / QUADS), quad(threadIdx.x % QUADS), pitch(pitch_) {
    factors = row + int64_t(line) * pitch + 4 * quad;
    const int columns = sites.columns(phase);
    const int64_t total = int64_t(sites.rows(phase)) * columns;
#pragma unroll
    for (int i = 0; i < LEFT; ++i) {
      const int64_t site = first + line + i * ROWS;
      if (site >= total || line + i * ROWS >= T::M) {
        sites_at[i] = -1;
        continue;
      }
      const int row = int(site / columns) * sites.step + phase / sites.step,
                column = int(site % columns) * sites.step + phase % sites.step;
      sites_at[i] = row << 16 | column;
    }
  }

  // Starts the loads of a step.  The left numbers are computed, so what they are computed from stays in registers until
  // `commit`; the right ones are copied asynchronously.
  DIP_FAST_D void fetch(int depth, Factor* step, const Reader& reader) {
    Factor* to = step + P::BEGIN + line * P::PITCH + 4 * quad;
#pragma unroll
    for (int i = 0; i < RIGHT; ++i)
      if (line + i * ROWS < T::N)
        copy_quad_async<P::PITCH>(to + i * ROWS * P::PITCH, factors + int64_t(i) * ROWS * pitch + depth);
    if (reader.tap() < 0 || reader.tap() != tap) {
      tap = reader.tap();
#pragma unroll
      for (int i = 0; i < LEFT; ++i) {
        places[i] = {};
        if (sites_at[i] >= 0) places[i] = reader.place(sites_at[i] >> 16, sites_at[i] & 0xffff);
      }
    }
#pragma unroll
    for (int i = 0; i < LEFT; ++i) left[i] = reader.load(places[i]);
  }

  // Completes the step in shared memory; a barrier must follow before other threads read it.
  DIP_FAST_D void commit(Factor* step, const Reader& reader) const {
    const auto channels = reader.channels();
    Factor* to = step + line * P::PITCH + 4 * quad;
#pragma unroll
    for (int i = 0; i < LEFT; ++i) {
      if (line + i * ROWS >= T::M) continue;
      const auto values = reader.finish(left[i], channels, places[i], sites_at[i] >> 16, sites_at[i] & 0xffff);
      Quad<Factor> numbers;
#pragma unroll
      for (int e = 0; e < 4; ++e) numbers.at[e] = narrowed<Factor>(values.at[e]);
      store_quad<P::PITCH>(to + i * ROWS * P::PITCH, numbers);
    }
    wait_for_copies();
  }
};

constexpr int AHEAD = 8;  // pixels whose loads are under way together in an epilogue

// Runs the epilogue on a tile's sums in shared memory, of the sites of a phase from `first` on.  Each thread takes one
// channel of T::M / PARTS consecutive sites, which are a part; the order of parts depends on the shape alone.
template <class K, class T, class Epilogue>
DIP_FAST_D void run_epilogue(typename K::Sum* sums, const Sites& sites, int phase, int64_t first, int channel,
                             int channels, const Epilogue& epilogue) {
  constexpr int PARTS = T::THREADS / T::N, HEIGHT = T::M / PARTS, PITCH = Shared<typename K::Factor, T>::PITCH;
  const int own = threadIdx.x % T::N, part = threadIdx.x / T::N, columns = sites.columns(phase);
  if (channel + own >= channels) return;
  const int64_t begin = first + part * HEIGHT;
  const int count = int(sites_in_part(begin / HEIGHT, HEIGHT, int64_t(sites.rows(phase)) * columns));
  typename K::Sum* at = sums + part * HEIGHT * PITCH + own;
  const int64_t index = (int64_t(phase) * gridDim.x + blockIdx.x) * PARTS + part;
  epilogue_column(epilogue, channel + own, index, channels, [&](const auto& load, const auto& use) {
    if (count == 0) return;  // SiteWalk divides by the columns, which may be 0
    SiteWalk walk(begin, columns);
    for (int first = 0; first < count; first += AHEAD) {
      int pixels[AHEAD];
      decltype(load(int64_t())) loaded[AHEAD];
#pragma unroll
      for (int i = 0; i < AHEAD; ++i, walk.next()) {
        pixels[i] =
            (walk.row * sites.step + phase / sites.step) * sites.width + walk.column * sites.step + phase % sites.step;
        if (first + i < count) loaded[i] = load(pixels[i]);
      }
#pragma unroll
      for (int i = 0; i < AHEAD; ++i)
        if (first + i < count) use(at[(first + i) * PITCH], pixels[i], loaded[i]);
    }
  });
}

template <class K, class T, int width, class Operand, class Epilogue>
__global__ void __launch_bounds__(T::THREADS, 1) convolve_kernel(Convolve<K, Operand, Epilogue> a) {
  using Factor = typename K::Factor;
  using Sum = typename K::Sum;
  using P = Product<Factor, T>;
  using S = Shared<Factor, T>;
  const int phase = blockIdx.z, channel = blockIdx.y * T::N, end = a.depths.of(phase);
  const int64_t first = int64_t(blockIdx.x) * T::M;
  Factor* shared = shared_memory<Factor>();
  const auto reader_at = [&](int depth) {
    return vec4_reader<width>(a.operand, depth + int(threadIdx.x) % (P::DEPTH / 4) * 4, phase);
  };
  TileLoader<K, T, decltype(reader_at(0))> loader(
      a.sites, phase, first, a.factors + (int64_t(phase) * a.rows + channel) * a.depths.pitch, a.depths.pitch);
  // While a step is multiplied, the loads of the next one are under way.
  P product;
  for (int depth = -P::DEPTH, at = 1; depth < end; depth += P::DEPTH, at ^= 1) {
    const bool more = depth + P::DEPTH < end;
    Factor *current = shared + at * S::STEP, *next = shared + (at ^ 1) * S::STEP;
    const auto reader = reader_at(depth + P::DEPTH);
    if (more) loader.fetch(depth + P::DEPTH, next, reader);
    if (depth >= 0) product.step(current);
    if (more) loader.commit(next, reader);
    barrier();
  }

  Sum* sums = shared_memory<Sum>();
  product.store(sums, S::PITCH);
  barrier();
  run_epilogue<K, T>(sums, a.sites, phase, first, channel, a.channels, a.epilogue);
}

}  // namespace

template <class K, class Operand, class Epilogue>
void convolve(const Operand& operand, const ConvShape& shape, const typename K::Factor* factors, const Depths& depths,
              const Epilogue& epilogue, Stream stream) {
  const Sites& sites = shape.sites;
  with_tile<typename K::Factor>(sites.per_phase() * sites.phases(), shape.channels, shape.vec4, [&]<class T>(T) {
    const int rows = round_up(shape.channels, T::N);
    const dim3 grid(ceil_div(sites.per_phase(), T::M), rows / T::N, sites.phases());
    const Convolve<K, Operand, Epilogue> call{operand, sites, factors, depths, rows, shape.channels, epilogue};
    auto kernel = convolve_kernel<K, T, 4, Operand, Epilogue>;
    if constexpr (!VEC4_ONLY<typename K::Factor, T>)
      if (!shape.vec4) kernel = convolve_kernel<K, T, 1, Operand, Epilogue>;
    launch<true>(kernel, grid, T::THREADS, Shared<typename K::Factor, T>::BYTES, stream, call);
  });
}

}  // namespace dip_fast::cuda
