// The fused layers, put together from kernels.  Host code alone: what is launched, in which order, on which memory.
#include "layer_steps.cuh"
#include "layers.h"
#include "upsample_steps.cuh"

namespace dip_fast::cuda {

template <class K>
void norm_conv2d(const NormedInput<K>& input, const typename K::Sum* weight, const typename K::Sum* bias, int outputs,
                 int taps, const Options& options, typename K::Stored* output, double* statistics,
                 const Context& context) {
  LayerCall<K> call(options, context);
  const Sum<K>* norm = norm_coefficients<K>(input, call);
  const Patch<K, Sampling::direct> patch{norm_act_image(input, norm, options.slope), taps, options.stride,
                                         options.padding};
  const Sites sites{ceil_div(input.image.height, options.stride), ceil_div(input.image.width, options.stride), 1};
  const ConvShape shape{sites, outputs, patch.vec4()};
  PackedSlice<K> slice = weight_slice<K>(weight, outputs, patch.channels(), taps, 0, patch.channels());
  const int depth = packed_depth<K>(patch.depth());
  allocate(slice, shape, 1, depth, context);
  slice.depth = depth;
  call.jobs.add(PackJob<K>{slice, TapSums::none, 1, false, 1, {}, {}});
  call.jobs.flush();
  with_moments<K>(shape, statistics, context, [&](Moment<Sum<K>>* parts) {
    convolve<K>(patch, shape, slice.factors, same_depth(depth), StoreEpilogue<K>{bias, output, parts}, context.stream);
  });
}

template <class K>
void norm_conv2d_backward(const OutputWithGrads<K>& output, const NormedInput<K>& input, const typename K::Sum* weight,
                          int outputs, int taps, const Options& options, const NormedInputGrad<K>& grad_input,
                          typename K::Sum* grad_weight, typename K::Sum* grad_bias, const Context& context) {
  const int H = input.image.height, W = input.image.width, C = input.image.channels, stride = options.stride;
  LayerCall<K> call(options, context);
  const Sum<K>* norm = norm_coefficients<K>(input, call);
  const Patch<K, Sampling::direct> patch{norm_act_image(input, norm, options.slope), taps, stride, options.padding};
  const OutputGrad<K> grad = output_grad(output, ceil_div(H, stride), ceil_div(W, stride), outputs, call);
  if (grad_input.image != nullptr) {
    const TransposedPatch<K> operand = transposed_patch(grad, H, W, taps, stride, options.padding);
    NormReduction<K> reduction;
    if (norm != nullptr) reduction = {patch.source, norm + 2 * C, true, own_norm_grad(input, norm, grad_input)};
    input_gradient<K>(operand, {H, W, stride}, weight_slice<K>(weight, outputs, C, taps, 0, C), phase_taps(operand),
                      reduction, grad_input.image, call);
  }
  call.jobs.flush();
  if (grad_weight != nullptr) weight_gradient<K>(patch, grad, false, 0, C, grad_weight, context);
  if (grad_bias != nullptr) channel_sums<K>(grad, grad_bias, context);
}

template <class K>
void norm_upsample_conv2d(const NormedInput<K>& deep, const NormedInput<K>& skip, const MidNorm<K>& norm,
                          const typename K::Sum* weight, const typename K::Sum* bias, int outputs,
                          const Options& options, typename K::Stored* output, double* statistics,
                          const Context& context) {
  LayerCall<K> call(options, context);
  const ConcatInputs<K> inputs(deep, skip, norm, call);
  const ConcatWeight<K> concat_weight{weight, outputs, inputs.S, inputs.C};
  const ConvOutput<K> to{bias, output, statistics, 2 * deep.image.height, 2 * deep.image.width};
  if (options.bilinear)
    upsample_conv_bilinear(inputs, concat_weight, to, call);
  else
    upsample_conv_nearest(inputs, concat_weight, to, call);
}

template <class K>
void norm_upsample_conv2d_backward(const OutputWithGrads<K>& output, const NormedInput<K>& deep,
                                   const NormedInput<K>& skip, const MidNorm<K>& norm, const typename K::Sum* weight,
                                   int outputs, const Options& options, const NormedInputGrad<K>& grad_deep,
                                   const NormedInputGrad<K>& grad_skip, const MidNormGrad<K>& grad_norm,
                                   typename K::Sum* grad_weight, typename K::Sum* grad_bias, const Context& context) {
  LayerCall<K> call(options, context);
  const ConcatInputs<K> inputs(deep, skip, norm, call);
  const int S = inputs.S, C = inputs.C;
  const ConcatWeight<K> concat_weight{weight, outputs, S, C};
  const OutputGrad<K> grad = output_grad(output, 2 * deep.image.height, 2 * deep.image.width, outputs, call);
  call.jobs.flush();
  OutputGrad<K> from_taps;
  if (grad_deep.image != nullptr || grad_weight != nullptr) from_taps = upsampling_backward(grad, call);
  if (grad_deep.image != nullptr)
    deep_gradient(inputs, concat_weight, from_taps, mid_norm_reduction(inputs.deep, norm, grad_norm), grad_deep, call);
  if (S > 0)
    skip_gradient(inputs, concat_weight, grad, mid_norm_reduction(inputs.skip, norm, grad_norm), grad_skip, call);
  if (grad_weight != nullptr) {
    // dW_t = x^T F_t, with x read at the low resolution: the norm after upsampling is affine and the weights of
    // upsampling add up to 1, so the two commute.
    const Patch<K, Sampling::direct> pixels{inputs.deep.normed, 1, 1, Padding::zeros};
    weight_gradient<K>(pixels, from_taps, true, S, S + C, grad_weight, context);
    if (S > 0) weight_gradient<K>(inputs.skip_patch(options.padding), grad, false, 0, S + C, grad_weight, context);
  }
  if (grad_bias != nullptr) channel_sums<K>(grad, grad_bias, context);
}

#define INSTANTIATE(K)                                                                                                 \
  template void norm_conv2d<K>(const NormedInput<K>&, const K::Sum*, const K::Sum*, int, int, const Options&,          \
                               K::Stored*, double*, const Context&);                                                   \
  template void norm_conv2d_backward<K>(const OutputWithGrads<K>&, const NormedInput<K>&, const K::Sum*, int, int,     \
                                        const Options&, const NormedInputGrad<K>&, K::Sum*, K::Sum*, const Context&);  \
  template void norm_upsample_conv2d<K>(const NormedInput<K>&, const NormedInput<K>&, const MidNorm<K>&,               \
                                        const K::Sum*, const K::Sum*, int, const Options&, K::Stored*, double*,        \
                                        const Context&);                                                               \
  template void norm_upsample_conv2d_backward<K>(const OutputWithGrads<K>&, const NormedInput<K>&,                     \
                                                 const NormedInput<K>&, const MidNorm<K>&, const K::Sum*, int,         \
                                                 const Options&, const NormedInputGrad<K>&, const NormedInputGrad<K>&, \
                                                 const MidNormGrad<K>&, K::Sum*, K::Sum*, const Context&);
DIP_FAST_EACH_KIND(INSTANTIATE)

}  // namespace dip_fast::cuda
