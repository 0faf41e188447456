// What the library offers besides the operators: how it was built, which kernels run, the threads and the workspace.
//
// These are C functions, which dip_fast/ops/interface.py calls through ctypes: the library depends on no version of
// Python.  No exception may leave them; a function that can fail returns its message, which is valid until the thread
// calls one of these functions again, or null.
#include <atomic>
#include <exception>
#include <string>

#include "cpu/dispatch.h"
#include "cpu/threads.h"
#include "workspace.h"

#define DIP_FAST_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// Without -fopenmp at::parallel_for compiles to a plain loop, silently.
#ifdef _OPENMP
#define DIP_FAST_PARALLEL "true"
#else
#define DIP_FAST_PARALLEL "false"
#endif

#ifdef DIP_FAST_CUDA
#define DIP_FAST_HAS_CUDA "true"
#else
#define DIP_FAST_HAS_CUDA "false"
#endif

template <class F>
const char* message_of(F call) {
  static thread_local std::string message;
  try {
    call();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}

}  // namespace

// Chooses the kernels; fails if DIP_FAST_CPU names none that this CPU can run.
DIP_FAST_EXPORT const char* dip_fast_initialise() {
  return message_of([] { dip_fast::cpu::level(); });
}

// JSON: the version of torch, whether loops are parallel, whether there are CUDA kernels.
DIP_FAST_EXPORT const char* dip_fast_build_information() {
  return "{\"torch\": \"" DIP_FAST_TORCH_VERSION "\", \"parallel\": " DIP_FAST_PARALLEL ", \"cuda\": " DIP_FAST_HAS_CUDA
         "}";
}

// The instruction sets that this CPU supports, slowest first, with spaces between them.
DIP_FAST_EXPORT const char* dip_fast_cpu_levels() {
  static const std::string names = [] {
    std::string result;
    for (const dip_fast::cpu::Level& level : dip_fast::cpu::levels())
      if (level.is_supported()) result += (result.empty() ? "" : " ") + std::string(level.name);
    return result;
  }();
  return names.c_str();
}

// The instruction set whose kernels are in use.
DIP_FAST_EXPORT const char* dip_fast_cpu_level() { return dip_fast::cpu::level().name; }

// Uses the kernels of another instruction set from here on; fails if this CPU does not support it.
DIP_FAST_EXPORT const char* dip_fast_select_cpu_level(const char* name) {
  return message_of([name] { dip_fast::cpu::select_level(name); });
}

// From the first call to the second, the operators that this thread calls run on threads of their own.
DIP_FAST_EXPORT void* dip_fast_enter_own_threads() { return new dip_fast::cpu::OwnThreads; }
DIP_FAST_EXPORT void dip_fast_leave_own_threads(void* entered) {
  delete static_cast<dip_fast::cpu::OwnThreads*>(entered);
}

// Lets the micro-kernel of layers that write float32, or 16 bits, make `count` products on each thread that an operator
// would use; returns the number of multiplications of all threads.
DIP_FAST_EXPORT int64_t dip_fast_multiply(int64_t count, bool in_16_bits) {
  constexpr int64_t PARTS = 8;  // of each thread's share, so that none waits long for another
  using dip_fast::cpu::layer_kernels;
  const auto repeat =
      in_16_bits ? layer_kernels<dip_fast::cpu::BFloat16>().repeat_products : layer_kernels<float>().repeat_products;
  std::atomic<int64_t> multiplications{0};
  dip_fast::cpu::for_each_range(PARTS * dip_fast::cpu::thread_count(), 1,
                                [&](int64_t, int64_t) { multiplications += repeat((count + PARTS - 1) / PARTS); });
  return multiplications;
}

DIP_FAST_EXPORT void dip_fast_hold_workspace() { dip_fast::workspace::hold(); }
DIP_FAST_EXPORT void dip_fast_release_workspace() { dip_fast::workspace::release(); }
DIP_FAST_EXPORT int64_t dip_fast_workspace_bytes() { return dip_fast::workspace::kept_bytes(); }
DIP_FAST_EXPORT int64_t dip_fast_workspace_blocks() { return dip_fast::workspace::system_blocks(); }
