// The hardware that the kernels run on: a GPU, or with DIP_FAST_EMULATED a CPU that emulates one (csrc/test/simt.h).
// There a C++ compiler compiles the same sources, and tests compare the results with float64.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "kinds.h"

#ifdef DIP_FAST_EMULATED
#include "simt.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace dip_fast::cuda {

#define DIP_FAST_HD __host__ __device__ __forceinline__
#define DIP_FAST_D __device__ __forceinline__

#ifdef DIP_FAST_EMULATED

using simt::barrier;
template <class T>
T* shared_memory() {
  return reinterpret_cast<T*>(simt::shared_memory());
}

using simt::wait_for_copies;
template <int BYTES>
void copy_async(void* shared, const void* from) {
  simt::copy_async(shared, from, BYTES);
}

#else

DIP_FAST_D void barrier() { __syncthreads(); }

// Copies from global to shared memory without going through registers.  The calling thread may read the copy after
// wait_for_copies, the other threads of the block after a barrier that follows it.  BYTES: 4, 8 or 16.
template <int BYTES>
DIP_FAST_D void copy_async(void* shared, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(unsigned(__cvta_generic_to_shared(shared))), "l"(from),
               "n"(BYTES)
               : "memory");
}
// Four matrices of 8 rows of 16 bytes: each thread names a row and gets a word of each matrix, as mma.sync takes them.
DIP_FAST_D void load_matrices(uint32_t (&words)[4], const uint32_t* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(unsigned(__cvta_generic_to_shared(row)))
               : "memory");
}
DIP_FAST_D void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

template <class T>
DIP_FAST_D T* shared_memory() {
  extern __shared__ __align__(16) unsigned char dip_fast_shared[];
  return reinterpret_cast<T*>(dip_fast_shared);
}

#endif

// Launches a kernel of one argument.  `synchronizes`: its threads use barriers or warp-wide instructions, so the
// emulator must run them as fibers.
template <bool synchronizes, class Arguments>
void launch(void (*kernel)(Arguments), dim3 grid, int threads, int shared_bytes, cudaStream_t stream,
            const Arguments& arguments) {
#ifdef DIP_FAST_EMULATED
  (void)stream;
  simt::run<synchronizes>([&] { kernel(arguments); }, grid, threads, shared_bytes);
#else
  cudaError_t error = cudaSuccess;
  if (shared_bytes > 48 * 1024)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  void* list[] = {const_cast<Arguments*>(&arguments)};
  if (error == cudaSuccess)
    error = cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, dim3(threads), list, shared_bytes, stream);
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("dip_fast: a CUDA kernel did not start: ") + cudaGetErrorString(error));
#endif
}

// ---- conversions between numbers in memory or in a product and the type of sums

DIP_FAST_D float widened(float x) { return x; }
DIP_FAST_D double widened(double x) { return x; }
DIP_FAST_D float widened(BFloat16 x) {
#ifdef DIP_FAST_EMULATED
  return simt::as_float(uint32_t(x.bits) << 16);
#else
  return __uint_as_float(uint32_t(x.bits) << 16);
#endif
}
DIP_FAST_D float widened(Half x) {
#ifdef DIP_FAST_EMULATED
  return simt::from_half(x.bits);
#else
  return __half2float(__ushort_as_half(x.bits));
#endif
}

// Rounds to the nearest, ties away from zero, as cvt.rna does.
DIP_FAST_D float rounded_to_tf32(float x) {
#ifdef DIP_FAST_EMULATED
  return x - x == 0 ? simt::as_float((simt::as_bits(x) + 0x1000) & ~0x1fffu) : x;
#else
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
#endif
}

template <class To>
DIP_FAST_D To narrowed(double x) {
  return static_cast<To>(x);
}
template <class To>
DIP_FAST_D To narrowed(float x) {
  if constexpr (std::is_same_v<To, TF32>)
    return {rounded_to_tf32(x)};
  else if constexpr (sizeof(To) >= 4)
    return static_cast<To>(x);
  else
#ifdef DIP_FAST_EMULATED
    return {std::is_same_v<To, Half> ? simt::to_half(x) : simt::to_bfloat16(x)};
#else
    return {std::is_same_v<To, Half> ? __half_as_ushort(__float2half_rn(x))
                                     : __bfloat16_as_ushort(__float2bfloat16_rn(x))};
#endif
}

// ---- vector loads and stores

// Four neighbouring channels: one load of 8 or 16 bytes, or two of 16 for float64.

template <class T>
struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) Quad {
  T at[4];
};

}  // namespace dip_fast::cuda
