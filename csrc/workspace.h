// Memory for images, kept between the steps of a fit.
//
// The C library returns every large block to the system and faults it in again at the next step, which costs more than
// some of the convolutions.  While somebody holds the workspace, what is freed is kept and handed out again: the
// smallest piece that is large enough, cut to size, and put together with its neighbours when it comes back.  When the
// last holder lets go, all of it is returned.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <utility>

namespace dip_fast::workspace {

void hold();
void release();
int64_t kept_bytes();     // taken from the system, free or in use
int64_t system_blocks();  // how often the system was asked

void* take(int64_t bytes);  // aligned to a page
void give(void* block);

at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options);

// Memory of one kernel call.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : data_(static_cast<T*>(take(count * static_cast<int64_t>(sizeof(T)) + 64))) {}
  ~Buffer() {
    if (data_ != nullptr) give(data_);
  }
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return data_; }

 private:
  T* data_;
};

}  // namespace dip_fast::workspace
