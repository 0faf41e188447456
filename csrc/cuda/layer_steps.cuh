// The steps that layers are made of, host code: coefficients of norms, packed weights, statistics of outputs, gradients
// of inputs.  For layers.cu alone.
#pragma once

#include "kernels.cuh"

namespace dip_fast::cuda {
namespace {

template <class K>
using Sum = typename K::Sum;
template <class K>
using Factor = typename K::Factor;
template <class K>
using Stored = typename K::Stored;

// One call of a layer.  Its steps add small jobs, and flush them before a kernel that reads the results.
template <class K>
struct LayerCall {
  const Options& options;
  const Context& context;
  SmallJobs<K> jobs;

  LayerCall(const Options& options_, const Context& context_)
      : options(options_), context(context_), jobs(context_.stream) {}
};

// The coefficients of a batch norm, (4, channels), see AffineJob; null without statistics, where there is no norm.
template <class K>
const Sum<K>* norm_coefficients(const double* statistics, int pitch, const Sum<K>* weight, const Sum<K>* bias,
                                int channels, LayerCall<K>& call) {
  if (statistics == nullptr) return nullptr;
  Sum<K>* to = call.context.template take<Sum<K>>(4 * channels);
  call.jobs.add(AffineJob<Sum<K>>{statistics, pitch, channels, weight, bias, call.options.eps, nullptr, 0, to});
  return to;
}
template <class K>
const Sum<K>* norm_coefficients(const NormedInput<K>& input, LayerCall<K>& call) {
  const int C = input.image.channels;
  return norm_coefficients<K>(input.statistics, C, input.weight, input.bias, C, call);
}

// The image, read through its own norm and activation and then through the norm after the concatenation; null: without.
template <class K>
NormActImage<K> norm_act_image(const NormedInput<K>& input, const Sum<K>* own_norm, double slope,
                               const Sum<K>* mid_norm = nullptr) {
  const int C = input.image.channels;
  NormActImage<K> result{input.image, {}};
  if (own_norm != nullptr) {
    result.norm_act.scale = own_norm;
    result.norm_act.shift = own_norm + C;
    result.norm_act.slope = Sum<K>(slope);
  }
  if (mid_norm != nullptr) {
    result.norm_act.scale2 = mid_norm;
    result.norm_act.shift2 = mid_norm + C;
  }
  return result;
}

template <class K>
OutputGrad<K> output_grad(const OutputWithGrads<K>& output, int height, int width, int channels, LayerCall<K>& call) {
  OutputGrad<K> result;
  result.grad = {output.grad, height, width, channels};
  if (output.grad_statistics == nullptr) return result;
  Sum<K>* to = call.context.template take<Sum<K>>(2 * channels);
  call.jobs.add(AffineJob<Sum<K>>{output.statistics, channels, channels, nullptr, nullptr, 0, output.grad_statistics,
                                  double(height) * width, to});
  result.output = output.output;
  result.constant = to;
  result.factor = to + channels;
  return result;
}

template <class K>
NormGrad<K> own_norm_grad(const NormedInput<K>& input, const Sum<K>* coefficients, const NormedInputGrad<K>& to) {
  return {coefficients, input.weight, to.statistics, to.weight, to.bias};
}

// ---- statistics of outputs

// Calls `convolve_into` with memory for the moments of the output's parts, then merges them into the output's
// statistics.  Without statistics there are no moments.
template <class K, class Convolve>
void with_moments(const ConvShape& shape, double* statistics, const Context& context, const Convolve& convolve_into) {
  if (statistics == nullptr) return convolve_into(nullptr);
  const int64_t count = convolution_parts<K>(shape);
  auto* parts = context.take<Moment<Sum<K>>>(count * shape.channels);
  convolve_into(parts);
  merge_moments<K>(parts, count, shape.channels, statistics, shape.channels, context.stream);
}

// ---- packed weights

// The depths where all phases have the same.
Depths same_depth(int depth) { return {depth, {depth, depth, depth, depth}}; }

// Input channels offset .. offset + count - 1 of a weight (outputs, channels, taps, taps), not packed yet.
template <class K>
PackedSlice<K> weight_slice(const Sum<K>* weight, int outputs, int channels, int taps, int offset, int count) {
  PackedSlice<K> result{};
  result.weight = weight;
  result.outputs = outputs;
  result.channels = channels;
  result.taps = taps;
  result.offset = offset;
  result.count = result.per_tap = count;
  return result;
}

// Allocates a packed weight whose rows have `pitch` numbers.
template <class K>
void allocate(PackedSlice<K>& slice, const ConvShape& shape, int phases, int pitch, const Context& context) {
  slice.rows = packed_rows<K>(shape);
  slice.pitch = pitch;
  slice.factors = context.take<Factor<K>>(int64_t(phases) * slice.rows * pitch);
}

// ---- the gradient of an input

// The taps through which pixels phase, phase + stride, ... of a line are read.
TapList taps_of(int phase, int size, int outputs, int taps, int stride, Padding padding) {
  TapList result{0, 0};
  for (int t = 0; t < taps; ++t) {
    bool read = false;
    for (int i = phase; i < size; i += stride) {
      const OutputPair by = outputs_reading(i, t, size, outputs, stride, taps / 2, padding);
      read = read || by.first >= 0 || by.second >= 0;
    }
    if (read) result.add(t);
  }
  return result;
}

template <class K>
TransposedPatch<K> transposed_patch(const OutputGrad<K>& grad, int height, int width, int taps, int stride,
                                    Padding padding) {
  TransposedPatch<K> result{grad, height, width, taps, stride, padding, {}, {}};
  for (int phase = 0; phase < stride; ++phase) {
    result.row_taps[phase] = taps_of(phase, height, grad.grad.height, taps, stride, padding);
    result.column_taps[phase] = taps_of(phase, width, grad.grad.width, taps, stride, padding);
  }
  return result;
}

// The taps of each phase, of rows and of columns.
struct PhaseTaps {
  TapList rows[2], columns[2];

  int count(const Sites& sites, int phase) const {
    return int(rows[phase / sites.step].count * columns[phase % sites.step].count);
  }
};

template <class K>
PhaseTaps phase_taps(const TransposedPatch<K>& patch) {
  return {{patch.row_taps[0], patch.row_taps[1]}, {patch.column_taps[0], patch.column_taps[1]}};
}

template <class K>
Depths transposed_depths(const PhaseTaps& taps, const Sites& sites, int outputs) {
  Depths depths{};
  for (int phase = 0; phase < sites.phases(); ++phase) {
    depths.phase[phase] = packed_depth<K>(taps.count(sites, phase) * outputs);
    if (depths.phase[phase] > depths.pitch) depths.pitch = depths.phase[phase];
  }
  return depths;
}

// What the gradient of an input also reduces for a batch norm, see BackwardEpilogue.
template <class K>
struct NormReduction {
  NormActImage<K> image;  // no image: nothing
  const Sum<K>* mean = nullptr;
  bool through = false;
  NormGrad<K> norm;
};

// The gradient of what a convolution read from `slice.count` input channels: a product of the transposed slice with an
// operand that reads the gradient of the output.  Returns the reduced sums, (2, count), or null.
template <class K, class Operand>
const double* input_gradient(const Operand& operand, const Sites& sites, PackedSlice<K> slice, const PhaseTaps& taps,
                             const NormReduction<K>& reduction, Stored<K>* to, LayerCall<K>& call) {
  const Context& context = call.context;
  const ConvShape shape{sites, slice.count, operand.vec4()};
  const Depths depths = transposed_depths<K>(taps, sites, slice.outputs);
  allocate(slice, shape, sites.phases(), depths.pitch, context);
  slice.depth = depths.pitch;
  call.jobs.add(PackJob<K>{slice,
                           TapSums::none,
                           sites.phases(),
                           true,
                           sites.step,
                           {taps.rows[0], taps.rows[1]},
                           {taps.columns[0], taps.columns[1]}});
  call.jobs.flush();

  const bool reduces = reduction.image.image.data != nullptr;
  const int64_t count = convolution_parts<K>(shape);
  Sum<K>* parts = reduces ? context.take<Sum<K>>(2 * count * slice.count) : nullptr;
  convolve<K>(operand, shape, slice.factors, depths,
              BackwardEpilogue<K>{to, reduction.image, reduction.mean, reduction.through, parts}, context.stream);
  if (!reduces) return nullptr;
  double* sums = context.take<double>(2 * slice.count);
  merge_norm_sums<K>(parts, count, slice.count, sums, reduction.norm, context.stream);
  return sums;
}

}  // namespace
}  // namespace dip_fast::cuda
