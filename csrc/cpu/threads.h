// Sharing a pass among threads, in the host wrappers.
#pragma once

#include <ATen/Parallel.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "workspace.h"

namespace dip_fast::cpu {

using workspace::Buffer;

template <class T, class F>
void for_each_item(int64_t items, int64_t scratch, F work) {
  at::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) {
    const Buffer<T> buffer(scratch);
    for (int64_t item = begin; item < end; ++item) work(item, buffer.get());
  });
}

// Lets items be committed in their order.  Items are handed out in order, so that the one that all others wait for is
// always at work, however few threads there are.
class Turns {
 public:
  int64_t next() { return next_++; }
  template <class F>
  void commit(int64_t item, F work) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return turn_ == item; });
    work();
    ++turn_;
    changed_.notify_all();
  }

 private:
  std::atomic<int64_t> next_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t turn_ = 0;
};

// Sums `size` values over items: work(item, sums, scratch) gives those of an item, which are added to the total in the
// order of the items, by whichever thread made them.
template <class T, class F>
void sum_items(int64_t items, int64_t size, int64_t scratch, T* total, F work) {
  std::fill_n(total, size, T(0));
  Turns turns;
  at::parallel_for(0, std::min<int64_t>(items, at::get_num_threads()), 1, [&](int64_t begin, int64_t end) {
    if (begin == end) return;
    const Buffer<T> sums(size), own(scratch);
    for (int64_t item = turns.next(); item < items; item = turns.next()) {
      work(item, sums.get(), own.get());
      turns.commit(item, [&] {
        for (int64_t i = 0; i < size; ++i) total[i] += sums.get()[i];
      });
    }
  });
}

}  // namespace dip_fast::cpu
