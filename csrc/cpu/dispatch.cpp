// Which kernels run: the best that the CPU has, or the level that DIP_FAST_CPU names.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace dip_fast::cpu {
namespace {

const Level* const levels[] = {&avx512, &avx2, &portable};  // best first

bool runs(const Level* level) {
#if defined(__x86_64__)
  if (level == &avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma");
  if (level == &avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return level == &portable;
}

const Level* find(const std::string& name) {
  for (const Level* level : levels)
    if (name == level->name) {
      if (!runs(level)) throw std::invalid_argument("DIP_FAST_CPU: this CPU cannot run " + name);
      return level;
    }
  throw std::invalid_argument("DIP_FAST_CPU must be portable, avx2 or avx512, got " + name);
}

const Level* initial() {
  if (const char* name = std::getenv("DIP_FAST_CPU")) return find(name);
  for (const Level* level : levels)
    if (runs(level)) return level;
  return &portable;
}

const Level*& current() {
  static const Level* level = initial();
  return level;
}

}  // namespace

const Level& level() { return *current(); }

void select(const char* name) { current() = find(name); }

bool has(const char* name) {
  for (const Level* level : levels)
    if (std::string(name) == level->name) return runs(level);
  return false;
}

}  // namespace dip_fast::cpu
