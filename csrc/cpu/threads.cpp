// The pool of threads.
#include "threads.h"

#include <omp.h>
#include <pthread.h>
#include <signal.h>

#include <exception>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dip_fast::cpu {
namespace {

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

// Polls a condition for a tenth of a millisecond or two, which is longer than most pauses between two passes of a step.
// To wake up a thread that sleeps takes as long as many a pass.
template <class F>
bool poll(F condition) {
  for (int i = 0; i < 8000; ++i) {
    if (condition()) return true;
    pause();
  }
  return false;
}

// Runs one pass at a time.  `entries_` holds in one word the number of the pass and how many threads have entered it
// (CLOSED: no more may).  A thread enters by a compare-and-exchange of that word; if it succeeds, the body and the
// context that the thread has read before belong to that pass.
class Pool {
 public:
  void run(int others, void (*body)(void*), void* context) {
    const std::unique_lock one(busy_, std::try_to_lock);
    if (!one.owns_lock()) return body(context);  // another thread's pass has the threads of the pool
    for (; threads_ < others; ++threads_) start();
    body_.store(body, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    most_.store(static_cast<uint32_t>(others), std::memory_order_relaxed);
    left_.store(0, std::memory_order_relaxed);
    failed_ = nullptr;
    const uint32_t pass = ++passes_;
    entries_.store(word(pass, 0), std::memory_order_release);
    called_.store(pass, std::memory_order_release);
    called_.notify_all();
    try {
      body(context);
    } catch (...) {
      fail();
    }
    const uint32_t entered = static_cast<uint32_t>(entries_.exchange(word(pass, CLOSED), std::memory_order_acq_rel));
    const auto all_left = [&] { return left_.load(std::memory_order_acquire) == entered; };
    while (!poll(all_left)) {
      const uint32_t now = left_.load(std::memory_order_acquire);
      if (now != entered) left_.wait(now, std::memory_order_acquire);
    }
    if (failed_) std::rethrow_exception(failed_);
  }

 private:
  static constexpr uint32_t CLOSED = 1u << 30;
  static uint64_t word(uint32_t pass, uint32_t entered) { return static_cast<uint64_t>(pass) << 32 | entered; }

  void start() {
    // The threads of the pool block all signals, which are meant for the threads of the program.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread([this] { serve(); }).detach();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  [[noreturn]] void serve() {
    uint32_t seen = 0;
    for (;;) {
      const auto called = [&] { return called_.load(std::memory_order_acquire) != seen; };
      while (!poll(called)) called_.wait(seen, std::memory_order_acquire);
      seen = called_.load(std::memory_order_acquire);
      uint64_t at = entries_.load(std::memory_order_acquire);
      for (;;) {
        const auto body = body_.load(std::memory_order_relaxed);
        const auto context = context_.load(std::memory_order_relaxed);
        const uint32_t entered = static_cast<uint32_t>(at);
        if (entered >= most_.load(std::memory_order_relaxed)) break;
        if (!entries_.compare_exchange_weak(at, at + 1, std::memory_order_acq_rel)) continue;
        try {
          body(context);
        } catch (...) {
          fail();
        }
        left_.fetch_add(1, std::memory_order_acq_rel);
        left_.notify_one();
        break;
      }
    }
  }

  void fail() {
    const std::lock_guard lock(failing_);
    if (!failed_) failed_ = std::current_exception();
  }

  std::mutex busy_, failing_;
  std::exception_ptr failed_;
  int threads_ = 0;
  uint32_t passes_ = 0;
  std::atomic<uint32_t> called_{0};
  std::atomic<uint64_t> entries_{word(0, CLOSED)};
  std::atomic<uint32_t> left_{0}, most_{0};
  std::atomic<void (*)(void*)> body_{nullptr};
  std::atomic<void*> context_{nullptr};
};

// The pool is never destroyed: its threads run to the end of the process.  A child of fork has none of them and starts
// new ones.
Pool* pool = nullptr;

Pool& the_pool() {
  static std::once_flag once;
  std::call_once(once, [] {
    pool = new Pool;
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
  });
  return *pool;
}

thread_local int own = 0;  // how many threads of the pool run the operators that this thread calls; 0: none

}  // namespace

OwnThreads::OwnThreads() : before_(own) {
  if (own == 0) own = at::get_num_threads();
  omp_set_num_threads(1);
}

OwnThreads::~OwnThreads() {
  if (before_ == 0) omp_set_num_threads(own);
  own = before_;
}

int thread_count() { return own > 0 ? own : at::get_num_threads(); }
bool uses_pool() { return own > 0; }
void run_on_pool(int others, void (*body)(void*), void* context) { the_pool().run(others, body, context); }

}  // namespace dip_fast::cpu
