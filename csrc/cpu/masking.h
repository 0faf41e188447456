// The kernels of masked views as the host code sees them: a table of functions that is compiled once for each
// instruction set.
#pragma once

#include <cstdint>

namespace dip_fast::cpu {

constexpr int64_t WORD_GROUP = 64;  // words that are drawn in one go

// A view of a picture, before it is turned, and where it goes.
//
// With its neighbours the view is `block` rows and columns larger at each side; tables hold what the extended rows and
// columns are in the picture, mirrored at its edges, and among the random words.  The word of channel c, extended row i
// and extended column k is number first_word + c channel_words + word_row[i] row_words + word_column[k].
struct MaskedView {
  const float* y;  // the picture, (C, H, W)
  int64_t H, W, height, width, block;
  const int64_t *row, *column, *word_row, *word_column;
  bool straight;  // whether `column` counts up, as it does inside the picture
  uint64_t seed, step;
  uint64_t kept_below;                                  // a sample is kept if its word is less
  int64_t first_word, channel_words, row_words, words;  // words: in a line, 0 <= word_column[k] < words
  // What becomes of row i and column j is stored at c height width + origin + i down + j across.
  float *filled, *mask, *target;
  int64_t origin, down, across;

  int64_t extended_width() const { return width + 2 * block; }
  // Rows that are computed in one go: at most as many again are computed for the sake of these.
  int64_t band() const { return block < 16 ? 32 : 2 * block; }
  int64_t pitch() const { return extended_width() + 16; }  // of the buffers, against rows in one set of a cache
  int64_t scratch() const {
    const int64_t extended = band() + 2 * block;
    return 2 * extended * width + 3 * band() * pitch() + 3 * pitch() + 2 * width + words / 4 + 2 * WORD_GROUP;
  }
};

struct MaskingKernels {
  void (*draw_words)(uint64_t seed, uint64_t step, int64_t group, uint32_t words[WORD_GROUP]);
  // Computes the rows begin .. end, at most a band, of channel c.  scratch: of the size that the view states.
  void (*mask_band)(const MaskedView&, int64_t c, int64_t begin, int64_t end, float* scratch);
};

// Defined in perturb_<instruction set>.cpp.
extern const MaskingKernels masking_portable, masking_avx2, masking_avx512;

}  // namespace dip_fast::cpu
