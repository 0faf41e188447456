// Tests of the transforms, the micro-kernel and the epilogue, each alone, against the formulas of csrc/cpu in float64.
// Compiled once for each instruction set.  Exit code 0: passed, 1: failed, 77: the CPU lacks the instructions.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "cpu/kernels.h"

namespace dip_fast::cpu {
namespace {

#include "cpu/passes.h"

int failures = 0;

void check(bool good, const char* what, int64_t a, int64_t b, int64_t c) {
  if (good) return;
  if (++failures <= 20) std::fprintf(stderr, "FAILED %s at %ld, %ld, %ld\n", what, long(a), long(b), long(c));
}

std::mt19937 generator(0);

template <class T>
std::vector<T> noise(int64_t count) {
  std::uniform_real_distribution<double> uniform(-1, 1);
  std::vector<T> values(count);
  for (T& value : values) value = static_cast<T>(uniform(generator));
  return values;
}

template <class T>
std::vector<T> nans(int64_t count) {
  return std::vector<T>(count, std::numeric_limits<T>::quiet_NaN());
}

template <class T>
bool near(T got, double expected, double scale = 8) {
  return std::abs(double(got) - expected) <= 64 * scale * std::numeric_limits<T>::epsilon();
}

// Full and ragged tiles overwrite all of their outputs, which begin as NaN, and write nothing outside of them.
template <class T>
void test_micro_kernel() {
  using Tile = TileOf<T>;
  constexpr int NR = Tile::NR;
  for (int rows = 1; rows <= Tile::MR; ++rows)
    for (int64_t depth : {1, 2, 7, 64})
      for (bool accumulate : {false, true}) {
        const int64_t lda = depth + 3, ldo = NR + 5;
        const auto a = noise<T>(rows * lda), b = noise<T>(depth * NR);
        auto out = accumulate ? noise<T>((rows + 1) * ldo) : nans<T>((rows + 1) * ldo);
        for (int64_t i = 0; i <= rows; ++i)
          for (int64_t j = i < rows ? NR : 0; j < ldo; ++j) out[i * ldo + j] = 7;
        const auto before = out;
        Tile::upto(rows, depth, a.data(), lda, b.data(), out.data(), ldo, accumulate);
        for (int64_t i = 0; i <= rows; ++i)
          for (int64_t j = 0; j < ldo; ++j) {
            double expected = accumulate || i == rows || j >= NR ? double(before[i * ldo + j]) : 0;
            for (int64_t r = 0; i < rows && j < NR && r < depth; ++r)
              expected += double(a[i * lda + r]) * double(b[r * NR + j]);
            check(near(out[i * ldo + j], expected), "micro-kernel", rows, i, j);
          }
      }
}

template <class T>
void test_nine_products() {
  using Tile = TileOf<T>;
  constexpr int64_t NR = Tile::NR, rows = Tile::MR + 3, depth = CHAIN + 5, panels = 2, width = panels * NR;
  const auto weight = noise<T>(9 * rows * depth), panel = noise<T>(9 * field_slot(panels * depth * NR));
  for (bool sum : {false, true})
    for (int mask : {7, 5, 3})
      for (int64_t tile = 0; tile < Tile::tiles(rows); ++tile) {
        const int64_t row = Tile::tile_begin(rows, tile), count = Tile::tile_begin(rows, tile + 1) - row;
        auto out = nans<T>(9 * count * width);
        nine_products<Tile>(weight.data(), rows, depth, panel.data(), panels, tile, out.data(), sum ? 0 : count * width,
                            sum ? 7 : mask);
        for (int64_t i = 0; i < count; ++i)
          for (int64_t site = 0; site < width; ++site) {
            double total = 0;
            for (int slot = 0; slot < 9; ++slot) {
              double product = 0;
              for (int64_t d = 0; d < depth; ++d)
                product +=
                    double(weight[(slot * rows + row + i) * depth + d]) *
                    double(panel[slot * field_slot(panels * depth * NR) + (site / NR * depth + d) * NR + site % NR]);
              total += product;
              if (!sum && (mask >> slot / 3 & 1) != 0)
                check(near(out[(slot * count + i) * width + site], product), "nine products", slot, i, site);
            }
            if (sum) check(near(out[i * width + site], total, 24), "sum of nine products", tile, i, site);
          }
      }
}

template <class T>
void test_shuffles() {
  using Tile = TileOf<T>;
  constexpr int64_t L = Tile::LANES, ldi = L + 3, ldo = L + 1;
  const auto in = noise<T>(L * ldi);
  std::vector<T> out(L * ldo);
  for (int64_t rows : {int64_t(0), int64_t(1), L - 1, L}) {
    Tile::transpose(in.data(), ldi, rows, out.data(), ldo);
    for (int64_t i = 0; i < L; ++i)
      for (int64_t j = 0; j < L; ++j)
        check(out[j * ldo + i] == (i < rows ? in[i * ldi + j] : 0), "transpose", i, j, rows);
  }
  typename Tile::Vector pair[2];
  Tile::interleave(Tile::load(in.data()), Tile::load(in.data() + L), pair);
  for (int64_t i = 0; i < 2 * L; ++i) check(pair[i / L][i % L] == in[i / 2 + i % 2 * L], "interleave", i, 0, 0);
  for (int64_t C : {int64_t(1), L, 2 * L + 1})
    for (int64_t count : {int64_t(1), L, 2 * L + 3}) {
      const int64_t row = rounded_up(C, Tile::NR);
      const auto line = noise<T>(C * (count + 2));
      auto transposed = nans<T>(count * row);
      transpose_line<Tile>(line.data(), count + 2, C, count, row, transposed.data());
      for (int64_t t = 0; t < count; ++t)
        for (int64_t c = 0; c < row; ++c)
          check(transposed[t * row + c] == (c < C ? line[c * (count + 2) + t] : 0), "transpose_line", C, t, c);
    }
}

const int64_t SIZES[][2] = {{1, 1}, {1, 5}, {4, 1}, {5, 7}, {3, 80}, {2, 130}, {6, 50}};
const Padding PADDINGS[] = {Padding::zeros, Padding::reflect, Padding::replicate};

// Functional a of transform.h along one axis: the coefficients of x[i-1], x[i], x[i+1].
const double FIELD[3][3] = {{0, 1, 0}, {-1, 1, 0}, {0, -1, 1}};

template <class T>
void test_fields() {
  using Tile = TileOf<T>;
  constexpr int64_t NR = Tile::NR, C = 3;
  for (const auto& size : SIZES)
    for (Padding padding : PADDINGS) {
      const int64_t H = size[0], W = size[1];
      const Shape s{1, C, 1, H, W, false, padding};
      const auto image = noise<T>(C * H * W);
      const auto at = [&](int64_t c, int64_t i, int64_t j) -> double {
        if (padding == Padding::zeros && (i < 0 || j < 0 || i >= H || j >= W)) return 0;
        return image[(c * H + at_least(0, at_most(H - 1, i))) * W + at_least(0, at_most(W - 1, j))];
      };
      const Region region{0, 0, H, W};
      for (int64_t first = 0; first < H * W; first += BLOCK - 1) {
        const int64_t last = at_most(H * W, first + BLOCK - 1), count = last - first, panels = quotient_up(count, NR);
        const int64_t slot = field_slot(panels * C * NR), transposed_slot = field_slot(NR * count);
        auto fields = nans<T>(9 * slot), transposed = nans<T>(9 * transposed_slot),
             lines = nans<T>(3 * NR * (BLOCK + 2));
        input_fields<NR>(image.data(), s, region, first, last, fields.data());
        transposed_fields<Tile>(image.data(), s, region, first, last, lines.data(), transposed.data());
        for (int a = 0; a < 9; ++a)
          for (int64_t t = 0; t < panels * NR; ++t)
            for (int64_t c = 0; c < C; ++c) {
              double expected = 0;
              const int64_t i = (first + t) / W, j = (first + t) % W;
              for (int p = 0; p < 9 && t < count; ++p)
                expected += FIELD[a / 3][p / 3] * FIELD[a % 3][p % 3] * at(c, i + p / 3 - 1, j + p % 3 - 1);
              const T got = fields[a * slot + (t / NR * C + c) * NR + t % NR];
              check(near(got, expected), "input_fields", a, first + t, c);
              if (t < count)
                check(transposed[a * transposed_slot + t * NR + c] == got, "transposed_fields", a, first + t, c);
            }
      }
    }
}

// The image blurred by [1 2 1]/4 along both axes, with replicated borders.
std::vector<double> blurred(const std::vector<double>& in, int64_t H, int64_t W) {
  std::vector<double> out(H * W);
  for (int64_t i = 0; i < H; ++i)
    for (int64_t j = 0; j < W; ++j) {
      double sum = 0;
      for (int p = -1; p <= 1; ++p)
        for (int q = -1; q <= 1; ++q)
          sum += (2 - std::abs(p)) * (2 - std::abs(q)) *
                 in[at_least(0, at_most(H - 1, i + p)) * W + at_least(0, at_most(W - 1, j + q))];
      out[i * W + j] = sum / 16;
    }
  return out;
}

template <class T>
void test_gradient_fields() {
  using Tile = TileOf<T>;
  constexpr int64_t NR = Tile::NR;
  for (const auto& size : SIZES)
    for (Padding padding : PADDINGS)
      for (bool bilinear : {false, true}) {
        const int64_t H = size[0], W = size[1];
        const Shape s{1, 1, 1, H, W, bilinear, padding};
        const bool zeros = padding == Padding::zeros && !bilinear;
        const auto grad = noise<T>(4 * H * W);
        std::vector<double> g(grad.begin(), grad.end());
        if (bilinear) g = blurred(g, 2 * H, 2 * W);
        // The coefficients of functional a for the four rows or columns about site i, g[2i-1] .. g[2i+2].
        const auto functional = [&](int a, int64_t i, int64_t length, double* taps) {
          const double even = zeros || i > 0 ? 1 : 0, odd = zeros || i + 1 < length ? 1 : 0;
          const double all[3][4] = {{0, 1, 1, 0}, {0, even, 0, -1}, {1, 0, -odd, 0}};
          for (int p = 0; p < 4; ++p) taps[p] = all[a][p];
        };
        const double phases[3][4] = {{0, 1, 1, 0}, {0, 1, 0, 0}, {0, 0, 1, 0}};
        const int64_t count = at_most(H * W, BLOCK), panels = quotient_up(count, NR), slot = field_slot(panels * NR);
        auto fields = nans<T>(9 * slot), products = nans<T>(9 * field_slot(count));
        gradient_fields<NR>(grad.data(), s, {0, 0, H, W}, 0, count, fields.data());
        product_gradients(grad.data(), s, {0, 0, H, W}, 0, count, products.data());
        for (int a = 0; a < 9; ++a)
          for (int64_t t = 0; t < count; ++t) {
            double along_h[4], along_w[4], field = 0, product = 0;
            functional(a / 3, t / W, H, along_h);
            functional(a % 3, t % W, W, along_w);
            for (int p = 0; p < 16; ++p) {
              const int64_t row = 2 * (t / W) - 1 + p / 4, col = 2 * (t % W) - 1 + p % 4;
              if (row < 0 || col < 0 || row >= 2 * H || col >= 2 * W) continue;
              field += along_h[p / 4] * along_w[p % 4] * g[row * 2 * W + col];
              product += phases[a / 3][p / 4] * phases[a % 3][p % 4] * g[row * 2 * W + col];
            }
            check(near(fields[a * slot + t], field), "gradient_fields", a, t, W);
            check(near(products[a * field_slot(count) + t], product), "product_gradients", a, t, W);
          }
      }
}

template <class T>
void test_weights() {
  const int64_t K = 5, C = MAX_BLOCK + 3;
  const auto weight = noise<T>(K * C * 9);
  const double taps[3][3] = {{1, 1, 1}, {-1, 0, 0}, {0, 0, 1}};  // of w0 w1 w2, by functional
  for (bool transposed : {false, true}) {
    auto packed = nans<T>(9 * K * C);
    pack_weight(weight.data(), K, C, transposed, 0, 2, packed.data());
    pack_weight(weight.data(), K, C, transposed, 2, K, packed.data());
    for (int a = 0; a < 9; ++a)
      for (int64_t k = 0; k < K; ++k)
        for (int64_t c = 0; c < C; ++c) {
          double expected = 0;
          for (int t = 0; t < 9; ++t)
            expected += taps[a / 3][t / 3] * taps[a % 3][t % 3] * double(weight[(k * C + c) * 9 + t]);
          check(near(packed[a * K * C + (transposed ? c * K + k : k * C + c)], expected, 1), "pack_weight", a, k, c);
        }
  }
  const auto sums = noise<T>(9 * K * C);
  auto gradient = nans<T>(K * C * 9);
  unpack_weight_gradient(sums.data(), K, C, C, 0, K, gradient.data());
  for (int64_t k = 0; k < K; ++k)
    for (int64_t c = 0; c < C; ++c)
      for (int t = 0; t < 9; ++t) {
        double expected = 0;
        for (int a = 0; a < 9; ++a)
          expected += taps[a / 3][t / 3] * taps[a % 3][t % 3] * double(sums[(a * K + k) * C + c]);
        check(near(gradient[(k * C + c) * 9 + t], expected), "unpack_weight_gradient", k, c, t);
      }
}

// The outputs of nearest from nine products, and their blur, of a whole image or of bands and strips, in stretches.
template <class T>
void test_epilogues() {
  using Tile = TileOf<T>;
  for (const auto& size : SIZES)
    for (bool stream : {false, true}) {
      const int64_t H = size[0], W = size[1];
      const int64_t width = 2 * W, plane = 4 * H * W, slot = H * W;
      const auto products = noise<T>(9 * slot);
      std::vector<double> nearest(plane);
      for (int64_t r = 0; r < 2 * H; ++r)
        for (int64_t c = 0; c < width; ++c) {
          const T* m = products.data() + r / 2 * W + c / 2;
          const int64_t p = 3 * (1 + r % 2), q = 1 + c % 2;
          nearest[r * width + c] = double(m[0]) + m[p * slot] + m[q * slot] + m[(p + q) * slot] + 0.5;
        }
      alignas(64) static T output[4 * 2 * 130 + 4 * 3 * 80];
      const auto clear = [&] { std::fill_n(output, plane, std::numeric_limits<T>::quiet_NaN()); };
      clear();
      for (int64_t i = 0; i < H; ++i)
        for (int64_t j = 0; j < W; j += 50)
          combine_products<Tile>(products.data() + i * W + j, slot, at_most(50, W - j), T(0.5),
                                 output + 2 * i * width + 2 * j, output + (2 * i + 1) * width + 2 * j, stream);
      Tile::fence();
      for (int64_t t = 0; t < plane; ++t) check(near(output[t], nearest[t]), "combine_products", H, W, t);

      const auto expected = blurred(nearest, 2 * H, width);
      for (int64_t rows : {H, int64_t(2)})
        for (int64_t cols : {W, int64_t(33)}) {
          clear();
          for (int64_t top = 0; top < H; top += rows)
            for (int64_t left = 0; left < W; left += cols) {
              const int64_t bottom = at_most(H, top + rows), right = at_most(W, left + cols);
              const int64_t from = at_least(0, left - 1), until = at_most(W, right + 1), line = 2 * (until - from) + 16;
              auto kept = nans<T>(Blur<Tile>::size(1, line));
              const Blur<Tile> blur{H,     top,  bottom, from,        until - from,          left,
                                    right, line, stream, kept.data(), kept.data() + 2 * line};
              for (int64_t i = at_least(0, top - 1); i < at_most(H, bottom + 1); ++i) {
                // The products that each_product leaves out, of the rows beside the band, must not matter.
                auto known = products;
                for (int a = 0; a < 3 && (i < top || i == bottom); ++a)
                  std::fill_n(known.data() + ((i < top ? 3 : 6) + a) * slot, slot, std::numeric_limits<T>::quiet_NaN());
                for (int64_t j = from; j < until; j += 20)
                  blur(0, i, j, at_most(20, until - j), known.data() + i * W + j, slot, T(0.5), output + 2 * i * width,
                       width);
              }
            }
          Tile::fence();
          for (int64_t t = 0; t < plane; ++t) check(near(output[t], expected[t]), "Blur", rows, cols, t);
        }
    }
}

// What surrounds the bilinearly upsampled image, less its nearest pixel, along each side.
template <class T>
void test_ring() {
  constexpr int64_t NR = TileOf<T>::NR;
  for (const auto& size : SIZES)
    for (Padding padding : {Padding::zeros, Padding::reflect}) {
      const int64_t H = size[0], W = size[1];
      const Shape s{1, 1, 1, H, W, true, padding};
      const auto image = noise<T>(H * W);
      std::vector<double> up(4 * H * W);
      for (int64_t r = 0; r < 2 * H; ++r)
        for (int64_t c = 0; c < 2 * W; ++c) up[r * 2 * W + c] = image[r / 2 * W + c / 2];
      up = blurred(up, 2 * H, 2 * W);
      const auto clamped = [&](int64_t r, int64_t c) {
        return up[at_least(0, at_most(2 * H - 1, r)) * 2 * W + at_least(0, at_most(2 * W - 1, c))];
      };
      const auto mirrored = [](int64_t t, int64_t length) { return t < 0 ? -t : t >= length ? 2 * length - 2 - t : t; };
      const auto surround = [&](int64_t r, int64_t c) {
        return padding == Padding::zeros ? 0 : clamped(mirrored(r, 2 * H), mirrored(c, 2 * W));
      };
      for (int index = 0; index < 4; ++index) {
        const Side side = side_of(s, index);
        for (int64_t first = 0; first < 2 * side.size; first += NR) {
          T e[NR + 2];
          ring_line<NR>(image.data(), s, side, first, e);
          for (int64_t t = 0; t < NR + 2; ++t) {
            const int64_t position = first - 1 + t, beyond = side.end ? 2 * (side.vertical ? W : H) : -1;
            const int64_t r = side.vertical ? position : beyond, c = side.vertical ? beyond : position;
            const bool inside = position >= 0 && position < 2 * side.size;
            const bool corner = !side.vertical && (position == -1 || position == 2 * side.size);
            const double expected = inside || corner ? (side.end ? 1 : -1) * (surround(r, c) - clamped(r, c)) : 0;
            check(near(e[t], expected), "ring_line", index, position, side.size);
          }
        }
      }
    }
}

// A value is stored as the nearest one of 16 bits, of two as the one whose last bit is 0, by vectors as one by one.
void test_16_bits() {
  using Tile = TileOf<float>;
  const std::pair<float, int> known[] = {{1.0f, 0x3f80},       {-0.0f, 0x8000},       {0x1.00fep0f, 0x3f80},
                                         {0x1.01p0f, 0x3f80},  {0x1.0102p0f, 0x3f81}, {0x1.03p0f, 0x3f82},
                                         {-0x1.03p0f, 0xbf82}, {0x1.fep127f, 0x7f7f}, {0x1.ffp127f, 0x7f80},
                                         {INFINITY, 0x7f80},   {0x1p-133f, 0x0001}};
  for (const auto& [value, bits] : known) check(int(stored<BFloat16>(value)) == bits, "stored", bits, 0, 0);
  for (const uint32_t bits : {0x7fffffffu, 0xffffffffu, 0x7f800001u}) {
    const float nan = value_of(stored<BFloat16>(__builtin_bit_cast(float, bits)));
    check(nan != nan, "stored NaN", bits, 0, 0);
  }
  for (int64_t round = 0; round < 4096; ++round) {
    float values[Tile::LANES], back[Tile::LANES];
    BFloat16 halves[Tile::LANES + 1];                                // that do not begin at a vector's alignment
    const uint32_t kept = round % 2 == 0 ? 0xffff8000 : 0xffffffff;  // the former leaves ties
    for (float& value : values) value = __builtin_bit_cast(float, uint32_t(generator()) & kept);
    Tile::store(halves + 1, Tile::load(values));
    Tile::store(back, Tile::load(halves + 1));
    for (int64_t t = 0; t < Tile::LANES; ++t) {
      check(halves[t + 1] == stored<BFloat16>(values[t]), "stored by vectors", round, t, 0);
      check(back[t] == value_of(halves[t + 1]) || back[t] != back[t], "loaded by vectors", round, t, 0);
    }
  }
}

template <class T>
void test_all() {
  test_micro_kernel<T>();
  test_nine_products<T>();
  test_shuffles<T>();
  test_fields<T>();
  test_gradient_fields<T>();
  test_weights<T>();
  test_epilogues<T>();
  test_ring<T>();
}

}  // namespace
}  // namespace dip_fast::cpu

int main() {
  using namespace dip_fast::cpu;
#if defined(__AVX512F__)
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512vl")) return 77;
#elif defined(__AVX2__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 77;
#endif
  test_all<float>();
  test_all<double>();
  test_16_bits();
  std::printf(failures == 0 ? "passed\n" : "%d failed\n", failures);
  return failures == 0 ? 0 : 1;
}
