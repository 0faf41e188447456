// How single values are read and written: images through norm and activation, and the gradient of an output.
#pragma once

#include "index.cuh"

namespace dip_fast::cuda {

// `width` neighbouring channels in registers.
template <class Sum, int width>
struct Vec {
  Sum at[width] = {};
};

// The same as they are stored.  A load is waited for where its values are used: what comes from global memory is loaded
// a step ahead in this form, and computed with (`finish` below) a step later.
template <class Stored, int width>
struct Loaded {
  std::conditional_t<width == 4, Quad<Stored>, Stored> values;
};

template <int width, class Stored>
DIP_FAST_D Loaded<Stored, width> load_stored(const Stored* from) {
  if constexpr (width == 4)
    return {*reinterpret_cast<const Quad<Stored>*>(from)};
  else
    return {*from};
}

template <class Stored, int width>
DIP_FAST_D auto widened(const Loaded<Stored, width>& loaded) {
  Vec<decltype(widened(Stored{})), width> result;
  if constexpr (width == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) result.at[i] = widened(loaded.values.at[i]);
  } else {
    result.at[0] = widened(loaded.values);
  }
  return result;
}

template <int width, class Stored>
DIP_FAST_D auto load(const Stored* from) {
  return widened(load_stored<width>(from));
}

template <class Stored, class Sum, int width>
DIP_FAST_D void store(Stored* to, const Vec<Sum, width>& values) {
  if constexpr (width == 4) {
    Quad<Stored> quad;
#pragma unroll
    for (int i = 0; i < 4; ++i) quad.at[i] = narrowed<Stored>(values.at[i]);
    *reinterpret_cast<Quad<Stored>*>(to) = quad;
  } else {
    *to = narrowed<Stored>(values.at[0]);
  }
}

// What is applied to an image when it is read: u = scale x + shift and LeakyReLU, which are the image's own norm and
// activation, and then scale2 a + shift2, the norm after a concatenation.  Null: that part is left out.
template <class Sum>
struct NormAct {
  const Sum *scale = nullptr, *shift = nullptr;
  Sum slope = 1;
  const Sum *scale2 = nullptr, *shift2 = nullptr;
};

template <class K>
struct NormActImage {
  using Sum = typename K::Sum;
  Image<typename K::Stored> image;
  NormAct<Sum> norm_act;

  // `width` neighbouring channels with their scales and shifts, which stay in registers from pixel to pixel.
  template <int width>
  struct Channels {
    const NormActImage& source;
    int first;
    Vec<Sum, width> scale, shift, scale2, shift2;

    using Raw = Loaded<typename K::Stored, width>;

    DIP_FAST_D static Raw load(const NormActImage& source, int first, int64_t pixel) {
      return load_stored<width>(source.image.data + pixel * source.image.channels + first);
    }
    DIP_FAST_D Vec<Sum, width> finish(const Raw& raw) const {
      auto x = widened(raw);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const Sum u = x.at[i] * scale.at[i] + shift.at[i];
        x.at[i] = u > 0 ? u : source.norm_act.slope * u;
      }
      if (source.norm_act.scale2 != nullptr) {
#pragma unroll
        for (int i = 0; i < width; ++i) x.at[i] = x.at[i] * scale2.at[i] + shift2.at[i];
      }
      return x;
    }
    DIP_FAST_D Raw load(int64_t pixel) const { return load(source, first, pixel); }
    DIP_FAST_D Vec<Sum, width> at(int64_t pixel) const { return finish(load(pixel)); }
  };

  template <int width>
  DIP_FAST_D Channels<width> channels(int first) const {
    Channels<width> result{*this, first, {}, {}, {}, {}};
    if (norm_act.scale == nullptr)  // then the slope is 1
      for (Sum& scale : result.scale.at) scale = 1;
    else
      result.scale = cuda::load<width>(norm_act.scale + first),
      result.shift = cuda::load<width>(norm_act.shift + first);
    if (norm_act.scale2 != nullptr)
      result.scale2 = cuda::load<width>(norm_act.scale2 + first),
      result.shift2 = cuda::load<width>(norm_act.shift2 + first);
    return result;
  }
};

// Pixel (row, column) of an image upsampled by two bilinearly; height, width: of the image before upsampling.
template <class Sum, class Channels>
DIP_FAST_D auto upsampled(const Channels& channels, int row, int column, int height, int width) {
  const int other_row = padded_index((row >> 1) + (row & 1 ? 1 : -1), height, Padding::replicate),
            other_column = padded_index((column >> 1) + (column & 1 ? 1 : -1), width, Padding::replicate);
  const int64_t near = int64_t(row >> 1) * width, far = int64_t(other_row) * width;
  auto a = channels.at(near + (column >> 1));
  const auto b = channels.at(near + other_column), c = channels.at(far + (column >> 1)),
             d = channels.at(far + other_column);
#pragma unroll
  for (int i = 0; i < int(sizeof(a.at) / sizeof(Sum)); ++i)
    a.at[i] = Sum(0.75) * (Sum(0.75) * a.at[i] + Sum(0.25) * b.at[i]) +
              Sum(0.25) * (Sum(0.75) * c.at[i] + Sum(0.25) * d.at[i]);
  return a;
}

// G, the gradient of a convolution's output, including what arrives through the output's mean and variance,
//
//   G = grad + constant + factor output,    constant, factor: see AffineJob,
//
// or grad alone where the statistics have no gradient (`output` is null).
template <class K>
struct OutputGrad {
  using Sum = typename K::Sum;
  Image<typename K::Stored> grad;
  const typename K::Stored* output = nullptr;
  const Sum *constant = nullptr, *factor = nullptr;

  template <int width>
  struct Channels {
    const OutputGrad& source;
    int first;
    Vec<Sum, width> constant, factor;

    struct Raw {
      Loaded<typename K::Stored, width> grad, output;
    };

    DIP_FAST_D static Raw load(const OutputGrad& source, int first, int64_t pixel) {
      const int64_t place = pixel * source.grad.channels + first;
      Raw raw;
      raw.grad = load_stored<width>(source.grad.data + place);
      if (source.output != nullptr) raw.output = load_stored<width>(source.output + place);
      return raw;
    }
    DIP_FAST_D Vec<Sum, width> finish(const Raw& raw) const {
      auto g = widened(raw.grad);
      if (source.output == nullptr) return g;
      const auto y = widened(raw.output);
#pragma unroll
      for (int i = 0; i < width; ++i) g.at[i] += constant.at[i] + factor.at[i] * y.at[i];
      return g;
    }
    DIP_FAST_D Raw load(int64_t pixel) const { return load(source, first, pixel); }
    DIP_FAST_D Vec<Sum, width> at(int64_t pixel) const { return finish(load(pixel)); }
  };

  template <int width>
  DIP_FAST_D Channels<width> channels(int first) const {
    Channels<width> result{*this, first, {}, {}};
    if (output != nullptr)
      result.constant = cuda::load<width>(constant + first), result.factor = cuda::load<width>(factor + first);
    return result;
  }
};

}  // namespace dip_fast::cuda
