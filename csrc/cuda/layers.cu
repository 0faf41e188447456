// The operators of whole layers, put together from the kernels.
#include "kernels.cuh"
#include "layers.h"

namespace dip_fast::cuda {
namespace {

template <class K>
using Sum = typename K::Sum;

// scale, shift, mean and deviation of a norm: (4, C).  Null where there is none.
template <class K>
const Sum<K>* prepared(const Given<K>& of, double eps, const Context& context) {
  if (of.statistics == nullptr) return nullptr;
  const int C = of.image.channels;
  Sum<K>* result = context.take<Sum<K>>(4 * C);
  prepare_reading<K>(of.statistics, C, of.weight, of.bias, eps, C, result, context.stream);
  return result;
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
Arriving<K> arriving(const Output<K>& of, int height, int width, int channels, const Context& context) {
  Arriving<K> result;
  result.grad = {of.grad, height, width, channels};
  if (of.grad_statistics == nullptr) return result;
  Sum<K>* to = context.take<Sum<K>>(2 * channels);
  prepare_arriving<K>(of.statistics, of.grad_statistics, int64_t(height) * width, channels, to, context.stream);
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

// The way back to `channels` channels of the input, from `offset` of the weight on.  Gives the sums of what comes out,
// and of it times what was read - centre, (2, channels); nothing without an image in `read`.
template <class K, class Operand>
const double* run_back(const Operand& operand, const Sites& sites, const Packing<K>& weight,
                       const Digits (&row_taps)[2], const Digits (&column_taps)[2], typename K::Stored* to,
                       const Pixels<K>& read, const Sum<K>* centre, bool through, const Context& context) {
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
  pack_transposed<K>(packing, row_taps, column_taps, sites.step, context.stream);

  const bool summed = read.image.data != nullptr;
  const int64_t count = convolution_parts<K>(work);
  Sum<K>* parts = summed ? context.take<Sum<K>>(2 * count * weight.count) : nullptr;
  convolve<K>(operand, sites, packing.factors, depths, weight.count, Back<K>{to, read, centre, through, parts},
              context.stream);
  if (!summed) return nullptr;
  double* sums = context.take<double>(2 * weight.count);
  sum_parts<K>(parts, count, 2 * weight.count, sums, context.stream);
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

  Join(const Given<K>& deep_, const Given<K>& skip_, const Between<K>& norm, const Options& options,
       const Context& context)
      : S(skip_.image.data == nullptr ? 0 : skip_.image.channels),
        C(deep_.image.channels),
        skip{skip_, 0, nullptr, nullptr, {}, {}},
        deep{deep_, S, nullptr, nullptr, {}, {}} {
    double* statistics = norm.weight == nullptr ? nullptr : context.take<double>(2 * (S + C));
    for (Part<K>* part : {&skip, &deep}) {
      if (!part->there()) continue;
      const int channels = part->given.image.channels;
      part->own = prepared(part->given, options.eps, context);
      part->read = pixels_of(part->given, part->own, options.slope);
      if (norm.weight != nullptr) {
        double* own_statistics = statistics + part->offset;
        moments<K>(part->read, part == &deep && options.bilinear, own_statistics, S + C, context);
        Sum<K>* between = context.take<Sum<K>>(4 * channels);
        prepare_reading<K>(own_statistics, S + C, norm.weight + part->offset, norm.bias + part->offset, options.eps,
                           channels, between, context.stream);
        part->between = between;
      }
      part->normed = pixels_of(part->given, part->own, options.slope, part->between);
    }
  }

  Patch<K, Form::window> thin(Padding padding) const { return {skip.normed, S > 0 ? 3 : 0, 1, padding}; }
};

// From the gradient of what the convolution read of a part, and its sums, to those of its own.
template <class K>
void go_back(const Part<K>& part, const Between<K>& norm, bool upsampled, const Options& options, const double* sums,
             const GivenGradient<K>& to, Sum<K>* to_norm_weight, Sum<K>* to_norm_bias, const Context& context) {
  const int channels = part.given.image.channels;
  if (part.between != nullptr)
    norm_gradients<K>(sums, part.between, norm.weight + part.offset, channels, nullptr, to_norm_weight + part.offset,
                      to_norm_bias + part.offset, context.stream);
  if (part.between == nullptr && part.own == nullptr) return;
  double* own_sums = part.own == nullptr ? nullptr : context.take<double>(2 * channels);
  back_through<K>(
      {to.image, part.read, part.between, sums, part.own, upsampled, upsampled && options.bilinear, to.image, own_sums},
      context);
  if (part.own != nullptr)
    norm_gradients<K>(own_sums, part.own, part.given.weight, channels, to.statistics, to.weight, to.bias,
                      context.stream);
}

}  // namespace

template <class K>
void norm_conv2d(const Given<K>& input, const typename K::Sum* weight, const typename K::Sum* bias, int outputs,
                 int taps, const Options& options, typename K::Stored* output, double* statistics,
                 const Context& context) {
  const Sum<K>* own = prepared(input, options.eps, context);
  const Patch<K, Form::window> patch{pixels_of(input, own, options.slope), taps, options.stride, options.padding};
  const Sites sites{quotient_up(input.image.height, options.stride), quotient_up(input.image.width, options.stride), 1};
  const int depth = rounded_depth<K>(patch.depth());
  Packing<K> packing = packing_of<K>(weight, outputs, patch.channels(), taps, 0, patch.channels());
  const Work work{sites, outputs, patch.quads()};
  packing.rows = factor_rows<K>(work);
  packing.pitch = packing.depth = depth;
  packing.factors = context.take<typename K::Factor>(int64_t(packing.rows) * depth);
  pack<K>(packing, Taps::single, 1, context.stream);
  with_moments<K>(work, statistics, context, [&](Moment<Sum<K>>* parts) {
    convolve<K>(patch, sites, packing.factors, alike(depth), outputs, Raw<K>{bias, output, parts}, context.stream);
  });
}

template <class K>
void norm_conv2d_backward(const Output<K>& output, const Given<K>& input, const typename K::Sum* weight, int outputs,
                          int taps, const Options& options, const GivenGradient<K>& to, typename K::Sum* to_weight,
                          typename K::Sum* to_bias, const Context& context) {
  const auto& image = input.image;
  const int C = image.channels;
  const Sum<K>* own = prepared(input, options.eps, context);
  const Patch<K, Form::window> patch{pixels_of(input, own, options.slope), taps, options.stride, options.padding};
  const Arriving<K> grad = arriving(output, quotient_up(image.height, options.stride),
                                    quotient_up(image.width, options.stride), outputs, context);
  if (to.image != nullptr) {
    const Readers2d<K> operand = readers_of(grad, image.height, image.width, taps, options.stride, options.padding);
    const double* sums =
        run_back<K>(operand, {image.height, image.width, options.stride}, packing_of<K>(weight, outputs, C, taps, 0, C),
                    operand.row_taps, operand.column_taps, to.image, own == nullptr ? Pixels<K>{} : patch.image,
                    own == nullptr ? nullptr : own + 2 * C, true, context);
    if (own != nullptr)
      norm_gradients<K>(sums, own, input.weight, C, to.statistics, to.weight, to.bias, context.stream);
  }
  if (to_weight != nullptr) weight_gradient<K>(patch, grad, false, 0, C, to_weight, context);
  if (to_bias != nullptr) column_sums<K>(grad, to_bias, context);
}

template <class K>
void norm_upsample_conv2d(const Given<K>& deep, const Given<K>& skip, const Between<K>& norm,
                          const typename K::Sum* weight, const typename K::Sum* bias, int outputs,
                          const Options& options, typename K::Stored* output, double* statistics,
                          const Context& context) {
  const Join<K> join(deep, skip, norm, options, context);
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
    if (count > 0) pack<K>(packing, taps, layers, context.stream);
    packing.offset = 0, packing.count = packing.per_tap = join.S, packing.begin = begin, packing.depth = of_thin;
    if (of_thin > 0) pack<K>(packing, Taps::single, layers, context.stream);
    return packing.factors;
  };
  const auto to_nearest = [&](Padding padding, int of_thin, const Work& work, const Raw<K>& raw) {
    const Patch<K, Form::window> beside = of_thin > 0 ? join.thin(padding) : Patch<K, Form::window>{};
    if (work.nine) {
      const int deep_depth = rounded_depth<K>(join.C);
      convolve_nine<K>({join.deep.normed, padding, beside}, phases, packed(work, Taps::nine, 9, deep_depth, of_thin),
                       deep_depth, of_thin, outputs, raw, context.stream);
    } else {
      const int begin = rounded_depth<K>(4 * join.C);
      convolve<K>(Joined<K>{{join.deep.normed, 2, 1, padding}, beside, begin}, phases,
                  packed(work, Taps::folded, 4, join.C, of_thin), alike(begin + of_thin), outputs, raw, context.stream);
    }
  };
  const bool deep_quads = in_fours(join.C), quads = deep_quads && in_fours(join.S);
  if (!options.bilinear) {
    const Work work{phases, outputs, quads, quads && takes_nine<K>(phases, outputs)};
    return with_moments<K>(work, statistics, context, [&](Moment<Sum<K>>* parts) {
      to_nearest(options.padding, thin, work, {bias, output, parts});
    });
  }
  // The image upsampled bilinearly is the one upsampled to the nearest, blurred by (1, 2, 1) / 4 either way with its
  // border repeated, and so is what the convolution gives, except where that reads the padding: at the border.
  const int longest = H > W ? H : W;
  auto* nearest = context.take<typename K::Stored>(int64_t(H) * W * outputs);
  auto* border = context.take<typename K::Stored>(int64_t(4) * longest * outputs);
  const Work work{phases, outputs, deep_quads, deep_quads && takes_nine<K>(phases, outputs)},
      sides{{4, longest, 1}, outputs, deep_quads}, rest{pixels, outputs, in_fours(join.S)};
  to_nearest(Padding::replicate, 0, work, {nullptr, nearest, nullptr});
  convolve<K>(Bordering<K>{{join.deep.normed, 3, 1, options.padding}}, sides.sites,
              packed(sides, Taps::single, 9, join.C, 0), alike(rounded_depth<K>(9 * join.C)), outputs,
              Raw<K>{nullptr, border, nullptr}, context.stream);
  with_moments<K>(rest, statistics, context, [&](Moment<Sum<K>>* parts) {
    convolve<K>(join.thin(options.padding), pixels, packed(rest, Taps::single, 0, join.C, thin), alike(thin), outputs,
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
  const Join<K> join(deep, skip, norm, options, context);
  const int H = deep.image.height, W = deep.image.width, all = join.S + join.C;
  const Arriving<K> grad = arriving(output, 2 * H, 2 * W, outputs, context);
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
  if (to_deep.image != nullptr) {
    Digits taps{0, 0};
    for (int t = 0; t < 3; ++t) taps.add(t);
    const Digits each[2] = {taps, {0, 0}};
    const Patch<K, Form::window> nine{{to_fields.grad, {}}, 1, 1, Padding::zeros};
    const double* sums = run_back<K>(nine, {H, W, 1}, packing_of<K>(weight, outputs, all, 3, join.S, join.C), each,
                                     each, to_deep.image, summed(join.deep), centre(join.deep), false, context);
    go_back(join.deep, norm, true, options, sums, to_deep, to_norm_weight, to_norm_bias, context);
  }
  if (join.S > 0) {
    const Readers2d<K> operand = readers_of(grad, 2 * H, 2 * W, 3, 1, options.padding);
    const double* sums =
        run_back<K>(operand, {2 * H, 2 * W, 1}, packing_of<K>(weight, outputs, all, 3, 0, join.S), operand.row_taps,
                    operand.column_taps, to_skip.image, summed(join.skip), centre(join.skip), false, context);
    go_back(join.skip, norm, false, options, sums, to_skip, to_norm_weight, to_norm_bias, context);
  }
  if (to_weight != nullptr) {
    // x^T F: what the convolution read of a pixel is that of the small image, as the weights of upsampling add up to 1.
    const Patch<K, Form::window> small{join.deep.normed, 1, 1, Padding::zeros};
    weight_gradient<K>(small, to_fields, true, join.S, all, to_weight, context);
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
