// Masked views: the same bits as csrc/cpu/masking_kernel.h computes.  A thread computes one sample; if it is dropped,
// it draws anew which of its neighbours are kept.
#include "masking.h"
#include "philox.cuh"
#include "product.cuh"

namespace dip_fast::cuda {
namespace {

constexpr uint64_t PLACEMENT = uint64_t(1) << 63;  // the first block of the words from which a step is placed

DIP_FAST_D int64_t drawn_of(uint32_t word, int64_t count) { return int64_t(word * uint64_t(count) >> 32); }

// The sample of a side that stands at a place inside or outside of it: mirrored, the samples at the edges not repeated.
DIP_FAST_D int64_t mirrored(int64_t at, int64_t length) {
  if (at >= 0 && at < length) return at;
  if (length == 1) return 0;
  const int64_t period = 2 * length - 2;
  at %= period;
  if (at < 0) at += period;
  return at < length ? at : period - at;
}

// A word that was drawn last: neighbours in the same square have the same.
struct Drawn {
  int64_t index = -1;
  bool kept = false;
};

// Which samples of one channel of a picture are kept.
struct Mask {
  uint64_t seed, step, below;
  int64_t block, first, row_words, by_row = 0, by_column = 0;

  DIP_FAST_D Mask(const MaskedView& v, int64_t n, int64_t c)
      : seed(v.seed), step(uint64_t(*v.step)), below(v.kept_below), block(v.block) {
    if (block == 1) {
      row_words = v.W;
      first = (n * v.C + c) * v.H * v.W;
      return;
    }
    row_words = (v.W + block - 1) / block + 1;
    first = n * ((v.H + block - 1) / block + 1) * row_words;
    uint32_t words[4];
    draw_block(PLACEMENT + 1, step, seed, words);
    by_row = drawn_of(words[0], block), by_column = drawn_of(words[1], block);
  }

  DIP_FAST_D bool kept(int64_t row, int64_t column, Drawn& last) const {
    if (block > 1) row = (row + by_row) / block, column = (column + by_column) / block;
    const int64_t index = first + row * row_words + column;
    if (index == last.index) return last.kept;
    uint32_t words[4];
    draw_block(uint64_t(index / GROUP * BLOCKS + index % BLOCKS), step, seed, words);
    const int j = int(index / BLOCKS % 4);
    const uint32_t word = j < 2 ? (j == 0 ? words[0] : words[1]) : (j == 2 ? words[2] : words[3]);
    last = {index, word < below};
    return last.kept;
  }
};

struct Sum {
  float held = 0, count = 0;
};
DIP_FAST_D Sum operator+(const Sum& a, const Sum& b) { return {a.held + b.held, a.count + b.count}; }

// The sum over the kept samples of a row, up to a block away from a column, from the middle outwards.
DIP_FAST_D Sum sum_along(const MaskedView& v, const Mask& mask, const float* y, int64_t row, int64_t column) {
  Drawn before, after;  // in either direction the same word comes several times
  const auto at = [&](int64_t place, Drawn& last) {
    const int64_t k = mirrored(place, v.W);
    return mask.kept(row, k, last) ? Sum{y[row * v.W + k], 1} : Sum{};
  };
  Sum sum = at(column, before);
  after = before;
  for (int64_t distance = 1; distance <= v.block; ++distance)
    sum = sum + (at(column - distance, before) + at(column + distance, after));
  return sum;
}

DIP_FAST_D float mean_around(const MaskedView& v, const Mask& mask, const float* y, int64_t row, int64_t column) {
  Sum sum = sum_along(v, mask, y, row, column);
  for (int64_t distance = 1; distance <= v.block; ++distance)
    sum = sum + (sum_along(v, mask, y, mirrored(row - distance, v.H), column) +
                 sum_along(v, mask, y, mirrored(row + distance, v.H), column));
  return sum.count > 0 ? sum.held / sum.count : 0.5f;
}

__global__ void mask_kernel(MaskedView v) {
  const int64_t size = v.C * v.height * v.width, at = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (at >= size) return;
  if (v.drawn) {
    uint32_t words[4];
    draw_block(PLACEMENT, uint64_t(*v.step), v.seed, words);
    v.n = drawn_of(words[0], v.N);
    v.top = drawn_of(words[1], v.H + 2 * v.margin - v.height + 1) - v.margin;
    v.left = drawn_of(words[2], v.W + 2 * v.margin - v.width + 1) - v.margin;
    v.orientation = words[3] >> 29;
  }
  const bool turned = v.orientation & 4;
  const int64_t out_height = turned ? v.width : v.height, out_width = turned ? v.height : v.width,
                c = at / (v.height * v.width);
  int64_t i = at / out_width % out_height, j = at % out_width;
  if (v.orientation & 1) i = out_height - 1 - i;
  if (v.orientation & 2) j = out_width - 1 - j;
  const int64_t row = mirrored(v.top + (turned ? j : i), v.H), column = mirrored(v.left + (turned ? i : j), v.W);
  const float* const y = v.y + (v.n * v.C + c) * v.H * v.W;
  const float value = y[row * v.W + column];
  const Mask mask(v, v.n, c);
  Drawn none;
  const bool kept = mask.kept(row, column, none);
  v.z[at] = kept ? value : mean_around(v, mask, y, row, column);
  v.z[size + at] = kept ? 1.0f : 0.0f;
  v.target[at] = value;
}

}  // namespace

void mask(const MaskedView& view, Stream stream) {
  const int64_t size = view.C * view.height * view.width;
  launch<false>(mask_kernel, dim3(unsigned((size + THREADS - 1) / THREADS)), THREADS, 0, stream, view);
}

}  // namespace dip_fast::cuda
