// The operators of whole layers, put together from the kernels.
#include "kernels.cuh"
#include "layers.h"

namespace dip_fast::cuda {
namespace {

template <class K>
using Sum = typename K::Sum;

// scale, shift, mean and deviation of a norm: (4, C).  Null where there is none.
template <class K>
const Sum<K>* prepared(const double* statistics, int pitch, const Sum<K>* weight, const Sum<K>* bias, double eps,
                       int channels, SmallJobs<K>& small, const Context& context) {
  if (statistics == nullptr) return nullptr;
  Sum<K>* to = context.take<Sum<K>>(4 * channels);
  small.add(AffineJob<Sum<K>>{statistics, pitch, channels, weight, bias, eps, nullptr, 0, to});
  return to;
}
template <class K>
const Sum<K>* prepared(const NormedInput<K>& of, double eps, SmallJobs<K>& small, const Context& context) {
  const int C = of.image.channels;
  return prepared<K>(of.statistics, C, of.weight, of.bias, eps, C, small, context);
}

template <class K>
NormActImage<K> pixels_of(const NormedInput<K>& of, const Sum<K>* own, double slope, const Sum<K>* between = nullptr) {
  const int C = of.image.channels;
  NormActImage<K> result{of.image, {}};
  if (own != nullptr) {
    result.norm_act.scale = own;
    result.norm_act.shift = own + C;
    result.norm_act.slope = Sum<K>(slope);
  }
  if (between != nullptr) {
    result.norm_act.scale2 = between;
    result.norm_act.shift2 = between + C;
  }
  return result;
}

template <class K>
OutputGrad<K> output_grad(const OutputWithGrads<K>& of, int height, int width, int channels, SmallJobs<K>& small,
                          const Context& context) {
  OutputGrad<K> result;
  result.grad = {of.grad, height, width, channels};
  if (of.grad_statistics == nullptr) return result;
  Sum<K>* to = context.take<Sum<K>>(2 * channels);
  small.add(AffineJob<Sum<K>>{of.statistics, channels, channels, nullptr, nullptr, 0, of.grad_statistics,
                              double(height) * width, to});
  result.output = of.output;
  result.constant = to;
  result.factor = to + channels;
  return result;
}

Depths alike(int depth) { return {depth, {depth, depth, depth, depth}}; }

// Calls `use` with the place for the moments of what a convolution of such sites writes; null: they are not wanted.
template <class K, class Use>
void with_moments(const ConvShape& shape, double* statistics, const Context& context, const Use& use) {
  if (statistics == nullptr) return use(nullptr);
  const int64_t count = convolution_parts<K>(shape);
  auto* parts = context.take<Moment<Sum<K>>>(count * shape.channels);
  use(parts);
  merge_moments<K>(parts, count, shape.channels, statistics, shape.channels, context.stream);
}

// The way back to `channels` channels of the input, from `offset` of the weight on.  Of what comes out, and of it times
// what was read - centre, the sums go to the norm, and come back, (2, channels); nothing without an image in `read`.
template <class K, class Operand>
const double* run_back(const Operand& operand, const Sites& sites, const PackedSlice<K>& weight,
                       const TapList (&row_taps)[2], const TapList (&column_taps)[2], typename K::Stored* to,
                       const NormActImage<K>& read, const Sum<K>* centre, bool through, const NormGrad<K>& norm,
                       SmallJobs<K>& small, const Context& context) {
  PackedSlice<K> packing = weight;
  Depths depths{};
  for (int phase = 0; phase < sites.phases(); ++phase) {
    const unsigned taps = row_taps[phase / sites.step].count * column_taps[phase % sites.step].count;
    depths.phase[phase] = packed_depth<K>(int(taps) * weight.outputs);
    if (depths.phase[phase] > depths.pitch) depths.pitch = depths.phase[phase];
  }
  const ConvShape shape{sites, weight.count, operand.vec4()};
  packing.rows = packed_rows<K>(shape);
  packing.pitch = packing.depth = depths.pitch;
  packing.factors = context.take<typename K::Factor>(int64_t(sites.phases()) * packing.rows * packing.pitch);
  small.add(PackJob<K>{packing,
                       TapSums::none,
                       sites.phases(),
                       true,
                       sites.step,
                       {row_taps[0], row_taps[1]},
                       {column_taps[0], column_taps[1]}});
  small.flush();

  const bool summed = read.image.data != nullptr;
  const int64_t count = convolution_parts<K>(shape);
  Sum<K>* parts = summed ? context.take<Sum<K>>(2 * count * weight.count) : nullptr;
  convolve<K>(operand, shape, packing.factors, depths, BackwardEpilogue<K>{to, read, centre, through, parts},
              context.stream);
  if (!summed) return nullptr;
  double* sums = context.take<double>(2 * weight.count);
  merge_norm_sums<K>(parts, count, weight.count, sums, norm, context.stream);
  return sums;
}

// The taps through which any pixel of a phase is read.
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
TransposedPatch<K> readers_of(const OutputGrad<K>& output_grad, int height, int width, int taps, int stride,
                              Padding padding) {
  TransposedPatch<K> result{output_grad, height, width, taps, stride, padding, {}, {}};
  for (int phase = 0; phase < stride; ++phase) {
    result.row_taps[phase] = taps_of(phase, height, output_grad.grad.height, taps, stride, padding);
    result.column_taps[phase] = taps_of(phase, width, output_grad.grad.width, taps, stride, padding);
  }
  return result;
}

template <class K>
PackedSlice<K> packing_of(const Sum<K>* weight, int outputs, int channels, int taps, int offset, int count) {
  PackedSlice<K> result{};
  result.weight = weight;
  result.outputs = outputs;
  result.channels = channels;
  result.taps = taps;
  result.offset = offset;
  result.count = result.per_tap = count;
  return result;
}

// The gradient of the norm of an image, which is prepared; without one nothing is wanted.
template <class K>
NormGrad<K> own_gradient(const Sum<K>* prepared, const NormedInput<K>& given, const NormedInputGrad<K>& to) {
  return {prepared, given.weight, to.statistics, to.weight, to.bias};
}

// ---- the images of a joined layer

template <class K>
struct Part {  // one of the two
  const NormedInput<K>& given;
  int offset;  // of its channels
  const Sum<K>*own, *between;
  NormActImage<K> read, normed;  // through its own norm; through the norm between too

  bool there() const { return given.image.data != nullptr; }
};

template <class K>
struct Join {
  int S, C;
  Part<K> skip, deep;

  Join(const NormedInput<K>& deep_, const NormedInput<K>& skip_, const MidNorm<K>& norm, const Options& options,
       SmallJobs<K>& small, const Context& context)
      : S(skip_.image.data == nullptr ? 0 : skip_.image.channels),
        C(deep_.image.channels),
        skip{skip_, 0, nullptr, nullptr, {}, {}},
        deep{deep_, S, nullptr, nullptr, {}, {}} {
    for (Part<K>* part : {&skip, &deep}) {
      if (!part->there()) continue;
      part->own = prepared<K>(part->given, options.eps, small, context);
      part->read = part->normed = pixels_of(part->given, part->own, options.slope);
    }
    if (norm.weight == nullptr) return;
    small.flush();
    double* statistics = context.take<double>(2 * (S + C));
    for (Part<K>* part : {&skip, &deep}) {
      if (!part->there()) continue;
      double* own = statistics + part->offset;
      moments<K>(part->read, part == &deep && options.bilinear, own, S + C, context);
      part->between = prepared<K>(own, S + C, norm.weight + part->offset, norm.bias + part->offset, options.eps,
                                  part->given.image.channels, small, context);
      part->normed = pixels_of(part->given, part->own, options.slope, part->between);
    }
  }

  Patch<K, Sampling::direct> thin(Padding padding) const { return {skip.normed, S > 0 ? 3 : 0, 1, padding}; }
};

// From the gradient of what the convolution read of a part, and its sums, to that of its own image.
template <class K>
void go_back(const Part<K>& part, bool upsampled, const Options& options, const double* sums,
             const NormedInputGrad<K>& to, const Context& context) {
  if (part.between == nullptr && part.own == nullptr) return;
  norm_act_backward<K>({to.image, part.read, part.between, sums, own_gradient(part.own, part.given, to), upsampled,
                        upsampled && options.bilinear, to.image},
                       context);
}

}  // namespace

template <class K>
void norm_conv2d(const NormedInput<K>& input, const typename K::Sum* weight, const typename K::Sum* bias, int outputs,
                 int taps, const Options& options, typename K::Stored* output, double* statistics,
                 const Context& context) {
  SmallJobs<K> small(context.stream);
  const Sum<K>* own = prepared<K>(input, options.eps, small, context);
  const Patch<K, Sampling::direct> patch{pixels_of(input, own, options.slope), taps, options.stride, options.padding};
  const Sites sites{ceil_div(input.image.height, options.stride), ceil_div(input.image.width, options.stride), 1};
  const int depth = packed_depth<K>(patch.depth());
  PackedSlice<K> packing = packing_of<K>(weight, outputs, patch.channels(), taps, 0, patch.channels());
  const ConvShape shape{sites, outputs, patch.vec4()};
  packing.rows = packed_rows<K>(shape);
  packing.pitch = packing.depth = depth;
  packing.factors = context.take<typename K::Factor>(int64_t(packing.rows) * depth);
  small.add(PackJob<K>{packing, TapSums::none, 1, false, 1, {}, {}});
  small.flush();
  with_moments<K>(shape, statistics, context, [&](Moment<Sum<K>>* parts) {
    convolve<K>(patch, shape, packing.factors, alike(depth), StoreEpilogue<K>{bias, output, parts}, context.stream);
  });
}

template <class K>
void norm_conv2d_backward(const OutputWithGrads<K>& output, const NormedInput<K>& input, const typename K::Sum* weight,
                          int outputs, int taps, const Options& options, const NormedInputGrad<K>& to,
                          typename K::Sum* grad_weight, typename K::Sum* grad_bias, const Context& context) {
  const auto& image = input.image;
  const int C = image.channels;
  SmallJobs<K> small(context.stream);
  const Sum<K>* own = prepared<K>(input, options.eps, small, context);
  const Patch<K, Sampling::direct> patch{pixels_of(input, own, options.slope), taps, options.stride, options.padding};
  const OutputGrad<K> grad = output_grad(output, ceil_div(image.height, options.stride),
                                         ceil_div(image.width, options.stride), outputs, small, context);
  if (to.image != nullptr) {
    const TransposedPatch<K> operand =
        readers_of(grad, image.height, image.width, taps, options.stride, options.padding);
    run_back<K>(operand, {image.height, image.width, options.stride}, packing_of<K>(weight, outputs, C, taps, 0, C),
                operand.row_taps, operand.column_taps, to.image, own == nullptr ? NormActImage<K>{} : patch.source,
                own == nullptr ? nullptr : own + 2 * C, true, own_gradient(own, input, to), small, context);
  }
  small.flush();
  if (grad_weight != nullptr) weight_gradient<K>(patch, grad, false, 0, C, grad_weight, context);
  if (grad_bias != nullptr) channel_sums<K>(grad, grad_bias, context);
}

template <class K>
void norm_upsample_conv2d(const NormedInput<K>& deep, const NormedInput<K>& skip, const MidNorm<K>& norm,
                          const typename K::Sum* weight, const typename K::Sum* bias, int outputs,
                          const Options& options, typename K::Stored* output, double* statistics,
                          const Context& context) {
  SmallJobs<K> small(context.stream);
  const Join<K> join(deep, skip, norm, options, small, context);
  const int H = 2 * deep.image.height, W = 2 * deep.image.width;
  const Sites pixels{H, W, 1}, phases{H, W, 2};
  const int thin = packed_depth<K>(9 * join.S);
  // The weight for the deep image, `per_tap` channels to each of so many taps, and then for the thin one.
  const auto packed = [&](const ConvShape& shape, TapSums taps, int count, int per_tap, int of_thin) {
    const int begin = packed_depth<K>(count * per_tap), layers = shape.nine_products ? 1 : shape.sites.phases();
    PackedSlice<K> packing = packing_of<K>(weight, outputs, join.S + join.C, 3, join.S, join.C);
    packing.rows = packed_rows<K>(shape);
    packing.pitch = begin + of_thin, packing.depth = begin, packing.per_tap = per_tap;
    packing.factors = context.take<typename K::Factor>(int64_t(layers) * packing.rows * packing.pitch);
    if (count > 0) small.add(PackJob<K>{packing, taps, layers, false, 1, {}, {}});
    packing.offset = 0, packing.count = packing.per_tap = join.S, packing.begin = begin, packing.depth = of_thin;
    if (of_thin > 0) small.add(PackJob<K>{packing, TapSums::none, layers, false, 1, {}, {}});
    return packing.factors;
  };
  const auto packed_to_nearest = [&](const ConvShape& shape, int of_thin) {
    return shape.nine_products ? packed(shape, TapSums::nine, 9, packed_depth<K>(join.C), of_thin)
                               : packed(shape, TapSums::folded, 4, join.C, of_thin);
  };
  const auto to_nearest = [&](const ConvShape& shape, const typename K::Factor* factors, Padding padding, int of_thin,
                              const StoreEpilogue<K>& raw) {
    const Patch<K, Sampling::direct> beside = of_thin > 0 ? join.thin(padding) : Patch<K, Sampling::direct>{};
    if (shape.nine_products) {
      convolve_nine<K>({join.deep.normed, padding, beside}, shape, factors, packed_depth<K>(join.C), of_thin, raw,
                       context.stream);
    } else {
      const int begin = packed_depth<K>(4 * join.C);
      convolve<K>(ConcatPatch<K>{{join.deep.normed, 2, 1, padding}, beside, begin}, shape, factors,
                  alike(begin + of_thin), raw, context.stream);
    }
  };
  const bool deep_quads = multiple_of_4(join.C), quads = deep_quads && multiple_of_4(join.S);
  if (!options.bilinear) {
    const ConvShape shape{phases, outputs, quads, quads && nine_products_pay<K>(phases, outputs)};
    const auto* factors = packed_to_nearest(shape, thin);
    small.flush();
    return with_moments<K>(shape, statistics, context, [&](Moment<Sum<K>>* parts) {
      to_nearest(shape, factors, options.padding, thin, {bias, output, parts});
    });
  }
  // The image upsampled bilinearly is the one upsampled to the nearest, blurred by (1, 2, 1) / 4 either way with its
  // border repeated, and so is what the convolution gives, except where that reads the padding: at the border.
  const int longest = H > W ? H : W;
  auto* nearest = context.take<typename K::Stored>(int64_t(H) * W * outputs);
  auto* border = context.take<typename K::Stored>(int64_t(4) * longest * outputs);
  const ConvShape shape{phases, outputs, deep_quads, deep_quads && nine_products_pay<K>(phases, outputs)},
      sides{{4, longest, 1}, outputs, deep_quads}, rest{pixels, outputs, multiple_of_4(join.S)};
  const auto *factors = packed_to_nearest(shape, 0), *of_sides = packed(sides, TapSums::none, 9, join.C, 0),
             *of_rest = packed(rest, TapSums::none, 0, join.C, thin);
  small.flush();
  to_nearest(shape, factors, Padding::replicate, 0, {nullptr, nearest, nullptr});
  convolve<K>(BorderPatch<K>{{join.deep.normed, 3, 1, options.padding}}, sides, of_sides,
              alike(packed_depth<K>(9 * join.C)), StoreEpilogue<K>{nullptr, border, nullptr}, context.stream);
  with_moments<K>(rest, statistics, context, [&](Moment<Sum<K>>* parts) {
    convolve<K>(join.thin(options.padding), rest, of_rest, alike(thin),
                BlurEpilogue<K>{{bias, output, parts}, nearest, border, H, W, longest}, context.stream);
  });
}

template <class K>
void norm_upsample_conv2d_backward(const OutputWithGrads<K>& output, const NormedInput<K>& deep,
                                   const NormedInput<K>& skip, const MidNorm<K>& norm, const typename K::Sum* weight,
                                   int outputs, const Options& options, const NormedInputGrad<K>& grad_deep,
                                   const NormedInputGrad<K>& grad_skip, typename K::Sum* grad_norm_weight,
                                   typename K::Sum* grad_norm_bias, typename K::Sum* grad_weight,
                                   typename K::Sum* grad_bias, const Context& context) {
  SmallJobs<K> small(context.stream);
  const Join<K> join(deep, skip, norm, options, small, context);
  const int H = deep.image.height, W = deep.image.width, all = join.S + join.C;
  const OutputGrad<K> grad = output_grad(output, 2 * H, 2 * W, outputs, small, context);
  small.flush();
  OutputGrad<K> to_fields;
  if (grad_deep.image != nullptr || grad_weight != nullptr) {
    auto* nine = context.take<typename K::Stored>(int64_t(H) * W * 9 * outputs);
    tap_grads<K>(grad, options.bilinear, options.padding, nine, context.stream);
    to_fields.grad = {nine, H, W, 9 * outputs};
  }
  const auto centre = [](const Part<K>& part) {
    return part.between == nullptr ? nullptr : part.between + 2 * part.given.image.channels;
  };
  const auto summed = [](const Part<K>& part) { return part.between == nullptr ? NormActImage<K>{} : part.read; };
  const auto to_between = [&](const Part<K>& part) -> NormGrad<K> {
    if (part.between == nullptr) return {};
    return {part.between, norm.weight + part.offset, nullptr, grad_norm_weight + part.offset,
            grad_norm_bias + part.offset};
  };
  if (grad_deep.image != nullptr) {
    TapList taps{0, 0};
    for (int t = 0; t < 3; ++t) taps.add(t);
    const TapList each[2] = {taps, {0, 0}};
    const Patch<K, Sampling::direct> nine{{to_fields.grad, {}}, 1, 1, Padding::zeros};
    const double* sums = run_back<K>(nine, {H, W, 1}, packing_of<K>(weight, outputs, all, 3, join.S, join.C), each,
                                     each, grad_deep.image, summed(join.deep), centre(join.deep), false,
                                     to_between(join.deep), small, context);
    go_back(join.deep, true, options, sums, grad_deep, context);
  }
  if (join.S > 0) {
    const TransposedPatch<K> operand = readers_of(grad, 2 * H, 2 * W, 3, 1, options.padding);
    const double* sums = run_back<K>(operand, {2 * H, 2 * W, 1}, packing_of<K>(weight, outputs, all, 3, 0, join.S),
                                     operand.row_taps, operand.column_taps, grad_skip.image, summed(join.skip),
                                     centre(join.skip), false, to_between(join.skip), small, context);
    go_back(join.skip, false, options, sums, grad_skip, context);
  }
  if (grad_weight != nullptr) {
    // x^T F: what the convolution read of a pixel is that of the small image, as the weights of upsampling add up to 1.
    const Patch<K, Sampling::direct> pixels{join.deep.normed, 1, 1, Padding::zeros};
    weight_gradient<K>(pixels, to_fields, true, join.S, all, grad_weight, context);
    if (join.S > 0) weight_gradient<K>(join.thin(options.padding), grad, false, 0, all, grad_weight, context);
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
                                                 K::Sum*, K::Sum*, K::Sum*, K::Sum*, const Context&);
DIP_FAST_EACH_KIND(INSTANTIATE)

}  // namespace dip_fast::cuda
