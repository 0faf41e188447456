// Sharing a pass among threads, in the host wrappers.
//
// A pass is a number of items.  Threads take the next one as they come, so that one which the system holds up delays
// its own item alone; no bit of a result depends on who works on what.
//
// The threads are PyTorch's, or a pool of our own while somebody asks for it (`Own`).  PyTorch's, those of OpenMP, all
// have to arrive at the end of each loop, and wait for one another by spinning: where another program wants one of the
// cores, a fused step took 30 times as long (2 cores, one of them busy).  Nobody waits for a thread of the pool that
// has not come.
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

// While it lives, the operators called by this thread run on the pool, as many threads as PyTorch would use, and
// PyTorch's own on this thread alone: else theirs would spin where ours are to work.
class Own {
 public:
  Own();
  ~Own();
  Own(const Own&) = delete;
  Own& operator=(const Own&) = delete;

 private:
  int before_;
};

int thread_count();

// Calls body(context) on this thread and on at most `others` more, those that come before this one is through.
void on_pool(int others, void (*body)(void*), void* context);
bool pool_is_wanted();

// work(next) on as many threads as there are, one an item at most; each calls next() for items until it gives `items`.
template <class F>
void share(int64_t items, F work) {
  std::atomic<int64_t> taken{0};
  const auto next = [&] { return std::min(items, taken.fetch_add(1, std::memory_order_relaxed)); };
  const int64_t threads = std::min(items, static_cast<int64_t>(thread_count()));
  if (threads <= 1) {
    if (items > 0) work(next);
  } else if (pool_is_wanted()) {
    auto body = [&] { work(next); };
    on_pool(static_cast<int>(threads) - 1, [](void* call) { (*static_cast<decltype(body)*>(call))(); }, &body);
  } else {
    at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      if (begin < end) work(next);
    });
  }
}

// Each with memory of its own for a thread, `scratch` elements.
template <class T, class F>
void for_each_item(int64_t items, int64_t scratch, F work) {
  share(items, [&](auto next) {
    int64_t item = next();
    if (item == items) return;
    const Buffer<T> buffer(scratch);
    for (; item < items; item = next()) work(item, buffer.get());
  });
}

// Stretches begin .. end of 0 .. count, each of `step` at most.
template <class F>
void for_each_stretch(int64_t count, int64_t step, F work) {
  const int64_t items = (count + step - 1) / step;
  share(items, [&](auto next) {
    for (int64_t item = next(); item < items; item = next()) work(item * step, std::min(count, (item + 1) * step));
  });
}

// Adds sums to a total in the order of the items that they are of, whoever brings them.  Whoever finds nobody adding
// adds what is next; what comes too early is kept, so that nobody waits, unless as much is kept as is half of the
// threads'.
template <class T>
class InOrder {
 public:
  InOrder(int64_t items, int64_t size, T* total)
      : size_(size), most_(std::max(1, thread_count() / 2)), total_(total), kept_(items) {}

  void bring(int64_t item, Buffer<T> sums) {
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

// Sums `size` values over items: work(item, sums, scratch) gives those of an item, which are added to the total in the
// order of the items.
template <class T, class F>
void sum_items(int64_t items, int64_t size, int64_t scratch, T* total, F work) {
  std::fill_n(total, size, T(0));
  InOrder<T> order(items, size, total);
  share(items, [&](auto next) {
    int64_t item = next();
    if (item == items) return;
    const Buffer<T> own(scratch);
    for (; item < items; item = next()) {
      Buffer<T> sums(size);
      work(item, sums.get(), own.get());
      order.bring(item, std::move(sums));
    }
  });
}

}  // namespace dip_fast::cpu
