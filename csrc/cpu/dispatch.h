// The levels: one for each instruction set, with all the kernels that are compiled for it.
//
// To add one, list kernels_<name>.cpp, layers_<name>.cpp, perturb_<name>.cpp and similar_patches_<name>.cpp with their
// flags in csrc/sources.txt, declare the tables that they define (kernels.h, layers.h, perturb.h, masking.h,
// similar_patches.h), and add an entry to LEVELS in dispatch.cpp.  A level may share tables with the one before it.
#pragma once

#include <span>

#include "kernels.h"
#include "layers.h"
#include "masking.h"
#include "perturb.h"
#include "similar_patches.h"

namespace dip_fast::cpu {

struct Level {
  const char* name;        // as in DIP_FAST_CPU
  bool (*is_supported)();  // whether this CPU has the instructions
  const BothPrecisions<UpsampleKernels>& upsample;
  const LayersInFull& layers;
  const LayersTo16Bits& layers_to_16_bits;
  const PerturbKernels& perturb;
  const MaskingKernels& masking;
  const PatchKernels& patches;
};

std::span<const Level> levels();  // slowest first, those included that this CPU does not support

// The level in use: the one that DIP_FAST_CPU or select_level names, else the fastest that this CPU supports.
const Level& level();

// Throws std::invalid_argument if no level has that name or this CPU does not support it.
void select_level(const char* name);

template <class T>
const UpsampleKernels<T>& upsample_kernels() {
  return level().upsample.of<T>();
}

template <class I, class O = I>
const LayerKernels<I, O>& layer_kernels() {
  if constexpr (std::is_same_v<O, BFloat16> && std::is_same_v<I, BFloat16>)
    return level().layers_to_16_bits.bfloat16;
  else if constexpr (std::is_same_v<O, BFloat16>)
    return level().layers_to_16_bits.float32;
  else if constexpr (std::is_same_v<I, BFloat16>)
    return level().layers.from_16_bits;
  else if constexpr (std::is_same_v<I, double>)
    return level().layers.float64;
  else
    return level().layers.float32;
}

}  // namespace dip_fast::cpu
