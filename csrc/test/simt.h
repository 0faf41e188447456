// An emulated GPU for tests.  The threads of a block are fibers of one CPU thread; blocks run one after the other.
//
// The threads of a block run in turn, each until its next barrier or warp-wide instruction.  `reversed` reverses their
// order: a result that depends on it shows that a barrier is missing.  If the threads of a block or warp do not all
// stop at the same kind of place, the emulator aborts, as a GPU would hang.
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
extern bool reversed;  // the order in which threads run between two barriers

void barrier();     // __syncthreads
void sync_warp();   // __syncwarp
char* warp_slot();  // 256 bytes of the calling thread, which its warp may read between two calls of sync_warp
char* warp_slot(int lane);
char* shared_memory();
// Copies only when the same thread calls wait_for_copies: a GPU may be as late.
void copy_async(void* to, const void* from, int bytes);
void wait_for_copies();

void run_synchronized(const std::function<void()>& thread, dim3 grid, int threads, int shared_bytes);
void run_independent(const std::function<void()>& thread, dim3 grid, int threads);

template <bool synchronizes>
void run(const std::function<void()>& thread, dim3 grid, int threads, int shared_bytes) {
  if constexpr (synchronizes)
    run_synchronized(thread, grid, threads, shared_bytes);
  else
    run_independent(thread, grid, threads);
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

// Both round to the nearest, ties to even.
uint16_t to_bfloat16(float x);
uint16_t to_half(float x);
float from_half(uint16_t bits);

}  // namespace simt

inline float cospif(float x) { return float(std::cos(M_PI * double(x))); }
inline float sinpif(float x) { return float(std::sin(M_PI * double(x))); }

#define gridDim simt::grid_dim
#define blockDim simt::block_dim
#define blockIdx simt::block_idx
#define threadIdx simt::thread_idx
