// Tests of the CUDA kernels on an emulated GPU, without PyTorch.  They compare the index arithmetic with its definition
// by brute force and the layers with float64, and show that no result depends on the order of a block's threads.  Each
// buffer has exactly its size, so a build with sanitizers checks every access.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda/index.cuh"
#include "cuda/layers.h"
#include "simt.h"

namespace {

using namespace dip_fast;
using namespace dip_fast::cuda;

int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "failed: %s\n", what.c_str());
  ++failures;
}

// ---- borders

// outputs_reading against the definition: every output, with what it reads through each tap.
void test_outputs_reading() {
  for (const Padding padding : {Padding::zeros, Padding::reflect, Padding::replicate})
    for (int size = 1; size <= 7; ++size)
      for (int taps : {1, 3})
        for (int stride = 1; stride <= (taps == 3 ? 2 : 1); ++stride) {
          if (padding == Padding::reflect && size == 1) continue;
          const int outputs = ceil_div(size, stride), pad = taps / 2;
          for (int i = 0; i < size; ++i)
            for (int t = 0; t < taps; ++t) {
              const OutputPair by = outputs_reading(i, t, size, outputs, stride, pad, padding);
              for (int o = 0; o < outputs; ++o) {
                const int at = o * stride + t - pad;
                const int wanted = (pad == 0 ? at : padded_index(at, size, padding)) == i,
                          got = (by.first == o) + (by.second == o);
                expect(wanted == got, "outputs_reading " + std::to_string(i) + " of " + std::to_string(size) + " at " +
                                          std::to_string(o) + " through " + std::to_string(t));
              }
            }
        }
}

// tap_of at the first and the last depth of each tap; it does not fall in between.
void test_tap_of() {
  for (int channels = 1; channels < 65536; ++channels)
    for (int tap = 0; tap < 10; ++tap)
      if (tap_of(tap * channels, channels) != tap || tap_of((tap + 1) * channels - 1, channels) != tap)
        expect(false, "tap_of " + std::to_string(tap) + " of " + std::to_string(channels) + " channels");
}

// tap_grad_weight against the matrix of upsampling and padding; and it is zero outside the window that tap_grads reads.
void test_tap_grad_weight() {
  for (const bool bilinear : {false, true})
    for (const Padding padding : {Padding::zeros, Padding::reflect, Padding::replicate})
      for (int size = 1; size <= 7; ++size) {
        // The weight of pixel i in pixel r of the upsampled line; that pixel's centre is at (r + 1/2) / 2 - 1/2.
        const auto upsampled = [&](int r, int i) -> float {
          if (!bilinear) return r / 2 == i;
          const float centre = std::min(std::max((r + 0.5f) / 2 - 0.5f, 0.f), size - 1.f);
          return std::max(0.f, 1 - std::fabs(centre - i));
        };
        for (int i = 0; i < size; ++i)
          for (int t = 0; t < 3; ++t)
            for (int o = 0; o < 2 * size; ++o) {
              int r = o + t - 1;
              float wanted = 0;
              if (padding == Padding::reflect) r = r < 0 ? 1 : r == 2 * size ? 2 * size - 2 : r;
              if (padding == Padding::replicate) r = std::min(std::max(r, 0), 2 * size - 1);
              if (r >= 0 && r < 2 * size) wanted = upsampled(r, i);
              expect(tap_grad_weight(o, i, t, size, bilinear, padding) == wanted, "tap_grad_weight");
              const int reach = bilinear ? 2 : 1;
              expect(wanted == 0 || (o >= 2 * i - reach && o <= 2 * i + 1 + reach), "the window of tap_grads");
            }
      }
}

void test_borders() {
  for (int height = 1; height <= 5; ++height)
    for (int width = 1; width <= 5; ++width) {
      for (int row = 0; row < height; ++row)
        for (int column = 0; column < width; ++column) {
          const Border border = border_of(row, column, height, width);
          const bool inside = row > 0 && column > 0 && row < height - 1 && column < width - 1;
          expect(inside == (border.side < 0), "border_of");
          if (inside) continue;
          const Position position = border_position(border.side, border.at, height, width);
          expect(position.row == row && position.column == column && border.at < std::max(height, width),
                 "border_position");
        }
    }
}

void test_numbers() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float x = simt::from_half(uint16_t(bits));
    if (x == x) expect(simt::to_half(x) == bits, "half " + std::to_string(bits));
    const float y = simt::as_float(bits << 16);
    if (y == y) expect(simt::to_bfloat16(y) == bits, "bfloat16 " + std::to_string(bits));
  }
  expect(simt::to_half(1 + 1 / 2048.f) == 0x3c00 && simt::to_half(1 + 3 / 2048.f) == 0x3c02, "ties of half");
  expect(simt::to_half(65520) == 0x7c00 && simt::to_half(65519) == 0x7bff, "the largest half");
}

// ---- layers

class Heap : public Scratch {
 public:
  void* take(int64_t bytes) override {
    taken_.emplace_back(new (std::align_val_t(256)) char[bytes],
                        [](char* p) { operator delete[](p, std::align_val_t(256)); });
    std::memset(taken_.back().get(), 0xff, bytes);
    return taken_.back().get();
  }

 private:
  std::vector<std::shared_ptr<char>> taken_;
};

// The inputs and results of one layer, each in a buffer of its own.  The inputs are random numbers that both K and
// `Common` represent exactly, so that runs in both formats get the same.
template <class K, class Common>
class Case {
 public:
  using Stored = typename K::Stored;
  using Sum = typename K::Sum;
  explicit Case(unsigned seed) : random_(seed) {}

  double normal() { return std::normal_distribution<double>()(random_); }
  const Stored* image(int64_t count) {
    Stored* to = taken<Stored>(count);
    for (int64_t i = 0; i < count; ++i) {
      const auto x = narrowed<typename Common::Stored>(typename Common::Sum(normal()));
      to[i] = narrowed<Stored>(Sum(widened(x)));
    }
    return to;
  }
  const Sum* parameters(int64_t count) {
    Sum* to = taken<Sum>(count);
    for (int64_t i = 0; i < count; ++i) to[i] = Sum(typename Common::Sum(normal()));
    return to;
  }
  const double* statistics(int channels) {
    double* to = taken<double>(2 * channels);
    for (int c = 0; c < channels; ++c) to[c] = normal(), to[channels + c] = 0.5 + std::fabs(normal());
    return to;
  }
  NormedInput<K> normed_input(int H, int W, int C) {
    if (C == 0) return {};
    return {{image(int64_t(H) * W * C), H, W, C}, statistics(C), parameters(C), parameters(C)};
  }
  template <class T>
  T* result(int64_t count) {
    T* to = taken<T>(count);
    results_.push_back([=] {
      std::vector<double> values(count);
      for (int64_t i = 0; i < count; ++i) values[i] = widened(to[i]);
      return values;
    });
    return to;
  }
  NormedInputGrad<K> gradient(int H, int W, int C) {
    if (C == 0) return {};
    return {result<Stored>(int64_t(H) * W * C), result<double>(2 * C), result<Sum>(C), result<Sum>(C)};
  }
  std::vector<std::vector<double>> results() const {
    std::vector<std::vector<double>> all;
    for (const auto& values : results_) all.push_back(values());
    return all;
  }
  Context context() { return {nullptr, heap_}; }

 private:
  template <class T>
  T* taken(int64_t count) {
    return static_cast<T*>(heap_.take(count * int64_t(sizeof(T))));
  }
  std::mt19937 random_;
  Heap heap_;
  std::vector<std::function<std::vector<double>()>> results_;
};

struct Layer {
  int taps, stride;  // taps 0: norm_upsample_conv2d
  bool bilinear;
  Padding padding;
};

struct Size {
  int C, S, K, H, W;
};

template <class K, class Common = K>
std::vector<std::vector<double>> run(const Layer& layer, const Size& size) {
  using Sum = typename K::Sum;
  Case<K, Common> data(7);
  const Options options{0.2, 1e-5, layer.stride, layer.padding, layer.bilinear};
  const Context context = data.context();
  const int k = size.K;
  if (layer.taps > 0) {
    const int h = ceil_div(size.H, layer.stride), w = ceil_div(size.W, layer.stride),
              weights = k * size.C * layer.taps * layer.taps;
    const NormedInput<K> input = data.normed_input(size.H, size.W, size.C);
    const Sum *weight = data.parameters(weights), *bias = data.parameters(k);
    auto* output = data.template result<typename K::Stored>(int64_t(h) * w * k);
    double* statistics = data.template result<double>(2 * k);
    norm_conv2d<K>(input, weight, bias, k, layer.taps, options, output, statistics, context);
    norm_conv2d_backward<K>({data.image(int64_t(h) * w * k), output, statistics, data.statistics(k)}, input, weight, k,
                            layer.taps, options, data.gradient(size.H, size.W, size.C),
                            data.template result<Sum>(weights), data.template result<Sum>(k), context);
  } else {
    const int all = size.S + size.C;
    const int64_t outputs = int64_t(4) * size.H * size.W * k;
    const NormedInput<K> deep = data.normed_input(size.H, size.W, size.C),
                         skip = data.normed_input(2 * size.H, 2 * size.W, size.S);
    const MidNorm<K> norm{data.parameters(all), data.parameters(all)};
    const Sum *weight = data.parameters(9 * all * k), *bias = data.parameters(k);
    auto* output = data.template result<typename K::Stored>(outputs);
    double* statistics = data.template result<double>(2 * k);
    norm_upsample_conv2d<K>(deep, skip, norm, weight, bias, k, options, output, statistics, context);
    norm_upsample_conv2d_backward<K>({data.image(outputs), output, statistics, data.statistics(k)}, deep, skip, norm,
                                     weight, k, options, data.gradient(size.H, size.W, size.C),
                                     data.gradient(2 * size.H, 2 * size.W, size.S),
                                     {data.template result<Sum>(all), data.template result<Sum>(all)},
                                     data.template result<Sum>(9 * all * k), data.template result<Sum>(k), context);
  }
  return data.results();
}

// For each result the largest difference from the exact one, relative to its largest value.
std::vector<double> differences(const std::vector<std::vector<double>>& results,
                                const std::vector<std::vector<double>>& exact) {
  std::vector<double> all;
  for (size_t i = 0; i < results.size(); ++i) {
    double largest = 0, difference = 0;
    for (size_t j = 0; j < results[i].size(); ++j) {
      largest = std::max(largest, std::fabs(exact[i][j]));
      const double here = std::fabs(results[i][j] - exact[i][j]);
      if (!(here <= difference)) difference = here;  // a NaN counts
    }
    all.push_back(largest > 0 ? difference / largest : difference);
  }
  return all;
}

// limit: of the differences from float64, in units of rounding; 0: not compared here, the Python tests do.
// few: a small selection for sanitizers, which are slow at each switch of fibers.
template <class K>
void test_layers(const char* kind, double unit, double limit, bool few) {
  const Layer layers[] = {{1, 1, false, Padding::zeros},     {3, 1, false, Padding::reflect},
                          {3, 2, false, Padding::replicate}, {3, 2, false, Padding::reflect},
                          {0, 1, false, Padding::zeros},     {0, 1, false, Padding::reflect},
                          {0, 1, true, Padding::zeros},      {0, 1, true, Padding::reflect}};
  // Few pixels; channels that are no multiple of 4; several tiles of sites, of channels and of depth.
  const Size sizes[] = {{1, 0, 1, 2, 2}, {3, 1, 2, 7, 5}, {4, 4, 132, 9, 16}, {68, 0, 20, 3, 5}};
  for (const Layer& layer : layers)
    for (const Size& size : sizes) {
      simt::reversed = false;
      if (few) {
        if (size.K <= 20) run<K>(layer, size);
        continue;
      }
      const std::string name = std::string(kind) + ", taps " + std::to_string(layer.taps) + ", stride " +
                               std::to_string(layer.stride) + (layer.bilinear ? ", bilinear" : "") + ", C " +
                               std::to_string(size.C);
      const auto forwards = run<K>(layer, size);
      simt::reversed = true;
      expect(forwards == run<K>(layer, size), name + ": bits depend on the order of threads");
      if (limit == 0 || size.K <= 16) continue;  // with few channels the largest value may be near 0
      const std::vector<double> all = differences(forwards, run<KindFloat64, K>(layer, size));
      expect(all[0] < 3 * unit, name + ": the output is off by " + std::to_string(all[0] / unit) + " units");
      for (size_t i = 1; i < all.size(); ++i)
        expect(all[i] < limit * unit,
               name + ": result " + std::to_string(i) + " is off by " + std::to_string(all[i] / unit) + " units");
    }
}

}  // namespace

int main(int count, char**) {
  const bool few = count > 1;
  test_outputs_reading();
  test_tap_of();
  test_tap_grad_weight();
  test_borders();
  test_numbers();
  test_layers<KindFloat64>("float64", 0x1p-53, 0, few);
  test_layers<KindFloat32>("float32", 0x1p-24, 0, few);
  // Measured: outputs are off by at most 1.7 units, other results by 2.0, 16.9 and 22.7.  The largest are gradients of
  // norms, where terms cancel.
  test_layers<KindTF32>("TF32", 0x1p-11, 4, few);
  test_layers<KindBFloat16>("bfloat16", 0x1p-8, 32, few);
  test_layers<KindHalf>("float16", 0x1p-11, 32, few);
  std::printf("%s\n", failures == 0 ? "the emulated CUDA kernels are right" : "there are failures");
  return failures == 0 ? 0 : 1;
}
