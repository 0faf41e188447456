// The operator similar_patches on a CPU: checks, where patches may lie, allocation, sharing among threads,
// registration.
#include "similar_patches.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <mutex>
#include <tuple>
#include <vector>

#include "dispatch.h"
#include "threads.h"

namespace dip_fast::cpu {
namespace {

using at::Tensor;

struct Search {
  int64_t alike, neighbours, reach, near;
};

// The checks are those of dip_fast/ops/patches.py, which the fake kernel and the definition use.
void check_pictures(const Tensor& y, const Tensor& x) {
  for (const auto& [name, images] : {std::pair("y", y), std::pair("x", x)})
    TORCH_CHECK_TYPE(images.scalar_type() == at::kFloat, name, " must be of dtype float32, got ", images.scalar_type());
  TORCH_CHECK_VALUE(y.dim() == 4 && y.numel() > 0 && std::min(y.size(2), y.size(3)) >= PATCH,
                    "y must be (N, C, H, W) with N, C >= 1 and H, W >= 5, got ", y.sizes());
  TORCH_CHECK_VALUE(x.sizes() == y.sizes(), "x must be of the shape of y, ", y.sizes(), ", got ", x.sizes());
}

void check_search(const Tensor& y, int64_t n, int64_t first, int64_t rows, const Search& s) {
  const int64_t H = y.size(2), W = y.size(3), last = (H - PATCH) / PATCH_STRIDE;
  TORCH_CHECK_VALUE(n >= 0 && n < y.size(0), "n must be one of the ", y.size(0), " pictures, counted from 0, got ", n);
  TORCH_CHECK_VALUE(first >= 0 && rows >= 1 && rows <= last + 1 - first, "rows ", first, " .. ", first, " + ", rows,
                    " of groups must lie in 0 .. ", last + 1);
  TORCH_CHECK_VALUE(s.neighbours >= 0 && s.near >= 0 && s.near <= s.reach && s.reach <= 64,
                    "neighbours must be at least 0, and 0 <= near <= reach <= 64, got ", s.neighbours, ", ", s.near,
                    " and ", s.reach);
  const int64_t most = std::min(H - PATCH + 1, s.reach + 1) * std::min(W - PATCH + 1, s.reach + 1);  // at a corner
  TORCH_CHECK_VALUE(s.alike >= 2 && s.alike <= most, "alike must be in 2 .. ", most, ", got ", s.alike);
}

void check_variance(const Tensor& variance, double low, double high) {
  TORCH_CHECK_TYPE(variance.scalar_type() == at::kDouble, "variance must be of dtype float64, got ",
                   variance.scalar_type());
  TORCH_CHECK_VALUE(variance.dim() == 1 && variance.size(0) >= 2 && low < high,
                    "variance must be a table of two values or more, from low to a larger high, got ", variance.sizes(),
                    ", ", low, " and ", high);
}

// All shifts within reach in the pictures begin .. end, of which this one is n, with none first.  Of patches that are
// equally far the first is taken, so pictures before and after take turns.
std::vector<PatchShift> shifts(int64_t n, int64_t begin, int64_t end, const Search& search) {
  std::vector<PatchShift> all{{0, 0, 0}};
  for (int64_t apart = 0; n - apart >= begin || n + apart < end; ++apart) {
    const int32_t reach = int32_t(apart == 0 ? search.reach : search.near);
    for (int32_t down = -reach; down <= reach; ++down)
      for (int32_t right = -reach; right <= reach; ++right) {
        if (apart == 0 && down == 0 && right == 0) continue;
        if (n - apart >= begin) all.push_back({int32_t(-apart), down, right});
        if (n + apart < end && apart > 0) all.push_back({int32_t(apart), down, right});
      }
  }
  return all;
}

std::tuple<Tensor, Tensor> similar_patches(const Tensor& noisy, const Tensor& first_estimate, int64_t n, int64_t first,
                                           int64_t rows, int64_t alike, int64_t neighbours, int64_t reach, int64_t near,
                                           const Tensor& variance, double low, double high) {
  const Search search{alike, neighbours, reach, near};
  check_pictures(noisy, first_estimate);
  check_search(noisy, n, first, rows, search);
  check_variance(variance, low, high);
  const Tensor y = noisy.contiguous(), x = first_estimate.contiguous(), table = variance.contiguous();
  const int64_t C = y.size(1), H = y.size(2), W = y.size(3);
  const int64_t begin = std::max<int64_t>(n - neighbours, 0), end = std::min(n + neighbours + 1, y.size(0));
  const int64_t top = std::max<int64_t>(first * PATCH_STRIDE - reach, 0);
  const int64_t bottom = std::min((first + rows - 1) * PATCH_STRIDE + PATCH + reach, H);
  const Tensor sums = at::zeros({end - begin, C, bottom - top, W}, y.options().dtype(at::kLong)),
               count = at::zeros({end - begin, bottom - top, W}, sums.options());
  const std::vector<PatchShift> places = shifts(n, begin, end, search);
  const int64_t picture = n * C * H * W, channel = (bottom - top) * W;
  std::mutex adding;
  share(rows, [&](auto next) {
    int64_t row = next();
    if (row == rows) return;
    // Sums of this thread alone; those of whole numbers do not depend on their order.
    const Buffer<int64_t> own(sums.numel() + count.numel());
    std::fill_n(own.get(), sums.numel() + count.numel(), 0);
    const PatchPass p{.y = y.const_data_ptr<float>() + picture,
                      .x = x.const_data_ptr<float>() + picture,
                      .C = C,
                      .H = H,
                      .W = W,
                      .shifts = places.data(),
                      .shift_count = int64_t(places.size()),
                      .alike = alike,
                      .variance = table.const_data_ptr<double>(),
                      .variance_steps = table.size(0) - 1,
                      .low = low,
                      .steps_a_unit = double(table.size(0) - 1) / (high - low),
                      .sums = own.get() + (n - begin) * C * channel - top * W,
                      .count = own.get() + sums.numel() + (n - begin) * channel - top * W,
                      .channel = channel};
    const Buffer<double> scratch(p.scratch());
    for (; row < rows; row = next()) level().patches.row_of_groups(p, first + row, scratch.get());
    const std::lock_guard lock(adding);
    int64_t *const to_sums = sums.mutable_data_ptr<int64_t>(), *const to_count = count.mutable_data_ptr<int64_t>();
    for (int64_t i = 0; i < sums.numel(); ++i) to_sums[i] += own.get()[i];
    for (int64_t i = 0; i < count.numel(); ++i) to_count[i] += own.get()[sums.numel() + i];
  });
  return {sums, count};
}

}  // namespace
}  // namespace dip_fast::cpu

TORCH_LIBRARY_IMPL(dip_fast, CPU, m) { m.impl("similar_patches", TORCH_FN(dip_fast::cpu::similar_patches)); }
