// The workspace of the sanitizer build, in place of workspace.cpp: each block is an allocation of its own, of exactly
// the requested size, so that AddressSanitizer detects accesses outside of it.  Memory that has not been written reads
// as NaN.
#include <cstdlib>
#include <cstring>
#include <new>

#include "workspace.h"

namespace dip_fast::workspace {

void hold() {}
void release() {}
int64_t kept_bytes() { return 0; }
int64_t system_blocks() { return 0; }

void* allocate(int64_t bytes) {
  void* block = nullptr;
  if (posix_memalign(&block, 4096, bytes) != 0) throw std::bad_alloc();
  return std::memset(block, 0xff, bytes);
}

void deallocate(void* block) { std::free(block); }

at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const int64_t bytes = c10::multiply_integers(sizes) * static_cast<int64_t>(options.dtype().itemsize());
  return at::from_blob(allocate(bytes), sizes, deallocate, options);
}

}  // namespace dip_fast::workspace
