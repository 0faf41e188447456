// Tests of the masked views on an emulated GPU, without PyTorch: bit for bit against the definition, sample by sample.
// Each buffer has exactly its size, so a build with sanitizers checks every access.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "cuda/masking.h"
#include "cuda/philox.cuh"
#include "simt.h"

namespace {

using namespace dip_fast::cuda;

int failures = 0;

// Walks to a place, turning back at both ends of a side.
int64_t walk(int64_t place, int64_t length) {
  int64_t at = 0, by = 1;
  for (int64_t i = 0; length > 1 && i < std::abs(place); ++i) {
    if (at + by < 0 || at + by >= length) by = -by;
    at += by;
  }
  return at;
}

// The definition: which samples are kept, and what stands in the place of one that is not.
struct Definition {
  const MaskedView& v;

  uint32_t word(uint64_t block, int j) const {
    uint32_t words[4];
    draw_block(block, uint64_t(*v.step), v.seed, words);
    return words[j];
  }
  int64_t drawn(int block, int j, int64_t count) const {
    return int64_t(word((uint64_t(1) << 63) + block, j) * uint64_t(count) >> 32);
  }
  bool kept(int64_t c, int64_t row, int64_t column) const {
    int64_t index = ((v.n * v.C + c) * v.H + row) * v.W + column;
    if (v.block > 1) {
      const int64_t b = v.block, R = (v.H + b - 1) / b + 1, S = (v.W + b - 1) / b + 1;
      index = (v.n * R + (row + drawn(1, 0, b)) / b) * S + (column + drawn(1, 1, b)) / b;
    }
    return word(index / 64 * 16 + index % 16, int(index / 16 % 4)) < v.kept_below;
  }
  float sample(int64_t c, int64_t row, int64_t column) const {
    return v.y[((v.n * v.C + c) * v.H + row) * v.W + column];
  }
  float filled(int64_t c, int64_t row, int64_t column) const {
    if (kept(c, row, column)) return sample(c, row, column);
    float sum = 0, count = 0;
    const auto line = [&](int64_t at, float& held, float& number) {
      const int64_t i = walk(at, v.H);
      for (int64_t d = 0; d <= v.block; ++d) {
        const int64_t left = walk(column - d, v.W), right = walk(column + d, v.W);
        const float before = kept(c, i, left) ? sample(c, i, left) : 0,
                    after = d > 0 && kept(c, i, right) ? sample(c, i, right) : 0;
        held += before + after;
        number += kept(c, i, left) + (d > 0 && kept(c, i, right));
      }
    };
    for (int64_t d = 0; d <= v.block; ++d) {
      float held[2] = {}, number[2] = {};
      line(row - d, held[0], number[0]);
      if (d > 0) line(row + d, held[1], number[1]);
      sum += held[0] + held[1], count += number[0] + number[1];
    }
    return count > 0 ? sum / count : 0.5f;
  }
};

void test_masked_view(MaskedView v, const std::string& name) {
  const int64_t size = v.C * v.height * v.width;
  std::vector<float> y(v.N * v.C * v.H * v.W), z(2 * size, NAN), target(size, NAN);
  std::mt19937 random(1);
  for (float& value : y) value = float(random()) * 0x1p-32f;
  const int64_t step = (int64_t(1) << 40) + 3;
  v.y = y.data(), v.z = z.data(), v.target = target.data(), v.step = &step;
  mask(v, nullptr);
  const Definition definition{v};
  if (v.drawn) {
    v.n = definition.drawn(0, 0, v.N);
    v.top = definition.drawn(0, 1, v.H + 2 * v.margin - v.height + 1) - v.margin;
    v.left = definition.drawn(0, 2, v.W + 2 * v.margin - v.width + 1) - v.margin;
    v.orientation = definition.drawn(0, 3, 8);
  }
  const bool turned = v.orientation & 4;
  const int64_t height = turned ? v.width : v.height, width = turned ? v.height : v.width;
  bool right = true;
  for (int64_t c = 0; c < v.C; ++c)
    for (int64_t i = 0; i < v.height; ++i)
      for (int64_t j = 0; j < v.width; ++j) {
        int64_t a = turned ? j : i, b = turned ? i : j;
        if (v.orientation & 1) a = height - 1 - a;
        if (v.orientation & 2) b = width - 1 - b;
        const int64_t at = (c * height + a) * width + b, row = walk(v.top + i, v.H), column = walk(v.left + j, v.W);
        right = right && z[at] == definition.filled(c, row, column) &&
                z[size + at] == float(definition.kept(c, row, column)) &&
                target[at] == definition.sample(c, row, column);
      }
  if (right) return;
  std::fprintf(stderr, "failed: %s\n", name.c_str());
  ++failures;
}

void test_masked_views() {
  const MaskedView views[] = {{.N = 1, .C = 1, .H = 1, .W = 1, .top = -2, .left = 3, .height = 3, .width = 2},
                              {.N = 2, .C = 3, .H = 9, .W = 14, .n = 1, .top = 2, .left = 3, .height = 5, .width = 7},
                              {.N = 2, .C = 2, .H = 5, .W = 2, .n = 1, .top = -9, .left = -4, .height = 20, .width = 9},
                              {.N = 3, .C = 2, .H = 9, .W = 14, .height = 8, .width = 8, .drawn = true, .margin = 5}};
  for (MaskedView v : views)
    for (v.block = 1; v.block <= 3; ++v.block)
      for (v.orientation = 0; v.orientation < (v.drawn ? 1 : 8); ++v.orientation)
        for (const double keep : {0., 0.3, 0.8, 1.}) {
          v.kept_below = uint64_t(std::ceil(keep * 0x1p32)), v.seed = 7 + uint64_t(v.orientation);
          test_masked_view(v, "masked view of " + std::to_string(v.H) + "x" + std::to_string(v.W) + ", block " +
                                  std::to_string(v.block) + ", orientation " + std::to_string(v.orientation));
        }
}

}  // namespace

int main() {
  test_masked_views();
  std::printf("%s\n", failures == 0 ? "the emulated masked views are right" : "there are failures");
  return failures == 0 ? 0 : 1;
}
