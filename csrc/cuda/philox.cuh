// The counter-based generator Philox 4x32-10, as csrc/cpu/perturb_kernel.h has it.
#pragma once

#include "platform.cuh"

namespace dip_fast::cuda {

constexpr int GROUP = 64, BLOCKS = 16;  // a group of 64 values takes 16 of the generator's blocks of four words

// Turns a counter into random words.
DIP_FAST_D void philox(uint32_t (&c)[4], uint64_t seed) {
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(c[0]) * 0xD2511F53u, p1 = uint64_t(c[2]) * 0xCD9E8D57u;
    c[0] = uint32_t(p1 >> 32) ^ c[1] ^ k0;
    c[1] = uint32_t(p1);
    c[2] = uint32_t(p0 >> 32) ^ c[3] ^ k1;
    c[3] = uint32_t(p0);
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
}

// Draws the words of a block at a step.
DIP_FAST_D void draw_block(uint64_t block, uint64_t step, uint64_t seed, uint32_t (&words)[4]) {
  words[0] = uint32_t(block), words[1] = uint32_t(block >> 32);
  words[2] = uint32_t(step), words[3] = uint32_t(step >> 32);
  philox(words, seed);
}

}  // namespace dip_fast::cuda
