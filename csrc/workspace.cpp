#include "workspace.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <unordered_map>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dip_fast::workspace {
namespace {

constexpr int64_t UNIT = 4096;  // sizes are multiples of it
// Blocks smaller than SMALL come from segments of their own, so that they do not divide the free blocks of large sizes.
constexpr int64_t SMALL = 1 << 20, SMALL_SEGMENT = 8 << 20;

#if defined(__linux__)
constexpr int64_t HUGE_PAGE = 2 << 20;

// Memory from the system; if it is to be kept, in huge pages where the system has them.  A block of all channels of an
// image touches a page in each, and where planes are a power of two these compete for a few places in the processor's
// table of pages: with pages of 4 kB reading such blocks takes two to three times as long (docs/notes/step.md).
char* take(int64_t size, bool keep) {
  void* const memory = mmap(nullptr, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  char* const first = static_cast<char*>(memory);
  const int64_t before = -reinterpret_cast<intptr_t>(memory) & (HUGE_PAGE - 1);
  if (before > 0) munmap(first, before);
  if (before < HUGE_PAGE) munmap(first + before + size, HUGE_PAGE - before);
  if (keep) madvise(first + before, size, MADV_HUGEPAGE);  // a wish, which may fail
  return first + before;
}
void give_back(char* memory, int64_t size) { munmap(memory, size); }
#else
char* take(int64_t size, bool) {
  void* const memory = std::aligned_alloc(UNIT, size);
  if (memory == nullptr) throw std::bad_alloc();
  return static_cast<char*>(memory);
}
void give_back(char* memory, int64_t) { std::free(memory); }
#endif

// A part of a segment, which is one allocation from the system; `previous` and `next` are its neighbours in the
// segment.
struct Block {
  char* begin;
  int64_t size;
  bool small, free;
  Block *previous, *next;
};

struct Smaller {
  bool operator()(const Block* a, const Block* b) const {
    return a->size != b->size ? a->size < b->size : a->begin < b->begin;
  }
};

class Arena {
 public:
  void hold() {
    const std::lock_guard lock(mutex_);
    ++holders_;
  }

  void release() {
    const std::lock_guard lock(mutex_);
    if (--holders_ > 0) return;
    for (auto& free : free_) return_segments(free);
  }

  void* allocate(int64_t bytes) {
    const int64_t size = (std::max<int64_t>(bytes, 1) + UNIT - 1) / UNIT * UNIT;
    const bool small = size < SMALL;
    const std::lock_guard lock(mutex_);
    auto& free = free_[small];
    Block key{nullptr, size, small, true, nullptr, nullptr};
    const auto found = free.lower_bound(&key);
    Block* block = found == free.end() ? segment(small ? SMALL_SEGMENT : size, small) : *found;
    if (found != free.end()) free.erase(found);
    if (block->size > size) {
      auto* rest = new Block{block->begin + size, block->size - size, small, true, block, block->next};
      if (rest->next != nullptr) rest->next->previous = rest;
      block->next = rest;
      block->size = size;
      free.insert(rest);
    }
    block->free = false;
    used_.emplace(block->begin, block);
    return block->begin;
  }

  void deallocate(void* begin) {
    const std::lock_guard lock(mutex_);
    const auto found = used_.find(begin);
    Block* block = found->second;
    used_.erase(found);
    auto& free = free_[block->small];
    if (block->next != nullptr && block->next->free) {
      free.erase(block->next);
      merge(block, block->next);
    }
    if (block->previous != nullptr && block->previous->free) {
      block = block->previous;
      free.erase(block);
      merge(block, block->next);
    }
    block->free = true;
    if (holders_ == 0 && whole(block))
      return_segment(block);
    else
      free.insert(block);
  }

  int64_t bytes() {
    const std::lock_guard lock(mutex_);
    return bytes_;
  }

  int64_t segments() {
    const std::lock_guard lock(mutex_);
    return segments_;
  }

 private:
  static bool whole(const Block* block) { return block->previous == nullptr && block->next == nullptr; }

  static void merge(Block* block, Block* next) {
    block->size += next->size;
    block->next = next->next;
    if (block->next != nullptr) block->next->previous = block;
    delete next;
  }

  Block* segment(int64_t size, bool small) {
    // The free segments are too small.  Without this they would stay allocated, though only the first step needed them.
    return_segments(free_[small]);
    char* const memory = take(size, holders_ > 0);
    ++segments_;
    bytes_ += size;
    return new Block{memory, size, small, true, nullptr, nullptr};
  }

  void return_segment(Block* block) {
    bytes_ -= block->size;
    give_back(block->begin, block->size);
    delete block;
  }

  void return_segments(std::set<Block*, Smaller>& free) {
    for (auto at = free.begin(); at != free.end();) {
      Block* block = *at;
      if (!whole(block)) {
        ++at;
        continue;
      }
      at = free.erase(at);
      return_segment(block);
    }
  }

  std::mutex mutex_;
  int64_t holders_ = 0, bytes_ = 0, segments_ = 0;
  std::set<Block*, Smaller> free_[2];
  std::unordered_map<void*, Block*> used_;
};

Arena& arena() {
  static Arena* const instance = new Arena;  // never destroyed: tensors may outlive the statics
  return *instance;
}

}  // namespace

void hold() { arena().hold(); }
void release() { arena().release(); }
int64_t kept_bytes() { return arena().bytes(); }
int64_t system_blocks() { return arena().segments(); }
void* allocate(int64_t bytes) { return arena().allocate(bytes); }
void deallocate(void* block) { arena().deallocate(block); }

at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const int64_t bytes = c10::multiply_integers(sizes) * static_cast<int64_t>(options.dtype().itemsize());
  return at::from_blob(allocate(bytes), sizes, deallocate, options);
}

}  // namespace dip_fast::workspace
