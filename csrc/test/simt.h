// A GPU for tests: blocks of threads as fibers of one thread of the CPU, one block after the other.
//
// The threads of a block run in turn, each until it meets a barrier or its warp; which one is first changes from phase
// to phase (`reversed`), so that a result depends on it where a barrier is missing.  A block that not all threads of
// leave a phase in the same way is an error, as it would hang a GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
using cudaStream_t = void*;

namespace simt {

extern dim3 grid_dim, block_dim, block_idx, thread_idx;
extern bool reversed;  // the order of threads within a phase

void barrier();     // of the block
void meet();        // of the warp
char* warp_slot();  // 256 bytes of the calling thread, which all of its warp may read between two meetings
char* warp_slot(int lane);
char* shared_memory();
// Done no sooner than copies_done of the same thread, as a GPU may.
void copy_async(void* to, const void* from, int bytes);
void copies_done();

void run_together(const std::function<void()>& thread, dim3 grid, int threads, int shared_bytes);
void run_alone(const std::function<void()>& thread, dim3 grid, int threads);

template <bool together>
void run(const std::function<void()>& thread, dim3 grid, int threads, int shared_bytes) {
  if constexpr (together)
    run_together(thread, grid, threads, shared_bytes);
  else
    run_alone(thread, grid, threads);
}

inline float as_float(uint32_t bits) {
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}
inline uint32_t as_bits(float x) {
  uint32_t result;
  std::memcpy(&result, &x, 4);
  return result;
}

uint16_t to_bfloat16(float x);  // to the nearest, ties to even
uint16_t to_half(float x);
float from_half(uint16_t bits);

}  // namespace simt

inline float cospif(float x) { return float(std::cos(M_PI * double(x))); }
inline float sinpif(float x) { return float(std::sin(M_PI * double(x))); }

#define gridDim simt::grid_dim
#define blockDim simt::block_dim
#define blockIdx simt::block_idx
#define threadIdx simt::thread_idx
