// How the host code shares a pass among threads.
//
// A pass is a number of items.  Threads take the next item as they become free, so a thread that the system holds up
// delays its own item alone.  No bit of a result depends on which thread works on which item.
//
// The threads are PyTorch's, or those of a pool of our own while an OwnThreads lives.  PyTorch's, those of OpenMP, all
// have to arrive at the end of each loop, and wait for one another by spinning: where another program needed one of the
// cores, a fused step took 30 times as long (2 cores, one of them busy).  A pass on the pool does not wait for threads
// that have not begun to work on it.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "workspace.h"

namespace dip_fast::cpu {

using workspace::Buffer;

// While it lives, the operators that this thread calls run on the pool, on as many threads as PyTorch would use, and
// PyTorch's operators run on this thread alone: its threads would spin on the cores that ours need.
class OwnThreads {
 public:
  OwnThreads();
  ~OwnThreads();
  OwnThreads(const OwnThreads&) = delete;
  OwnThreads& operator=(const OwnThreads&) = delete;

 private:
  int before_;
};

int thread_count();  // for operators that this thread calls

bool uses_pool();  // whether these run on the pool

// Calls body(context) on this thread and on at most `others` threads of the pool: those that begin before this one has
// returned from its call.
void run_on_pool(int others, void (*body)(void*), void* context);

// Calls work(next) on every thread, but on no more threads than items; each thread calls next() for its next item,
// until it returns `items`.
template <class F>
void share(int64_t items, F work) {
  std::atomic<int64_t> taken{0};
  const auto next = [&] { return std::min(items, taken.fetch_add(1, std::memory_order_relaxed)); };
  const int64_t threads = std::min(items, static_cast<int64_t>(thread_count()));
  if (threads <= 1) {
    if (items > 0) work(next);
  } else if (uses_pool()) {
    auto body = [&] { work(next); };
    run_on_pool(static_cast<int>(threads) - 1, [](void* call) { (*static_cast<decltype(body)*>(call))(); }, &body);
  } else {
    at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      if (begin < end) work(next);
    });
  }
}

// Calls work(item, scratch) for each item; every thread has scratch memory of its own, of `scratch` elements.
template <class T, class F>
void for_each_item(int64_t items, int64_t scratch, F work) {
  share(items, [&](auto next) {
    int64_t item = next();
    if (item == items) return;
    const Buffer<T> buffer(scratch);
    for (; item < items; item = next()) work(item, buffer.get());
  });
}

// Calls work(begin, end) for the ranges of `step` numbers that make up 0 .. count; the last may be shorter.
template <class F>
void for_each_range(int64_t count, int64_t step, F work) {
  const int64_t items = (count + step - 1) / step;
  share(items, [&](auto next) {
    for (int64_t item = next(); item < items; item = next()) work(item * step, std::min(count, (item + 1) * step));
  });
}

// Adds the sums of the items to a total, in the order of the items, whichever threads they come from.  A thread that
// finds no other adding adds all sums that are next in order.  Sums that come early are kept, so that their thread does
// not wait, unless as many are kept as half of the threads.
template <class T>
class OrderedTotal {
 public:
  OrderedTotal(int64_t items, int64_t size, T* total)
      : size_(size), most_(std::max(1, thread_count() / 2)), total_(total), kept_(items) {}

  void add(int64_t item, Buffer<T> sums) {
    std::unique_lock lock(mutex_);
    room_.wait(lock, [&] { return count_ < most_ || item == next_; });
    kept_[item].emplace(std::move(sums));
    ++count_;
    if (adding_) return;
    adding_ = true;
    while (next_ < static_cast<int64_t>(kept_.size()) && kept_[next_]) {
      lock.unlock();
      const T* from = kept_[next_]->get();
      for (int64_t i = 0; i < size_; ++i) total_[i] += from[i];
      lock.lock();
      kept_[next_++].reset();
      --count_;
      room_.notify_all();
    }
    adding_ = false;
  }

 private:
  const int64_t size_;
  const int most_;
  T* const total_;
  std::mutex mutex_;
  std::condition_variable room_;
  std::vector<std::optional<Buffer<T>>> kept_;
  int64_t next_ = 0;
  int count_ = 0;
  bool adding_ = false;
};

// Sums `size` values over the items: work(item, sums, scratch) computes the sums of one item, and they are added to the
// total in the order of the items.
template <class T, class F>
void sum_items(int64_t items, int64_t size, int64_t scratch, T* total, F work) {
  std::fill_n(total, size, T(0));
  OrderedTotal<T> ordered(items, size, total);
  share(items, [&](auto next) {
    int64_t item = next();
    if (item == items) return;
    const Buffer<T> own(scratch);
    for (; item < items; item = next()) {
      Buffer<T> sums(size);
      work(item, sums.get(), own.get());
      ordered.add(item, std::move(sums));
    }
  });
}

}  // namespace dip_fast::cpu
