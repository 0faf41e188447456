// The passes of upsample_conv2d, shared among threads, for one dtype.  All pointers are of contiguous tensors.
#pragma once

#include "dispatch.h"
#include "threads.h"

namespace dip_fast::cpu {

template <class T>
Buffer<T> packed_weight(const Shape& shape, const T* weight, bool transposed) {
  const UpsampleKernels<T>& kernel = upsample_kernels<T>();
  Buffer<T> packed(kernel.packed_size(shape));
  for_each_range(shape.K, 16,
                 [&](int64_t begin, int64_t end) { kernel.pack(shape, weight, transposed, begin, end, packed.get()); });
  return packed;
}

template <class T>
void data_gradient(const Shape& shape, const T* grad, const T* weight, T* grad_input) {
  const UpsampleKernels<T>& kernel = upsample_kernels<T>();
  const Buffer<T> packed = packed_weight(shape, weight, true);
  for_each_item<T>(
      kernel.data_gradient_items(shape), kernel.data_gradient_scratch(shape),
      [&](int64_t item, T* scratch) { kernel.data_gradient(shape, grad, packed.get(), grad_input, item, scratch); });
}

template <class T>
void weight_gradient(const Shape& shape, const T* grad, const T* input, T* grad_weight, T* grad_bias) {
  const UpsampleKernels<T>& kernel = upsample_kernels<T>();
  const int64_t size = kernel.sums_size(shape), items = kernel.weight_gradient_items(shape);
  const Buffer<T> total(size);
  sum_items<T>(items, size, kernel.weight_gradient_scratch(shape), total.get(), [&](int64_t item, T* sums, T* scratch) {
    kernel.weight_gradient(shape, grad, input, sums, item, scratch);
  });
  for_each_range(shape.K, 16, [&](int64_t begin, int64_t end) {
    kernel.finish(shape, total.get(), begin, end, grad_weight, grad_bias);
  });
}

}  // namespace dip_fast::cpu
