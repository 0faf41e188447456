// The table of levels, and the choice of one: the fastest that the CPU supports, or the one that DIP_FAST_CPU names.
#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace dip_fast::cpu {
namespace {

bool any_cpu() { return true; }

#if defined(__x86_64__)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma");
}
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_avx512_bf16() { return false; }
#endif

const Level LEVELS[] = {
    // slowest first
    {"portable", any_cpu, upsample_portable, layers_portable, layers_to_16_portable, perturb_portable, masking_portable,
     patches_portable},
    {"avx2", has_avx2, upsample_avx2, layers_avx2, layers_to_16_avx2, perturb_avx2, masking_avx2, patches_avx2},
    {"avx512", has_avx512, upsample_avx512, layers_avx512, layers_to_16_avx512, perturb_avx512, masking_avx512,
     patches_avx512},
    {"avx512_bf16", has_avx512_bf16, upsample_avx512, layers_avx512, layers_to_16_avx512_bf16, perturb_avx512,
     masking_avx512, patches_avx512},
};

// "portable, avx2, avx512 or avx512_bf16"
std::string names() {
  std::string result;
  const size_t count = std::size(LEVELS);
  for (size_t i = 0; i < count; ++i) {
    if (i > 0) result += i + 1 == count ? " or " : ", ";
    result += LEVELS[i].name;
  }
  return result;
}

const Level* find(const std::string& name) {
  for (const Level& level : LEVELS) {
    if (name != level.name) continue;
    if (!level.is_supported()) throw std::invalid_argument("DIP_FAST_CPU: this CPU cannot run " + name);
    return &level;
  }
  throw std::invalid_argument("DIP_FAST_CPU must be " + names() + ", got " + name);
}

const Level* first_choice() {
  if (const char* name = std::getenv("DIP_FAST_CPU")) return find(name);
  const Level* fastest = LEVELS;
  for (const Level& level : LEVELS)
    if (level.is_supported()) fastest = &level;
  return fastest;
}

const Level*& current() {
  static const Level* level = first_choice();
  return level;
}

}  // namespace

std::span<const Level> levels() { return LEVELS; }

const Level& level() { return *current(); }

void select_level(const char* name) { current() = find(name); }

}  // namespace dip_fast::cpu
