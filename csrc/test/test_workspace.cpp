// Tests of the workspace: no two blocks share a page while several threads allocate and free at once, and in the end
// all memory is returned to the system.  Exit code 0: passed, 1: failed.
#include <atomic>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "workspace.h"

namespace workspace = dip_fast::workspace;

namespace {

constexpr int64_t PAGE = 4096;  // blocks begin on pages, so two that overlap share one
constexpr int STEPS = 20000;

std::atomic<int> failures = 0;

struct Block {
  unsigned char* at;
  int64_t bytes;
  unsigned char mark;
};

// Each thread marks the pages of its blocks, some of them small and some large, and finds its marks again.
void allocate_and_free(unsigned char thread) {
  std::mt19937 random(thread);
  std::vector<Block> blocks;
  bool held = false;
  for (int step = 0; step < STEPS; ++step) {
    if (random() % 64 == 0) {
      held ? workspace::release() : workspace::hold();
      held = !held;
    }
    if (blocks.size() < 16 && random() % 2 == 0) {
      const int64_t bytes = 1 + random() % (PAGE << random() % 10);
      const Block block{static_cast<unsigned char*>(workspace::allocate(bytes)), bytes,
                        static_cast<unsigned char>(random())};
      for (int64_t i = 0; i < bytes; i += PAGE) block.at[i] = block.mark;
      blocks.push_back(block);
    } else if (!blocks.empty()) {
      std::swap(blocks[random() % blocks.size()], blocks.back());
      const Block block = blocks.back();
      blocks.pop_back();
      for (int64_t i = 0; i < block.bytes; i += PAGE) failures += block.at[i] != block.mark;
      workspace::deallocate(block.at);
    }
  }
  if (held) workspace::release();
  for (const Block& block : blocks) workspace::deallocate(block.at);
}

}  // namespace

int main() {
  std::vector<std::thread> threads;
  for (unsigned char i = 0; i < 4; ++i) threads.emplace_back(allocate_and_free, i);
  for (std::thread& thread : threads) thread.join();
  if (failures > 0) std::fprintf(stderr, "FAILED: %d pages were overwritten by other threads\n", failures.load());
  const int64_t left = workspace::kept_bytes();
  if (left != 0) std::fprintf(stderr, "FAILED: %ld bytes were not returned\n", long(left));
  return failures == 0 && left == 0 ? 0 : 1;
}
