// The convolutions of layers.h, shared among threads: their outputs, and all gradients of winograd in one pass.
#pragma once

#include "norm_act.h"

namespace dip_fast::cpu {

// The weights as the products of a table read them.
template <class I, class O, class T = Computed<O>>
Buffer<T> packed(const LayerKernels<I, O>& kernel, const ConvShape& s, const T* weight, bool adjoint) {
  Buffer<T> to(kernel.packed_size(s));
  for_each_range(s.outputs, 8,
                 [&](int64_t begin, int64_t end) { kernel.pack(s, weight, adjoint, begin, end, to.get()); });
  return to;
}

constexpr int64_t aligned(int64_t count) { return (count + 15) / 16 * 16; }  // in elements

// window(rows, memory) returns the rows that an item reads; it may use `window_size` elements of memory.  `convolution`
// is that of the table which is meant.
template <class T, class Convolution, class F, class O>
void convolve(Convolution* convolution, const ConvShape& s, int64_t window_size, F window,
              const Activation<T>& activation, const T* weights, const T* bias, O* output,
              std::vector<Moments>* moments) {
  const LayerKernels<T, T>& kernel = layer_kernels<T>();
  const int64_t items = kernel.items(s), own = aligned(kernel.scratch(s));
  if (moments != nullptr) moments->resize(items * s.outputs);
  for_each_item<T>(items, own + window_size, [&](int64_t item, T* scratch) {
    convolution(s, window(kernel.input_rows(s, item), scratch + own), activation, weights, bias, output,
                moments == nullptr ? nullptr : moments->data() + item * s.outputs, item, scratch);
  });
}

// All gradients of a winograd convolution (winograd_gradient.h).
template <class O>
class WinogradBackward {
  using T = Computed<O>;

 public:
  // window(rows, memory) returns the rows of the padded input that an item reads; it may use `window_size` elements of
  // memory.  weight: (outputs, inputs, 3, 3).
  template <class F>
  WinogradBackward(const ConvShape& s, const RawGradient<O>& raw, const T* weight, int64_t window_size, F window,
                   bool of_input, bool of_weight)
      : s_(s),
        items_(kernel_.winograd_gradient_items(s)),
        local_size_(kernel_.winograd_local_size(s)),
        total_(of_weight ? kernel_.winograd_sums_size(s) : aligned(s.outputs)),
        locals_(of_input ? items_ * local_size_ : 0) {
    const ConvShape adjoint{Algorithm::winograd, s.outputs, s.inputs, s.rows, s.cols, s.height, s.width};
    const Buffer<T> weights = packed(kernel_, adjoint, weight, true);
    const int64_t own = aligned(kernel_.winograd_gradient_scratch(s));
    sum_items<T>(items_, of_weight ? kernel_.winograd_sums_size(s) : aligned(s.outputs), own + window_size,
                 total_.get(), [&](int64_t item, T* sums, T* scratch) {
                   kernel_.winograd_gradient(
                       s_, raw, window(kernel_.winograd_gradient_input_rows(s, item), scratch + own), weights.get(),
                       of_input ? locals_.get() + item * local_size_ : nullptr, of_weight, sums, item, scratch);
                 });
  }

  void weight_gradient(T* to) const {
    for_each_range(s_.outputs, 4,
                   [&](int64_t begin, int64_t end) { kernel_.winograd_finish(s_, total_.get(), begin, end, to); });
  }
  void bias_gradient(T* to) const { std::copy_n(total_.get(), s_.outputs, to); }

  // The gradient of the padded copy of input channel c, `s`, before upsampling.
  BandsOfRows<T> input_gradient(int64_t c, const PaddedCopy& s) const {
    const int64_t rows = kernel_.winograd_gradient_rows(s_), plain = s_.inputs - s_.upsampled,
                  plane = (2 * rows + 2) * (2 * s_.cols + 2);
    BandsOfRows<T> bands{locals_.get() + std::min(c, plain) * plane, items_, local_size_, 2 * rows, 2 * rows + 2};
    if (c >= plain) {
      bands.data += (c - plain) * (rows + 2) * s.cols;
      bands.step = rows, bands.rows = rows + 2;
    }
    return bands;
  }

 private:
  const LayerKernels<T, O>& kernel_ = layer_kernels<T, O>();
  const ConvShape s_;
  const int64_t items_, local_size_;
  const Buffer<T> total_, locals_;
};

}  // namespace dip_fast::cpu
