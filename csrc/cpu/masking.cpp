// The operators masked_crop and masked_window on a CPU: where a view lies, tables of rows and columns, allocation,
// sharing among threads, registration.
#include "masking.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "dispatch.h"
#include "masking_arguments.h"
#include "threads.h"

namespace dip_fast::cpu {
namespace {

using at::Tensor;
using Lines = std::vector<int64_t>;
using Pair = std::tuple<Tensor, Tensor>;

struct Mask {
  double keep;
  int64_t block;
  uint64_t seed, step;

  // The words of block 2^63 + i of the generator, from which a step is placed.
  std::array<uint32_t, 4> placement(int64_t i) const {
    uint32_t words[WORD_GROUP];
    level().masking.draw_words(seed, step, int64_t(1) << 59, words);  // its blocks begin at 2^63
    return {words[i], words[16 + i], words[32 + i], words[48 + i]};
  }
};

int64_t drawn_of(uint32_t word, int64_t count) { return int64_t(word * uint64_t(count) >> 32); }

// The rows of a picture from `begin` on, mirrored at its edges without repeating these.
Lines mirrored(int64_t begin, int64_t count, int64_t length) {
  Lines lines(count);
  const int64_t period = std::max<int64_t>(1, 2 * length - 2);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = ((begin + i) % period + period) % period;
    lines[i] = std::min(at, period - at);
  }
  if (length == 1) std::fill(lines.begin(), lines.end(), 0);
  return lines;
}

Pair masked(const Tensor& images, const View& view, const Mask& mask) {
  const Tensor y = images.contiguous();
  const int64_t C = y.size(1), H = y.size(2), W = y.size(3), b = mask.block, height = view.height, width = view.width;
  const Lines rows = mirrored(view.top - b, height + 2 * b, H), columns = mirrored(view.left - b, width + 2 * b, W);
  Lines word_rows = rows, word_columns = columns;
  int64_t first = view.n * C * H * W, channel_words = H * W, row_words = W;
  if (b > 1) {
    const auto by = mask.placement(1);
    for (int64_t& row : word_rows) row = (row + drawn_of(by[0], b)) / b;
    for (int64_t& column : word_columns) column = (column + drawn_of(by[1], b)) / b;
    row_words = (W + b - 1) / b + 1;
    first = view.n * ((H + b - 1) / b + 1) * row_words;
    channel_words = 0;
  }
  const auto [least, most] = std::minmax_element(word_columns.begin(), word_columns.end());
  const int64_t begin = *least, words = *most - *least + 1;
  for (int64_t& column : word_columns) column -= begin;

  const bool turned = view.transposed();
  const int64_t out_height = turned ? width : height, out_width = turned ? height : width;
  const Tensor z = workspace::empty({1, 2 * C, out_height, out_width}, y.options()),
               target = workspace::empty({1, C, out_height, out_width}, y.options());
  float* const to = z.mutable_data_ptr<float>();
  // Rows and columns of the result that are stored in reverse.
  const bool up = view.orientation & 1, leftward = view.orientation & 2;
  const int64_t by_row = up ? -out_width : out_width, by_column = leftward ? -1 : 1;
  const MaskedView v{.y = y.const_data_ptr<float>() + view.n * C * H * W,
                     .H = H,
                     .W = W,
                     .height = height,
                     .width = width,
                     .block = b,
                     .row = rows.data(),
                     .column = columns.data(),
                     .word_row = word_rows.data(),
                     .word_column = word_columns.data(),
                     .straight = columns.back() - columns.front() == width + 2 * b - 1,
                     .seed = mask.seed,
                     .step = mask.step,
                     .kept_below = kept_below(mask.keep),
                     .first_word = first + begin,
                     .channel_words = channel_words,
                     .row_words = row_words,
                     .words = words,
                     .filled = to,
                     .mask = to + C * height * width,
                     .target = target.mutable_data_ptr<float>(),
                     .origin = (up ? (out_height - 1) * out_width : 0) + (leftward ? out_width - 1 : 0),
                     .down = turned ? by_column : by_row,
                     .across = turned ? by_row : by_column};
  const int64_t bands = (height + v.band() - 1) / v.band();
  const MaskingKernels& kernels = level().masking;
  for_each_item<float>(C * bands, v.scratch(), [&](int64_t item, float* scratch) {
    const int64_t top = item % bands * v.band();
    kernels.mask_band(v, item / bands, top, std::min(height, top + v.band()), scratch);
  });
  return {z, target};
}

Pair masked_window(const Tensor& y, int64_t n, int64_t top, int64_t left, int64_t height, int64_t width,
                   int64_t orientation, double keep, int64_t block, int64_t seed, const Tensor& step) {
  const View view{n, top, left, height, width, orientation};
  check_masking(y, keep, block, step);
  check_view(y, view);
  return masked(y, view, {keep, block, uint64_t(seed), uint64_t(*step.const_data_ptr<int64_t>())});
}

Pair masked_crop(const Tensor& y, int64_t side, int64_t margin, double keep, int64_t block, int64_t seed,
                 const Tensor& step) {
  check_masking(y, keep, block, step);
  check_crop(y, side, margin);
  const Mask mask{keep, block, uint64_t(seed), uint64_t(*step.const_data_ptr<int64_t>())};
  const auto drawn = mask.placement(0);
  const auto begin = [&](int i, int64_t length) { return drawn_of(drawn[i], length + 2 * margin - side + 1) - margin; };
  return masked(
      y, {drawn_of(drawn[0], y.size(0)), begin(1, y.size(2)), begin(2, y.size(3)), side, side, drawn[3] >> 29}, mask);
}

}  // namespace
}  // namespace dip_fast::cpu

TORCH_LIBRARY_IMPL(dip_fast, CPU, m) {
  m.impl("masked_crop", TORCH_FN(dip_fast::cpu::masked_crop));
  m.impl("masked_window", TORCH_FN(dip_fast::cpu::masked_window));
}
