#include "workspace.h"

#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <unordered_map>

namespace dip_fast::workspace {
namespace {

struct State {
  std::mutex mutex;
  int64_t holders = 0, bytes = 0, asked = 0;
  std::multimap<int64_t, void*> free;         // by size
  std::unordered_map<void*, int64_t> in_use;  // sizes
};

State& state() {
  static State* const made = new State;  // never destroyed: tensors may outlive the statics
  return *made;
}

void free_all(State& s) {
  for (const auto& [size, block] : s.free) {
    s.bytes -= size;
    std::free(block);
  }
  s.free.clear();
}

}  // namespace

void hold() {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  ++s.holders;
}

void release() {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  if (--s.holders == 0) free_all(s);
}

int64_t kept_bytes() {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  return s.bytes;
}

int64_t system_blocks() {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  return s.asked;
}

void* take(int64_t bytes) {
  constexpr int64_t UNIT = 4096;
  const int64_t wanted = (std::max<int64_t>(bytes, 1) + UNIT - 1) / UNIT * UNIT;
  State& s = state();
  const std::lock_guard lock(s.mutex);
  void* block = nullptr;
  int64_t size = wanted;
  // A block many times as large stays for those that need it.
  if (const auto found = s.free.lower_bound(wanted); found != s.free.end() && found->first <= 8 * wanted) {
    size = found->first, block = found->second;
    s.free.erase(found);
  } else {
    block = std::aligned_alloc(64, wanted);
    if (block == nullptr) {
      free_all(s);
      block = std::aligned_alloc(64, wanted);
    }
    if (block == nullptr) throw std::bad_alloc();
    ++s.asked;
    s.bytes += wanted;
  }
  s.in_use.emplace(block, size);
  return block;
}

void give(void* block) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  const auto found = s.in_use.find(block);
  if (s.holders > 0) {
    s.free.emplace(found->second, block);
  } else {
    s.bytes -= found->second;
    std::free(block);
  }
  s.in_use.erase(found);
}

at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const int64_t bytes = c10::multiply_integers(sizes) * static_cast<int64_t>(options.dtype().itemsize());
  return at::from_blob(take(bytes), sizes, give, options);
}

}  // namespace dip_fast::workspace
