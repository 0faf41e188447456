// The steps of norm_upsample_conv2d, host code.  For layers.cu alone.
//
// The layer concatenates a skip image of S channels with a deep image of C channels upsampled by two, applies a norm if
// there is one, and convolves with a weight (K, S + C, 3, 3).
#pragma once

#include "layer_steps.cuh"

namespace dip_fast::cuda {
namespace {

// ---- what is concatenated

// One of the two images that are concatenated.
template <class K>
struct ConcatInput {
  const NormedInput<K>& input;
  int offset;                         // where its channels begin in the concatenation
  const Sum<K>*own_norm, *mid_norm;   // coefficients; null: none
  NormActImage<K> activated, normed;  // read through own_norm; through mid_norm too

  bool exists() const { return input.image.data != nullptr; }
  int channels() const { return input.image.channels; }
};

template <class K>
struct ConcatInputs {
  int S, C;  // channels of the skip image, 0 without one, and of the deep image
  ConcatInput<K> skip, deep;

  ConcatInputs(const NormedInput<K>& deep_, const NormedInput<K>& skip_, const MidNorm<K>& norm, LayerCall<K>& call)
      : S(skip_.image.data == nullptr ? 0 : skip_.image.channels),
        C(deep_.image.channels),
        skip{skip_, 0, nullptr, nullptr, {}, {}},
        deep{deep_, S, nullptr, nullptr, {}, {}} {
    for (ConcatInput<K>* each : {&skip, &deep})
      if (each->exists()) add_own_norm(*each, call);
    if (norm.weight == nullptr) return;
    call.jobs.flush();
    double* statistics = call.context.template take<double>(2 * (S + C));
    for (ConcatInput<K>* each : {&skip, &deep})
      if (each->exists()) add_mid_norm(*each, norm, statistics, call);
  }

  Patch<K, Sampling::direct> skip_patch(Padding padding) const { return {skip.normed, S > 0 ? 3 : 0, 1, padding}; }

 private:
  void add_own_norm(ConcatInput<K>& of, LayerCall<K>& call) {
    of.own_norm = norm_coefficients<K>(of.input, call);
    of.activated = of.normed = norm_act_image(of.input, of.own_norm, call.options.slope);
  }

  // The norm's statistics, (2, S + C), are those of what is concatenated: for the deep image, of it upsampled.
  void add_mid_norm(ConcatInput<K>& of, const MidNorm<K>& norm, double* statistics, LayerCall<K>& call) {
    double* own_part = statistics + of.offset;
    moments<K>(of.activated, &of == &deep && call.options.bilinear, own_part, S + C, call.context);
    of.mid_norm =
        norm_coefficients<K>(own_part, S + C, norm.weight + of.offset, norm.bias + of.offset, of.channels(), call);
    of.normed = norm_act_image(of.input, of.own_norm, call.options.slope, of.mid_norm);
  }
};

// ---- forward

// The weight (outputs, S + C, 3, 3): the skip image's channels come first.
template <class K>
struct ConcatWeight {
  const Sum<K>* weight;
  int outputs, S, C;

  PackedSlice<K> skip() const { return weight_slice<K>(weight, outputs, S + C, 3, 0, S); }
  PackedSlice<K> deep() const { return weight_slice<K>(weight, outputs, S + C, 3, S, C); }
};

// Packs the weight.  A row holds `taps` taps for the deep image, `per_tap` numbers each, and then `skip_depth` numbers
// for the skip image.
template <class K>
const Factor<K>* pack_concat(const ConcatWeight<K>& weight, const ConvShape& shape, TapSums sums, int taps, int per_tap,
                             int skip_depth, LayerCall<K>& call) {
  const int skip_begin = packed_depth<K>(taps * per_tap), phases = shape.nine_products ? 1 : shape.sites.phases();
  PackedSlice<K> deep = weight.deep(), skip = weight.skip();
  allocate(deep, shape, phases, skip_begin + skip_depth, call.context);
  deep.depth = skip_begin;
  deep.per_tap = per_tap;
  skip.rows = deep.rows;
  skip.pitch = deep.pitch;
  skip.factors = deep.factors;
  skip.begin = skip_begin;
  skip.depth = skip_depth;
  if (taps > 0) call.jobs.add(PackJob<K>{deep, sums, phases, false, 1, {}, {}});
  if (skip_depth > 0) call.jobs.add(PackJob<K>{skip, TapSums::none, phases, false, 1, {}, {}});
  return deep.factors;
}

// Packs the weight as convolve_nearest reads it.
template <class K>
const Factor<K>* pack_nearest(const ConcatWeight<K>& weight, const ConvShape& shape, int skip_depth,
                              LayerCall<K>& call) {
  if (shape.nine_products)
    return pack_concat(weight, shape, TapSums::nine, 9, packed_depth<K>(weight.C), skip_depth, call);
  return pack_concat(weight, shape, TapSums::folded, 4, weight.C, skip_depth, call);
}

// Convolves the deep image, upsampled by nearest neighbour, and with skip_depth > 0 the skip image.
template <class K>
void convolve_nearest(const ConcatInputs<K>& inputs, const ConvShape& shape, const Factor<K>* factors, Padding padding,
                      int skip_depth, const StoreEpilogue<K>& epilogue, const Context& context) {
  const auto skip = skip_depth > 0 ? inputs.skip_patch(padding) : Patch<K, Sampling::direct>{};
  if (shape.nine_products) {
    convolve_nine<K>({inputs.deep.normed, padding, skip}, shape, factors, packed_depth<K>(inputs.C), skip_depth,
                     epilogue, context.stream);
  } else {
    const int skip_begin = packed_depth<K>(4 * inputs.C);
    convolve<K>(ConcatPatch<K>{{inputs.deep.normed, 2, 1, padding}, skip, skip_begin}, shape, factors,
                same_depth(skip_begin + skip_depth), epilogue, context.stream);
  }
}

// The shape of convolve_nearest.  vec4: all channels that it reads are multiples of 4.
template <class K>
ConvShape nearest_shape(int height, int width, int outputs, bool vec4) {
  const Sites sites{height, width, 2};
  return {sites, outputs, vec4, vec4 && nine_products_pay<K>(sites, outputs)};
}

// Where the forward pass writes.
template <class K>
struct ConvOutput {
  const Sum<K>* bias;
  Stored<K>* output;
  double* statistics;  // may be null
  int height, width;
};

template <class K>
void upsample_conv_nearest(const ConcatInputs<K>& inputs, const ConcatWeight<K>& weight, const ConvOutput<K>& to,
                           LayerCall<K>& call) {
  const int skip_depth = packed_depth<K>(9 * inputs.S);
  const ConvShape shape =
      nearest_shape<K>(to.height, to.width, weight.outputs, multiple_of_4(inputs.C) && multiple_of_4(inputs.S));
  const Factor<K>* factors = pack_nearest(weight, shape, skip_depth, call);
  call.jobs.flush();
  with_moments<K>(shape, to.statistics, call.context, [&](Moment<Sum<K>>* parts) {
    convolve_nearest<K>(inputs, shape, factors, call.options.padding, skip_depth, {to.bias, to.output, parts},
                        call.context);
  });
}

// Bilinear upsampling is nearest-neighbour upsampling and a blur by (1, 2, 1) / 4 in both directions, with border
// pixels repeated.  The blur commutes with the convolution except at outputs that read padding, those on the border:
//
//   nearest = conv(deep image upsampled by nearest neighbour)
//   border  = the outputs on the border of conv(deep image upsampled bilinearly)
//   output  = conv(skip image) + bias + (on the border: border, else: blur(nearest))
template <class K>
void upsample_conv_bilinear(const ConcatInputs<K>& inputs, const ConcatWeight<K>& weight, const ConvOutput<K>& to,
                            LayerCall<K>& call) {
  const Context& context = call.context;
  const Padding padding = call.options.padding;
  const int H = to.height, W = to.width, outputs = weight.outputs, longest = H > W ? H : W,
            skip_depth = packed_depth<K>(9 * inputs.S);
  auto* nearest = context.take<Stored<K>>(int64_t(H) * W * outputs);
  auto* border = context.take<Stored<K>>(int64_t(4) * longest * outputs);
  const bool deep_vec4 = multiple_of_4(inputs.C);
  const ConvShape deep_shape = nearest_shape<K>(H, W, outputs, deep_vec4),
                  border_shape{{4, longest, 1}, outputs, deep_vec4},
                  skip_shape{{H, W, 1}, outputs, multiple_of_4(inputs.S)};
  const Factor<K>*nearest_factors = pack_nearest(weight, deep_shape, 0, call),
        *border_factors = pack_concat(weight, border_shape, TapSums::none, 9, inputs.C, 0, call),
        *skip_factors = pack_concat(weight, skip_shape, TapSums::none, 0, inputs.C, skip_depth, call);
  call.jobs.flush();

  convolve_nearest<K>(inputs, deep_shape, nearest_factors, Padding::replicate, 0, {nullptr, nearest, nullptr}, context);
  convolve<K>(BorderPatch<K>{{inputs.deep.normed, 3, 1, padding}}, border_shape, border_factors,
              same_depth(packed_depth<K>(9 * inputs.C)), StoreEpilogue<K>{nullptr, border, nullptr}, context.stream);
  with_moments<K>(skip_shape, to.statistics, context, [&](Moment<Sum<K>>* parts) {
    convolve<K>(inputs.skip_patch(padding), skip_shape, skip_factors, same_depth(skip_depth),
                BlurEpilogue<K>{{to.bias, to.output, parts}, nearest, border, H, W, longest}, context.stream);
  });
}

// ---- backward

// Backward through upsampling and padding: F_t (fields.cu), as the gradient of 9 K low-resolution channels.
template <class K>
OutputGrad<K> upsampling_backward(const OutputGrad<K>& grad, LayerCall<K>& call) {
  const int H = grad.grad.height / 2, W = grad.grad.width / 2, channels = 9 * grad.grad.channels;
  auto* to = call.context.template take<Stored<K>>(int64_t(H) * W * channels);
  tap_grads<K>(grad, call.options.bilinear, call.options.padding, to, call.context.stream);
  OutputGrad<K> result;
  result.grad = {to, H, W, channels};
  return result;
}

// The sums that the gradient of a concatenated input also reduces, for the norm after the concatenation.
template <class K>
NormReduction<K> mid_norm_reduction(const ConcatInput<K>& of, const MidNorm<K>& norm, const MidNormGrad<K>& to) {
  if (of.mid_norm == nullptr) return {};
  return {of.activated,
          of.mid_norm + 2 * of.channels(),
          false,
          {of.mid_norm, norm.weight + of.offset, nullptr, to.weight + of.offset, to.bias + of.offset}};
}

// Backward through the norms and the activation of an input.  to.image holds the gradient of what the convolution read
// and becomes that of the input; sums: what input_gradient reduced.
template <class K>
void backward_through_norms(const ConcatInput<K>& of, bool upsampled, const double* sums, const NormedInputGrad<K>& to,
                            LayerCall<K>& call) {
  if (of.mid_norm == nullptr && of.own_norm == nullptr) return;
  norm_act_backward<K>({to.image, of.activated, of.mid_norm, sums, own_norm_grad(of.input, of.own_norm, to), upsampled,
                        upsampled && call.options.bilinear, to.image},
                       call.context);
}

// dx = sum over t of W_t^T F_t: a product with all nine taps of each pixel, which lie side by side in F.
template <class K>
void deep_gradient(const ConcatInputs<K>& inputs, const ConcatWeight<K>& weight, const OutputGrad<K>& from_taps,
                   const NormReduction<K>& reduction, const NormedInputGrad<K>& to, LayerCall<K>& call) {
  TapList three{0, 0};
  for (int t = 0; t < 3; ++t) three.add(t);
  const Patch<K, Sampling::direct> all_taps{{from_taps.grad, {}}, 1, 1, Padding::zeros};
  const double* sums = input_gradient<K>(all_taps, {from_taps.grad.height, from_taps.grad.width, 1}, weight.deep(),
                                         {{three, {0, 0}}, {three, {0, 0}}}, reduction, to.image, call);
  backward_through_norms(inputs.deep, true, sums, to, call);
}

template <class K>
void skip_gradient(const ConcatInputs<K>& inputs, const ConcatWeight<K>& weight, const OutputGrad<K>& grad,
                   const NormReduction<K>& reduction, const NormedInputGrad<K>& to, LayerCall<K>& call) {
  const int H = grad.grad.height, W = grad.grad.width;
  const TransposedPatch<K> operand = transposed_patch(grad, H, W, 3, 1, call.options.padding);
  const double* sums =
      input_gradient<K>(operand, {H, W, 1}, weight.skip(), phase_taps(operand), reduction, to.image, call);
  backward_through_norms(inputs.skip, false, sums, to, call);
}

}  // namespace
}  // namespace dip_fast::cuda
