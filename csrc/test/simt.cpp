#include "simt.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

namespace simt {

dim3 grid_dim, block_dim, block_idx, thread_idx;
bool reversed = false;

namespace {

constexpr size_t STACK = 128 * 1024;
constexpr int MAX_THREADS = 1024, WARP = 32;
enum class State { ready, at_barrier, at_warp, done };

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

// A fiber starts through its context and continues by _longjmp, which, unlike swapcontext, makes no system call.
struct Fiber {
  std::vector<Copy> copies;
  ucontext_t context;
  jmp_buf place;
  bool entered;
  State state;
  std::unique_ptr<char[]> stack{new char[STACK]};
  alignas(16) char slot[256];
};

std::vector<Fiber> fibers(MAX_THREADS);
ucontext_t outside;
jmp_buf scheduler;
int current = 0;
const std::function<void()>* body = nullptr;
std::unique_ptr<char[]> shared;

[[noreturn]] void fail(const char* why) {
  std::fprintf(stderr, "simt: %s (block %u, %u, %u, thread %d)\n", why, block_idx.x, block_idx.y, block_idx.z, current);
  std::abort();
}

void wait(State state) {
  Fiber& fiber = fibers[current];
  fiber.state = state;
  if (_setjmp(fiber.place) == 0) _longjmp(scheduler, 1);
}

void trampoline() {
  (*body)();
  wait(State::done);
}

void resume(int thread) {
  current = thread;
  thread_idx = dim3(thread, 0, 0);
  Fiber& fiber = fibers[thread];
  if (_setjmp(scheduler) != 0) return;
  if (fiber.entered) _longjmp(fiber.place, 1);
  fiber.entered = true;
  swapcontext(&outside, &fiber.context);
}

// Runs each thread of [begin, end) up to where it waits next, which must be the same kind of place for all.
State phase(int begin, int end) {
  for (int i = begin; i < end; ++i) resume(reversed ? begin + end - 1 - i : i);
  for (int i = begin; i < end; ++i)
    if (fibers[i].state == State::done && !fibers[i].copies.empty())
      fail("a thread ends before its copies have finished");
  for (int i = begin; i < end; ++i)
    if (fibers[i].state != fibers[begin].state) fail("the threads of a block or warp wait at different places");
  return fibers[begin].state;
}

void run_block(int threads) {
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    fiber.entered = false;
    makecontext(&fiber.context, trampoline, 0);
  }
  for (State state = State::ready; state != State::done;) {
    const int warps = threads / WARP;
    State first = State::ready;
    for (int w = 0; w < warps; ++w) {
      const int warp = reversed ? warps - 1 - w : w;
      State at;
      do at = phase(warp * WARP, (warp + 1) * WARP);
      while (at == State::at_warp);
      if (w > 0 && at != first) fail("the warps of a block wait at different places");
      first = at;
    }
    state = first;
  }
}

template <class Block>
void each_block(dim3 grid, Block block) {
  grid_dim = grid;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        block_idx = dim3(x, y, z);
        block();
      }
}

}  // namespace

void barrier() { wait(State::at_barrier); }
void sync_warp() { wait(State::at_warp); }
char* warp_slot() { return fibers[current].slot; }
char* warp_slot(int lane) { return fibers[current / WARP * WARP + lane].slot; }
char* shared_memory() { return shared.get(); }

void copy_async(void* to, const void* from, int bytes) { fibers[current].copies.push_back({to, from, bytes}); }
void wait_for_copies() {
  for (const Copy& copy : fibers[current].copies) std::memcpy(copy.to, copy.from, copy.bytes);
  fibers[current].copies.clear();
}

void run_synchronized(const std::function<void()>& thread, dim3 grid, int threads, int shared_bytes) {
  if (threads % WARP != 0 || threads > MAX_THREADS) fail("a block must be of whole warps, 1024 threads at most");
  body = &thread;
  block_dim = dim3(threads);
  shared.reset(new char[shared_bytes]);  // of exactly this size, so that a sanitizer sees accesses beyond it
  each_block(grid, [&] {
    std::memset(shared.get(), 0xff, shared_bytes);  // NaN in every format
    run_block(threads);
  });
}

void run_independent(const std::function<void()>& thread, dim3 grid, int threads) {
  block_dim = dim3(threads);
  each_block(grid, [&] {
    for (int i = 0; i < threads; ++i) {
      thread_idx = dim3(reversed ? threads - 1 - i : i, 0, 0);
      thread();
    }
  });
}

uint16_t to_bfloat16(float x) {
  const uint32_t bits = as_bits(x);
  if (x != x) return 0x7fff;
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

uint16_t to_half(float x) {
  const uint16_t sign = uint16_t(as_bits(x) >> 16 & 0x8000);
  const double magnitude = std::fabs(double(x));
  if (x != x) return 0x7fff;
  if (magnitude == 0) return sign;
  if (magnitude >= 65520) return uint16_t(sign | 0x7c00);
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  const int unit = std::max(exponent - 11, -24);  // the exponent of the last bit
  const auto steps = uint32_t(std::nearbyint(std::ldexp(magnitude, -unit)));
  // A normal number does not store the first of its 11 bits; rounding up to 2048 carries into the exponent.
  return uint16_t(sign | (unit == -24 ? steps : steps + ((unit + 24) << 10)));
}

float from_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float sign = bits >> 15 ? -1.f : 1.f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(float(fraction), -24);
  return sign * std::ldexp(float(fraction + 1024), exponent - 25);
}

}  // namespace simt
