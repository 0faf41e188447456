// The kernels of perturb: normal noise that is a function of seed, step and place alone.
//
// Philox4x32-10 (J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) maps a counter of four words
// and a key of two to four random words w0 .. w3 of 32 bits,
//   counter = (block, block >> 32, step, step >> 32), key = (seed, seed >> 32)
// Each pair of words is mapped to two normal values (Box and Muller):
//   u = ((w0 >> 1) + 1/2) / 2^31, angle = 2 pi w1 / 2^32:  sqrt(-2 log u) cos angle, sqrt(-2 log u) sin angle
// A group of 64 values is made of 16 blocks: value 64 g + 16 j + l is the j-th number of block 16 g + l, so that a
// vector holds the same word of neighbouring blocks, whatever its width.
//
// The code only adds, multiplies, divides, shifts and takes square roots.  Each operation is rounded as IEEE 754
// prescribes and none is contracted (-ffp-contract=off), so every instruction set computes the same bits.  A value
// differs by 1e-6 at most from that of float64 (9.6e-7 is the worst of 10^7, tests/test_perturbation.py).
//
// This file is included inside an unnamed namespace, as the other kernels are (passes.h).
#pragma once

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX2__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
constexpr int LANES = BYTES / 4, BLOCKS = 16, ROUNDS = 10;
typedef uint32_t Words __attribute__((vector_size(BYTES)));
typedef uint64_t Wide __attribute__((vector_size(BYTES)));
typedef int32_t Integers __attribute__((vector_size(BYTES)));
typedef float Floats __attribute__((vector_size(BYTES)));

// The product of the low 32 bits of each lane.  (The AVX-512 intrinsics have a mask because GCC warns of those
// without.)
static inline Wide product(Wide a, uint32_t factor) {
#if defined(__AVX512F__)
  return (Wide)_mm512_maskz_mul_epu32(0xff, (__m512i)a, _mm512_set1_epi64(factor));
#elif defined(__AVX2__)
  return (Wide)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(factor));
#elif defined(__x86_64__)
  return (Wide)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(factor));
#else
  return (a & 0xffffffff) * factor;
#endif
}

static inline Floats root(Floats x) {
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);
#elif defined(__AVX2__)
  return (Floats)_mm256_sqrt_ps((__m256)x);
#elif defined(__x86_64__)
  return (Floats)_mm_sqrt_ps((__m128)x);
#else
  for (int i = 0; i < LANES; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

static inline Floats to_floats(Words x) { return __builtin_convertvector((Integers)x, Floats); }

// One round of Philox.  The words of a counter are the low halves of the lanes; the high halves are ignored.
static inline void philox_round(Wide c[4], const Wide key[2]) {
  const Wide p0 = product(c[0], 0xD2511F53), p1 = product(c[2], 0xCD9E8D57);
  c[0] = (p1 >> 32) ^ c[1] ^ key[0];
  c[1] = p1;
  c[2] = (p0 >> 32) ^ c[3] ^ key[1];
  c[3] = p0;
}

// Returns sqrt(-2 log u).  u = 2^e m with sqrt(1/2) <= m < sqrt(2), and log(1 + f) = f + f^2 (L0 + L1 f + ...), whose
// coefficients minimise the largest error over |f|, 3.1e-8.
static inline Floats radius(Words word) {
  const Floats u = to_floats(word >> 1) * 0x1p-31f + 0x1p-32f;
  const Integers bits = (Integers)u, exponent = (bits - 0x3f3504f3) >> 23;  // that of sqrt(1/2)
  const Floats f = (Floats)(bits - (exponent << 23)) - 1.0f;
  Floats p = f * 8.97953320e-2f - 1.44268851e-1f;
  p = p * f + 1.48836840e-1f;
  p = p * f - 1.65517872e-1f;
  p = p * f + 1.99634770e-1f;
  p = p * f - 2.50025837e-1f;
  p = p * f + 3.33339333e-1f;
  p = p * f - 4.99999831e-1f;
  const Floats log = __builtin_convertvector(exponent, Floats) * 6.93147181e-1f + (p * (f * f) + f);
  return root(log * -2.0f);
}

// Computes cos and sin of 2 pi word / 2^32.  The angle is the nearest multiple of pi/2 plus t pi/4, -1 <= t < 1; the
// minimax polynomials in t^2 are off by 2.8e-8 for the cosine and by 2.4e-9 for sin / t.
static inline void rotate(Words word, Floats& cosine, Floats& sine) {
  const Words shifted = word + 0x20000000u;
  const Floats t = to_floats((shifted << 2) ^ 0x80000000u) * 0x1p-31f, tt = t * t;
  const Floats c = ((tt * -3.18880211e-4f + 1.58499149e-2f) * tt - 3.08424253e-1f) * tt + 9.99999972e-1f;
  const Floats s = (((tt * -3.59544818e-5f + 2.49000709e-3f) * tt - 8.07454348e-2f) * tt + 7.85398161e-1f) * t;
  const Words odd = (Words)((Integers)(shifted << 1) >> 31);  // all bits are set where cosine and sine are exchanged
  const Words negative = shifted & 0x80000000u;               // half a turn
  const Words c_bits = ((Words)c & ~odd) | ((Words)s & odd), s_bits = ((Words)s & ~odd) | ((Words)c & odd);
  cosine = (Floats)(c_bits ^ negative ^ (odd & 0x80000000u));
  sine = (Floats)(s_bits ^ negative);
}

// The keys of the rounds, in every lane.
struct Keys {
  Wide of[ROUNDS][2];

  explicit Keys(uint64_t seed) {
    for (int round = 0; round < ROUNDS; ++round) {
      of[round][0] = Wide{} + uint32_t(seed + round * 0x9E3779B9u);
      of[round][1] = Wide{} + uint32_t((seed >> 32) + round * 0xBB67AE85u);
    }
  }
};

// Draws the words of the blocks l .. l + LANES of a group.
static inline void draw_blocks(const Keys& keys, uint64_t step, int64_t group, int l, Words words[4]) {
  Wide lane;
  for (int i = 0; i < LANES / 2; ++i) lane[i] = 2 * i;
  // The even and the odd blocks are computed separately and then interleaved.
  const uint64_t block = uint64_t(group) * BLOCKS + l;
  const Wide zero = {};
  Wide even[4] = {lane + block, zero + (block >> 32), zero + step, zero + (step >> 32)};
  Wide odd[4] = {lane + (block + 1), even[1], even[2], even[3]};
#pragma GCC unroll 10
  for (int round = 0; round < ROUNDS; ++round) {
    philox_round(even, keys.of[round]);
    philox_round(odd, keys.of[round]);
  }
  for (int j = 0; j < 4; ++j) words[j] = (Words)((even[j] & 0xffffffff) | odd[j] << 32);
}

// Computes the 64 normal values of a group.
static inline void draw_group(const Keys& keys, uint64_t step, int64_t group, float noise[NOISE_GROUP]) {
  for (int l = 0; l < BLOCKS; l += LANES) {
    Words words[4];
    draw_blocks(keys, step, group, l, words);
    for (int j = 0; j < 4; j += 2) {
      const Floats r = radius(words[j]);
      Floats cosine, sine;
      rotate(words[j + 1], cosine, sine);
      cosine *= r, sine *= r;
      __builtin_memcpy(noise + BLOCKS * j + l, &cosine, BYTES);
      __builtin_memcpy(noise + BLOCKS * (j + 1) + l, &sine, BYTES);
    }
  }
}

template <class Z>
static void perturb_groups(const Noise& noise, const Z* z, float* output, int64_t size, int64_t begin, int64_t end) {
  const Keys keys(noise.seed);
  for (int64_t group = begin; group < end; ++group) {
    alignas(64) float values[NOISE_GROUP];
    draw_group(keys, noise.step, group, values);
    const Z* from = z + group * NOISE_GROUP;
    float* to = output + group * NOISE_GROUP;
    if (size - group * NOISE_GROUP >= NOISE_GROUP)
      for (int i = 0; i < NOISE_GROUP; ++i) to[i] = float(from[i]) / noise.divisor + noise.deviation * values[i];
    else
      for (int i = 0; i < size - group * NOISE_GROUP; ++i)
        to[i] = float(from[i]) / noise.divisor + noise.deviation * values[i];
  }
}
