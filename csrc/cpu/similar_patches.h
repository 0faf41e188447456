// The kernels of similar_patches as the host code sees them: a table of functions that is compiled once for each
// instruction set.
#pragma once

#include <cstdint>

namespace dip_fast::cpu {

constexpr int64_t PATCH = 5;         // side of a patch in pixels
constexpr int64_t PATCH_STRIDE = 3;  // pixels between the first patches of groups
constexpr int64_t PATCH_BLOCK = 8;   // numbers of patches and of their samples are rounded up to a multiple

// Where a patch that may be like the first of a group lies from it: pictures, rows and columns.
struct PatchShift {
  int32_t pictures, down, right;
};

// A picture whose patches are estimated, and what from.  Pictures lie one behind another, (C, H, W) each.
struct PatchPass {
  const float *y, *x;  // the picture itself in its stack: noisy, and as first estimated
  int64_t C, H, W;
  const PatchShift* shifts;  // the first is (0, 0, 0)
  int64_t shift_count, alike;
  // The variance of noise at means of samples: a table of `variance_steps` + 1 values at equal steps, from the mean
  // `low` on.
  const double* variance;
  int64_t variance_steps;
  double low, steps_a_unit;
  // The sums of the estimates of each sample, in units of 2^-32, and their number, in a band of rows of the pictures:
  // channels are `channel` apart.  Those of row 0 of the picture itself, which may lie before the band.
  int64_t *sums, *count;
  int64_t channel;

  static int64_t rounded(int64_t number) { return (number + PATCH_BLOCK - 1) / PATCH_BLOCK * PATCH_BLOCK; }
  int64_t columns() const { return (W - PATCH) / PATCH_STRIDE + 1; }
  int64_t samples() const { return PATCH * PATCH * C; }
  // Of doubles, of which the kernel makes what it needs.
  int64_t scratch() const {
    const int64_t k = rounded(alike), d = rounded(samples());
    return 2 * k * d + 2 * k * k + 2 * d + W + columns() * k;
  }
};

struct PatchKernels {
  // Estimates the patches of row `row` of groups, and adds them to the sums.
  void (*row_of_groups)(const PatchPass&, int64_t row, double* scratch);
};

// Defined in similar_patches_<instruction set>.cpp.
extern const PatchKernels patches_portable, patches_avx2, patches_avx512;

}  // namespace dip_fast::cpu
