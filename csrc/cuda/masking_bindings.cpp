// The operators masked_crop and masked_window on a GPU: checks, allocation, registration.
#include <torch/library.h>

#include <tuple>

#include "call.h"
#include "masking.h"
#include "masking_arguments.h"

namespace dip_fast::on_gpu {
namespace {

using at::Tensor;
using Pair = std::tuple<Tensor, Tensor>;

Pair masked(const Tensor& images, const View& v, bool drawn, int64_t margin, double keep, int64_t block, int64_t seed,
            const Tensor& step) {
  Call call(images);
  const Tensor y = images.contiguous();
  const int64_t C = y.size(1), height = v.transposed() ? v.width : v.height,
                width = v.transposed() ? v.height : v.width;
  const Tensor z = at::empty({1, 2 * C, height, width}, y.options()),
               target = at::empty({1, C, height, width}, y.options());
  cuda::mask({.y = y.const_data_ptr<float>(),
              .N = y.size(0),
              .C = C,
              .H = y.size(2),
              .W = y.size(3),
              .n = v.n,
              .top = v.top,
              .left = v.left,
              .height = v.height,
              .width = v.width,
              .orientation = v.orientation,
              .drawn = drawn,
              .margin = margin,
              .block = block,
              .kept_below = kept_below(keep),
              .seed = uint64_t(seed),
              .step = step.const_data_ptr<int64_t>(),
              .z = z.mutable_data_ptr<float>(),
              .target = target.mutable_data_ptr<float>()},
             call.context.stream);
  return {z, target};
}

Pair masked_window(const Tensor& y, int64_t n, int64_t top, int64_t left, int64_t height, int64_t width,
                   int64_t orientation, double keep, int64_t block, int64_t seed, const Tensor& step) {
  const View view{n, top, left, height, width, orientation};
  check_masking(y, keep, block, step);
  check_view(y, view);
  return masked(y, view, false, 0, keep, block, seed, step);
}

Pair masked_crop(const Tensor& y, int64_t side, int64_t margin, double keep, int64_t block, int64_t seed,
                 const Tensor& step) {
  check_masking(y, keep, block, step);
  check_crop(y, side, margin);
  return masked(y, {0, 0, 0, side, side, 0}, true, margin, keep, block, seed, step);
}

}  // namespace
}  // namespace dip_fast::on_gpu

TORCH_LIBRARY_IMPL(dip_fast, DIP_FAST_GPU_KEY, m) {
  m.impl("masked_crop", TORCH_FN(dip_fast::on_gpu::masked_crop));
  m.impl("masked_window", TORCH_FN(dip_fast::on_gpu::masked_window));
}
