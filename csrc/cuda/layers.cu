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
                       int channels, Small<K>& small, const Context& context) {
  if (statistics == nullptr) return nullptr;
  Sum<K>* to = context.take<Sum<K>>(4 * channels);
  small.add(Affine<Sum<K>>{statistics, pitch, channels, weight, bias, eps, nullptr, 0, to});
  return to;
}
template <class K>
const Sum<K>* prepared(const Given<K>& of, double eps, Small<K>& small, const Context& context) {
  const int C = of.image.channels;
  return prepared<K>(of.statistics, C, of.weight, of.bias, eps, C, small, context);
}

template <class K>
Pixels<K> pixels_of(const Given<K>& of, const Sum<K>* own, double slope, const Sum<K>* between = nullptr) {
  const int C = of.image.channels;
  Pixels<K> result{of.image, {}};
  if (own != nullptr) {
    result.reading.scale = own;
    result.reading.shift = own + C;
    result.reading.slope = Sum<K>(slope);
  }
  if (between != nullptr) {
    result.reading.scale2 = between;
    result.reading.shift2 = between + C;
  }
  return result;
}

template <class K>
Arriving<K> arriving(const Output<K>& of, int height, int width, int channels, Small<K>& small,
                     const Context& context) {
  Arriving<K> result;
  result.grad = {of.grad, height, width, channels};
  if (of.grad_statistics == nullptr) return result;
  Sum<K>* to = context.take<Sum<K>>(2 * channels);
  small.add(Affine<Sum<K>>{of.statistics, channels, channels, nullptr, nullptr, 0, of.grad_statistics,
                           double(height) * width, to});
  result.output = of.output;
  result.constant = to;
  result.factor = to + channels;
  return result;
}

Depths alike(int depth) { return {depth, {depth, depth, depth, depth}}; }

// Calls `use` with the place for the moments of what a convolution of such sites writes; null: they are not wanted.
template <class K, class Use>
void with_moments(const Work& work, double* statistics, const Context& context, const Use& use) {
  if (statistics == nullptr) return use(nullptr);
  const int64_t count = convolution_parts<K>(work);
  auto* parts = context.take<Moment<Sum<K>>>(count * work.channels);
  use(parts);
  merge_moments<K>(parts, count, work.channels, statistics, work.channels, context.stream);
}

// The way back to `channels` channels of the input, from `offset` of the weight on.  Of what comes out, and of it times
// what was read - centre, the sums go to the norm, and come back, (2, channels); nothing without an image in `read`.
template <class K, class Operand>
const double* run_back(const Operand& operand, const Sites& sites, const Packing<K>& weight,
                       const Digits (&row_taps)[2], const Digits (&column_taps)[2], typename K::Stored* to,
                       const Pixels<K>& read, const Sum<K>* centre, bool through, const NormGradient<K>& norm,
                       Small<K>& small, const Context& context) {
  Packing<K> packing = weight;
  Depths depths{};
  for (int phase = 0; phase < sites.phases(); ++phase) {
    const unsigned taps = row_taps[phase / sites.step].count * column_taps[phase % sites.step].count;
    depths.phase[phase] = rounded_depth<K>(int(taps) * weight.outputs);
    if (depths.phase[phase] > depths.pitch) depths.pitch = depths.phase[phase];
  }
  const Work work{sites, weight.count, operand.quads()};
  packing.rows = factor_rows<K>(work);
  packing.pitch = packing.depth = depths.pitch;
  packing.factors = context.take<typename K::Factor>(int64_t(sites.phases()) * packing.rows * packing.pitch);
  small.add(Pack<K>{packing,
                    Taps::single,
                    sites.phases(),
                    true,
                    sites.step,
                    {row_taps[0], row_taps[1]},
                    {column_taps[0], column_taps[1]}});
  small.flush();

  const bool summed = read.image.data != nullptr;
  const int64_t count = convolution_parts<K>(work);
  Sum<K>* parts = summed ? context.take<Sum<K>>(2 * count * weight.count) : nullptr;
  convolve<K>(operand, work, packing.factors, depths, Back<K>{to, read, centre, through, parts}, context.stream);
  if (!summed) return nullptr;
  double* sums = context.take<double>(2 * weight.count);
  sums_back<K>(parts, count, weight.count, sums, norm, context.stream);
  return sums;
}

// The taps through which any pixel of a phase is read.
Digits taps_of(int phase, int size, int outputs, int taps, int stride, Padding padding) {
  Digits result{0, 0};
  for (int t = 0; t < taps; ++t) {
    bool read = false;
    for (int i = phase; i < size; i += stride) {
      const Readers by = readers(i, t, size, outputs, stride, taps / 2, padding);
      read = read || by.first >= 0 || by.second >= 0;
    }
    if (read) result.add(t);
  }
  return result;
}

template <class K>
Readers2d<K> readers_of(const Arriving<K>& arriving, int height, int width, int taps, int stride, Padding padding) {
  Readers2d<K> result{arriving, height, width, taps, stride, padding, {}, {}};
  for (int phase = 0; phase < stride; ++phase) {
    result.row_taps[phase] = taps_of(phase, height, arriving.grad.height, taps, stride, padding);
    result.column_taps[phase] = taps_of(phase, width, arriving.grad.width, taps, stride, padding);
  }
  return result;
}

template <class K>
Packing<K> packing_of(const Sum<K>* weight, int outputs, int channels, int taps, int offset, int count) {
  Packing<K> result{};
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
NormGradient<K> own_gradient(const Sum<K>* prepared, const Given<K>& given, const GivenGradient<K>& to) {
  return {prepared, given.weight, to.statistics, to.weight, to.bias};
}

// ---- the images of a joined layer

template <class K>
struct Part {  // one of the two
  const Given<K>& given;
  int offset;  // of its channels
  const Sum<K>*own, *between;
  Pixels<K> read, normed;  // through its own norm; through the norm between too

  bool there() const { return given.image.data != nullptr; }
};

template <class K>
struct Join {
  int S, C;
  Part<K> skip, deep;

  Join(const Given<K>& deep_, const Given<K>& skip_, const Between<K>& norm, const Options& options, Small<K>& small,
       const Context& context)
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

  Patch<K, Form::window> thin(Padding padding) const { return {skip.normed, S > 0 ? 3 : 0, 1, padding}; }
};

// From the gradient of what the convolution read of a part, and its sums, to that of its own image.
template <class K>
void go_back(const Part<K>& part, bool upsampled, const Options& options, const double* sums,
             const GivenGradient<K>& to, const Context& context) {
  if (part.between == nullptr && part.own == nullptr) return;
  back_through<K>({to.image, part.read, part.between, sums, own_gradient(part.own, part.given, to), upsampled,
                   upsampled && options.bilinear, to.image},
                  context);
}

}  // namespace

template <class K>
void norm_conv2d(const Given<K>& input, const typename K::Sum* weight, const typename K::Sum* bias, int outputs,
                 int taps, const Options& options, typename K::Stored* output, double* statistics,
                 const Context& context) {
  Small<K> small(context.stream);
  const Sum<K>* own = prepared<K>(input, options.eps, small, context);
  const Patch<K, Form::window> patch{pixels_of(input, own, options.slope), taps, options.stride, options.padding};
  const Sites sites{quotient_up(input.image.height, options.stride), quotient_up(input.image.width, options.stride), 1};
  const int depth = rounded_depth<K>(patch.depth());
  Packing<K> packing = packing_of<K>(weight, outputs, patch.channels(), taps, 0, patch.channels());
  const Work work{sites, outputs, patch.quads()};
  packing.rows = factor_rows<K>(work);
  packing.pitch = packing.depth = depth;
  packing.factors = context.take<typename K::Factor>(int64_t(packing.rows) * depth);
  small.add(Pack<K>{packing, Taps::single, 1, false, 1, {}, {}});
  small.flush();
  with_moments<K>(work, statistics, context, [&](Moment<Sum<K>>* parts) {
    convolve<K>(patch, work, packing.factors, alike(depth), Raw<K>{bias, output, parts}, context.stream);
  });
}

template <class K>
void norm_conv2d_backward(const Output<K>& output, const Given<K>& input, const typename K::Sum* weight, int outputs,
                          int taps, const Options& options, const GivenGradient<K>& to, typename K::Sum* to_weight,
                          typename K::Sum* to_bias, const Context& context) {
  const auto& image = input.image;
  const int C = image.channels;
  Small<K> small(context.stream);
  const Sum<K>* own = prepared<K>(input, options.eps, small, context);
  const Patch<K, Form::window> patch{pixels_of(input, own, options.slope), taps, options.stride, options.padding};
  const Arriving<K> grad = arriving(output, quotient_up(image.height, options.stride),
                                    quotient_up(image.width, options.stride), outputs, small, context);
  if (to.image != nullptr) {
    const Readers2d<K> operand = readers_of(grad, image.height, image.width, taps, options.stride, options.padding);
    run_back<K>(operand, {image.height, image.width, options.stride}, packing_of<K>(weight, outputs, C, taps, 0, C),
                operand.row_taps, operand.column_taps, to.image, own == nullptr ? Pixels<K>{} : patch.image,
                own == nullptr ? nullptr : own + 2 * C, true, own_gradient(own, input, to), small, context);
  }
  small.flush();
  if (to_weight != nullptr) weight_gradient<K>(patch, grad, false, 0, C, to_weight, context);
  if (to_bias != nullptr) column_sums<K>(grad, to_bias, context);
}

template <class K>
void norm_upsample_conv2d(const Given<K>& deep, const Given<K>& skip, const Between<K>& norm,
                          const typename K::Sum* weight, const typename K::Sum* bias, int outputs,
                          const Options& options, typename K::Stored* output, double* statistics,
                          const Context& context) {
  Small<K> small(context.stream);
  const Join<K> join(deep, skip, norm, options, small, context);
  const int H = 2 * deep.image.height, W = 2 * deep.image.width;
  const Sites pixels{H, W, 1}, phases{H, W, 2};
  const int thin = rounded_depth<K>(9 * join.S);
  // The weight for the deep image, `per_tap` channels to each of so many taps, and then for the thin one.
  const auto packed = [&](const Work& work, Taps taps, int count, int per_tap, int of_thin) {
    const int begin = rounded_depth<K>(count * per_tap), layers = work.nine ? 1 : work.sites.phases();
    Packing<K> packing = packing_of<K>(weight, outputs, join.S + join.C, 3, join.S, join.C);
    packing.rows = factor_rows<K>(work);
    packing.pitch = begin + of_thin, packing.depth = begin, packing.per_tap = per_tap;
    packing.factors = context.take<typename K::Factor>(int64_t(layers) * packing.rows * packing.pitch);
    if (count > 0) small.add(Pack<K>{packing, taps, layers, false, 1, {}, {}});
    packing.offset = 0, packing.count = packing.per_tap = join.S, packing.begin = begin, packing.depth = of_thin;
    if (of_thin > 0) small.add(Pack<K>{packing, Taps::single, layers, false, 1, {}, {}});
    return packing.factors;
  };
  const auto packed_to_nearest = [&](const Work& work, int of_thin) {
    return work.nine ? packed(work, Taps::nine, 9, rounded_depth<K>(join.C), of_thin)
                     : packed(work, Taps::folded, 4, join.C, of_thin);
  };
  const auto to_nearest = [&](const Work& work, const typename K::Factor* factors, Padding padding, int of_thin,
                              const Raw<K>& raw) {
    const Patch<K, Form::window> beside = of_thin > 0 ? join.thin(padding) : Patch<K, Form::window>{};
    if (work.nine) {
      convolve_nine<K>({join.deep.normed, padding, beside}, work, factors, rounded_depth<K>(join.C), of_thin, raw,
                       context.stream);
    } else {
      const int begin = rounded_depth<K>(4 * join.C);
      convolve<K>(Joined<K>{{join.deep.normed, 2, 1, padding}, beside, begin}, work, factors, alike(begin + of_thin),
                  raw, context.stream);
    }
  };
  const bool deep_quads = in_fours(join.C), quads = deep_quads && in_fours(join.S);
  if (!options.bilinear) {
    const Work work{phases, outputs, quads, quads && takes_nine<K>(phases, outputs)};
    const auto* factors = packed_to_nearest(work, thin);
    small.flush();
    return with_moments<K>(work, statistics, context, [&](Moment<Sum<K>>* parts) {
      to_nearest(work, factors, options.padding, thin, {bias, output, parts});
    });
  }
  // The image upsampled bilinearly is the one upsampled to the nearest, blurred by (1, 2, 1) / 4 either way with its
  // border repeated, and so is what the convolution gives, except where that reads the padding: at the border.
  const int longest = H > W ? H : W;
  auto* nearest = context.take<typename K::Stored>(int64_t(H) * W * outputs);
  auto* border = context.take<typename K::Stored>(int64_t(4) * longest * outputs);
  const Work work{phases, outputs, deep_quads, deep_quads && takes_nine<K>(phases, outputs)},
      sides{{4, longest, 1}, outputs, deep_quads}, rest{pixels, outputs, in_fours(join.S)};
  const auto *factors = packed_to_nearest(work, 0), *of_sides = packed(sides, Taps::single, 9, join.C, 0),
             *of_rest = packed(rest, Taps::single, 0, join.C, thin);
  small.flush();
  to_nearest(work, factors, Padding::replicate, 0, {nullptr, nearest, nullptr});
  convolve<K>(Bordering<K>{{join.deep.normed, 3, 1, options.padding}}, sides, of_sides,
              alike(rounded_depth<K>(9 * join.C)), Raw<K>{nullptr, border, nullptr}, context.stream);
  with_moments<K>(rest, statistics, context, [&](Moment<Sum<K>>* parts) {
    convolve<K>(join.thin(options.padding), rest, of_rest, alike(thin),
                Blurred<K>{{bias, output, parts}, nearest, border, H, W, longest}, context.stream);
  });
}

template <class K>
void norm_upsample_conv2d_backward(const Output<K>& output, const Given<K>& deep, const Given<K>& skip,
                                   const Between<K>& norm, const typename K::Sum* weight, int outputs,
                                   const Options& options, const GivenGradient<K>& to_deep,
                                   const GivenGradient<K>& to_skip, typename K::Sum* to_norm_weight,
                                   typename K::Sum* to_norm_bias, typename K::Sum* to_weight, typename K::Sum* to_bias,
                                   const Context& context) {
  Small<K> small(context.stream);
  const Join<K> join(deep, skip, norm, options, small, context);
  const int H = deep.image.height, W = deep.image.width, all = join.S + join.C;
  const Arriving<K> grad = arriving(output, 2 * H, 2 * W, outputs, small, context);
  small.flush();
  Arriving<K> to_fields;
  if (to_deep.image != nullptr || to_weight != nullptr) {
    auto* nine = context.take<typename K::Stored>(int64_t(H) * W * 9 * outputs);
    fields<K>(grad, options.bilinear, options.padding, nine, context.stream);
    to_fields.grad = {nine, H, W, 9 * outputs};
  }
  const auto centre = [](const Part<K>& part) {
    return part.between == nullptr ? nullptr : part.between + 2 * part.given.image.channels;
  };
  const auto summed = [](const Part<K>& part) { return part.between == nullptr ? Pixels<K>{} : part.read; };
  const auto to_between = [&](const Part<K>& part) -> NormGradient<K> {
    if (part.between == nullptr) return {};
    return {part.between, norm.weight + part.offset, nullptr, to_norm_weight + part.offset, to_norm_bias + part.offset};
  };
  if (to_deep.image != nullptr) {
    Digits taps{0, 0};
    for (int t = 0; t < 3; ++t) taps.add(t);
    const Digits each[2] = {taps, {0, 0}};
    const Patch<K, Form::window> nine{{to_fields.grad, {}}, 1, 1, Padding::zeros};
    const double* sums =
        run_back<K>(nine, {H, W, 1}, packing_of<K>(weight, outputs, all, 3, join.S, join.C), each, each, to_deep.image,
                    summed(join.deep), centre(join.deep), false, to_between(join.deep), small, context);
    go_back(join.deep, true, options, sums, to_deep, context);
  }
  if (join.S > 0) {
    const Readers2d<K> operand = readers_of(grad, 2 * H, 2 * W, 3, 1, options.padding);
    const double* sums = run_back<K>(operand, {2 * H, 2 * W, 1}, packing_of<K>(weight, outputs, all, 3, 0, join.S),
                                     operand.row_taps, operand.column_taps, to_skip.image, summed(join.skip),
                                     centre(join.skip), false, to_between(join.skip), small, context);
    go_back(join.skip, false, options, sums, to_skip, context);
  }
  if (to_weight != nullptr) {
    // x^T F: what the convolution read of a pixel is that of the small image, as the weights of upsampling add up to 1.
    const Patch<K, Form::window> pixels{join.deep.normed, 1, 1, Padding::zeros};
    weight_gradient<K>(pixels, to_fields, true, join.S, all, to_weight, context);
    if (join.S > 0) weight_gradient<K>(join.thin(options.padding), grad, false, 0, all, to_weight, context);
  }
  if (to_bias != nullptr) column_sums<K>(grad, to_bias, context);
}

#define INSTANTIATE(K)                                                                                              \
  template void norm_conv2d<K>(const Given<K>&, const K::Sum*, const K::Sum*, int, int, const Options&, K::Stored*, \
                               double*, const Context&);                                                            \
  template void norm_conv2d_backward<K>(const Output<K>&, const Given<K>&, const K::Sum*, int, int, const Options&, \
                                        const GivenGradient<K>&, K::Sum*, K::Sum*, const Context&);                 \
  template void norm_upsample_conv2d<K>(const Given<K>&, const Given<K>&, const Between<K>&, const K::Sum*,         \
                                        const K::Sum*, int, const Options&, K::Stored*, double*, const Context&);   \
  template void norm_upsample_conv2d_backward<K>(                                                                   \
      const Output<K>&, const Given<K>&, const Given<K>&, const Between<K>&, const K::Sum*, int, const Options&,    \
      const GivenGradient<K>&, const GivenGradient<K>&, K::Sum*, K::Sum*, K::Sum*, K::Sum*, const Context&);
DIP_FAST_EACH_KIND(INSTANTIATE)

}  // namespace dip_fast::cuda
