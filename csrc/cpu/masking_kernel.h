// Masked views: kept samples as they are, and holes filled with the mean of the kept samples around them.
//
//   kept[r, c]  = 1 if the random word of the place is less than keep 2^32, else 0
//   S(f)[c]     = f[c] + (f[c - 1] + f[c + 1]) + ... + (f[c - b] + f[c + b])      along a row, then down the columns
//   sum, count  = S(S(kept y)), S(S(kept))
//   filled[r, c] = y[r, c] if it is kept, else sum / count, or 1/2 if count = 0
//
// A mirror exchanges the summands of a pair only, so the sum is the same to the bit in a mirror image.  A band of rows
// is computed at a time, with b rows more at either end.
//
// The text is included after perturb_kernel.h, inside an unnamed namespace.
#pragma once

static void draw_words(const Keys& keys, uint64_t step, int64_t group, uint32_t drawn[WORD_GROUP]) {
  for (int l = 0; l < BLOCKS; l += LANES) {
    Words words[4];
    draw_blocks(keys, step, group, l, words);
    for (int j = 0; j < 4; ++j) __builtin_memcpy(drawn + BLOCKS * j + l, &words[j], BYTES);
  }
}

static void draw_words(uint64_t seed, uint64_t step, int64_t group, uint32_t drawn[WORD_GROUP]) {
  draw_words(Keys(seed), step, group, drawn);
}

// Draws whether the words first .. first + count are kept, and returns where in `line` they begin.
static const uint8_t* draw_line(const MaskedView& v, const Keys& keys, int64_t first, int64_t count, uint8_t* line) {
  const int64_t begin = first / WORD_GROUP, end = (first + count + WORD_GROUP - 1) / WORD_GROUP;
  const uint32_t last = uint32_t(v.kept_below - 1);  // kept_below is 0 .. 2^32
  const uint8_t any = v.kept_below > 0;
  for (int64_t group = begin; group < end; ++group) {
    alignas(64) uint32_t words[WORD_GROUP];
    draw_words(keys, v.step, group, words);
    uint8_t* to = line + (group - begin) * WORD_GROUP;
    for (int i = 0; i < WORD_GROUP; ++i) to[i] = (words[i] <= last) & any;
  }
  return line + first % WORD_GROUP;
}

// S: from `from`, whose neighbours are `step` apart.
static void sum_around(const float* from, int64_t step, int64_t reach, int64_t count, float* __restrict to) {
  for (int64_t j = 0; j < count; ++j) to[j] = from[j] + (from[j - step] + from[j + step]);
  for (int64_t distance = 2; distance <= reach; ++distance) {
    const float *before = from - distance * step, *after = from + distance * step;
    for (int64_t j = 0; j < count; ++j) to[j] += before[j] + after[j];
  }
}

// Reads an extended line: the samples, whether they are kept, and the samples that are kept, with 0 for the others.
static void read_line(const MaskedView& v, const float* y, const uint8_t* line, float* __restrict values,
                      float* __restrict kept, float* __restrict held) {
  const int64_t count = v.extended_width();
  if (v.straight) {
    for (int64_t k = 0; k < count; ++k) values[k] = y[v.column[0] + k];
  } else {
    for (int64_t k = 0; k < count; ++k) values[k] = y[v.column[k]];
  }
  if (v.straight && v.block == 1) {
    for (int64_t k = 0; k < count; ++k) kept[k] = float(line[k]);
  } else {
    for (int64_t k = 0; k < count; ++k) kept[k] = float(line[v.word_column[k]]);
  }
  for (int64_t k = 0; k < count; ++k) held[k] = kept[k] != 0 ? values[k] : 0.0f;
}

static void fill_line(const float* values, const float* kept, const float* sum, const float* number, int64_t count,
                      float* __restrict filled) {
  for (int64_t j = 0; j < count; ++j) {
    const float mean = sum[j] / (number[j] > 0 ? number[j] : 1.0f);
    filled[j] = kept[j] != 0 ? values[j] : number[j] > 0 ? mean : 0.5f;
  }
}

// Stores rows of a buffer in the orientation of the result.  `across` or `down` is 1 or -1.
static void store_band(const MaskedView& v, const float* from, int64_t rows, float* __restrict to) {
  const int64_t pitch = v.pitch();
  if (v.across == 1) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < v.width; ++j) to[i * v.down + j] = from[i * pitch + j];
  } else if (v.across == -1) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < v.width; ++j) to[i * v.down - j] = from[i * pitch + j];
  } else {
    for (int64_t j = 0; j < v.width; ++j)
      for (int64_t i = 0; i < rows; ++i) to[j * v.across + i * v.down] = from[i * pitch + j];
  }
}

static void mask_band(const MaskedView& v, int64_t c, int64_t begin, int64_t end, float* scratch) {
  const Keys keys(v.seed);
  const int64_t b = v.block, width = v.width, rows = end - begin, extended = rows + 2 * b, pitch = v.pitch();
  const auto take = [&](int64_t count) { return (scratch += count) - count; };
  float *sums = take(extended * width), *counts = take(extended * width);
  float *values = take(rows * pitch), *kept = take(rows * pitch), *filled = take(rows * pitch);
  float *outer_values = take(pitch), *outer_kept = take(pitch), *held = take(pitch);
  float *sum = take(width), *count = take(width);
  uint8_t* const drawn = reinterpret_cast<uint8_t*>(scratch);
  const uint8_t* line = nullptr;
  for (int64_t k = 0; k < extended; ++k) {
    const int64_t row = begin + k;  // of the tables
    if (k == 0 || v.word_row[row] != v.word_row[row - 1])
      line = draw_line(v, keys, v.first_word + c * v.channel_words + v.word_row[row] * v.row_words, v.words, drawn);
    const bool inner = k >= b && k < b + rows;
    float* const own_values = inner ? values + (k - b) * pitch : outer_values;
    float* const own_kept = inner ? kept + (k - b) * pitch : outer_kept;
    read_line(v, v.y + (c * v.H + v.row[row]) * v.W, line, own_values, own_kept, held);
    sum_around(held + b, 1, b, width, sums + k * width);
    sum_around(own_kept + b, 1, b, width, counts + k * width);
  }
  for (int64_t i = 0; i < rows; ++i) {
    sum_around(sums + (i + b) * width, width, b, width, sum);
    sum_around(counts + (i + b) * width, width, b, width, count);
    fill_line(values + i * pitch + b, kept + i * pitch + b, sum, count, width, filled + i * pitch);
  }
  const int64_t at = c * v.height * width + v.origin + begin * v.down;
  store_band(v, filled, rows, v.filled + at);
  store_band(v, kept + b, rows, v.mask + at);
  store_band(v, values + b, rows, v.target + at);
}
