// Memory for images, kept between the steps of a fit.
//
// The C library returns every large block to the system, which has to map its pages again at the next step; that costs
// more than some of the convolutions.  While the workspace is held, freed memory is kept and used again: an allocation
// cuts its block from the smallest free one that is large enough, and a freed block is merged with its free neighbours.
// When the last holder releases the workspace, all free memory is returned to the system.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <utility>

namespace dip_fast::workspace {

void hold();
void release();
int64_t kept_bytes();     // bytes allocated from the system, free or in use
int64_t system_blocks();  // how many allocations from the system there were

void* allocate(int64_t bytes);  // aligned to a page
void deallocate(void* block);

// An uninitialised tensor whose memory is part of the workspace.
at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options);

// Uninitialised memory for one call of a kernel.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : data_(static_cast<T*>(allocate(count * static_cast<int64_t>(sizeof(T)) + 64))) {}
  ~Buffer() {
    if (data_ != nullptr) deallocate(data_);
  }
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return data_; }

 private:
  T* data_;
};

}  // namespace dip_fast::workspace
