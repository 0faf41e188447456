// The kernels' launchers, for layers.cu alone.
#pragma once

#include "operands.cuh"

#define DIP_FAST_EACH_KIND(use) use(Float64) use(Float32) use(Tensor32) use(Brain16) use(Half16)

namespace dip_fast::cuda {

// What stands in the sites' place: images of a step of 2 are cut into four phases by parity, and a phase is one layer
// of the grid.
struct Sites {
  int height, width, step;

  DIP_FAST_HD int phases() const { return step * step; }
  DIP_FAST_HD int rows(int phase) const { return quotient_up(height - phase / step, step); }
  DIP_FAST_HD int columns(int phase) const { return quotient_up(width - phase % step, step); }
  DIP_FAST_HD int64_t most() const { return int64_t(rows(0)) * columns(0); }
};

// Depth of the factors of each phase, in whole steps, and of a row in memory.
struct Depths {
  int pitch, phase[4];
  DIP_FAST_HD int of(int p) const { return p < 2 ? (p == 0 ? phase[0] : phase[1]) : p == 2 ? phase[2] : phase[3]; }
};

// Mean, in two parts as one of a float would be too coarse, and sum of squared deviations of so many values.
template <class Sum>
struct Moment {
  Sum count, mean, rest, squares;
};
// From their number and sum, and from them once more, one after the other: the mean first, then deviations from it.
template <class Sum, class Each>
DIP_FAST_D Moment<Sum> moment_of(Sum count, Sum total, const Each& each) {
  const Sum mean = count > 0 ? total / count : Sum(0);
  Sum rest = 0, squares = 0;
  each([&](Sum value) {
    const Sum apart = value - mean;
    rest += apart;
    squares += apart * apart;
  });
  const Sum shift = count > 0 ? rest / count : Sum(0);
  return {count, mean, shift, squares - rest * shift};
}

// A weight (K, channels, taps, taps) as a right factor: [phase][row][pitch].
template <class K>
struct Packing {
  const typename K::Sum* weight;
  int outputs, channels, taps;  // of the weight
  int offset, count;            // the channels that are meant
  int per_tap;                  // as many, with zeros after them
  typename K::Factor* factors;
  int rows, pitch, begin, depth;  // rows in all, zeros after those that are; begin and length of what is written
};
// Of an image upsampled to the nearest taps are added: to 2 x 2 for each of four phases, see `Form`, or to those of the
// nine products, see `Nine`.
enum class Taps { single, folded, nine };
// Row k, depth (tap, c); transposed: row c, depth (tap, k) of the taps of each of the phases.
template <class K>
struct Pack {
  Packing<K> to;
  Taps taps;
  int phases;
  bool transposed;
  int stride;
  Digits row_taps[2], column_taps[2];
};

// scale, shift, mean and 1 / sqrt(variance + eps) of a norm, (4, channels); or constant and factor of `Arriving`, (2,
// channels), with the gradients of the statistics.
template <class Sum>
struct Affine {
  const double* statistics;  // (2, pitch)
  int pitch, channels;
  const Sum *weight, *bias;
  double eps;
  const double* grad_statistics;
  double pixels;
  Sum* to;
};

// What is small and comes together, see small.cu: added, then launched at once.
template <class K>
struct Job {
  int size;  // in threads
  bool packs;
  Pack<K> pack;
  Affine<typename K::Sum> affine;
};
template <class K>
struct Jobs {
  static constexpr int MOST = 8;
  int count;
  Job<K> all[MOST];
};
template <class K>
class Small {
 public:
  explicit Small(Stream stream) : stream_(stream) {}
  void add(const Pack<K>& pack) { add({pack.phases * pack.to.rows * pack.to.depth, true, pack, {}}); }
  void add(const Affine<typename K::Sum>& affine) { add({affine.channels, false, {}, affine}); }
  void flush();

 private:
  void add(const Job<K>& job) {
    if (jobs_.count == Jobs<K>::MOST) flush();
    jobs_.all[jobs_.count++] = job;
  }
  Jobs<K> jobs_{};
  Stream stream_;
};

// What comes out of a product, and where it goes.
template <class K>
struct Raw {
  const typename K::Sum* bias;  // may be null
  typename K::Stored* output;
  Moment<typename K::Sum>* parts;  // (parts, channels); null: not wanted
};
// The same for an image that is upsampled bilinearly: to what comes out, that of the one upsampled to the nearest is
// added, blurred, and at the border what was computed directly.
template <class K>
struct Blurred {
  Raw<K> raw;
  const typename K::Stored* nearest;  // (height, width, channels)
  const typename K::Stored* border;   // (4, longest, channels), see `Border`
  int height, width, longest;
};
template <class K>
struct Back {
  typename K::Stored* output;
  Pixels<K> image;  // what was read; no image: the sums are not wanted
  const typename K::Sum* centre;
  bool through;            // through the activation and the factor before it; else sums are those of what was read
  typename K::Sum* parts;  // (parts, 2, channels): sums of what comes out, and of it times what was read - centre
};

// Whether an image upsampled to the nearest is convolved by nine products, see convolve_nine.cu.
template <class K>
bool takes_nine(const Sites& sites, int channels);
// What the tiles of a convolution depend on.
struct Work {
  Sites sites;
  int channels;  // that come out
  bool quads;    // those that are read come in fours
  bool nine = false;
};
template <class K>
int64_t convolution_parts(const Work& work);
// Depth of a factor, rounded up.
template <class K>
int rounded_depth(int depth);
template <class K>
int factor_rows(const Work& work);

template <class K, class Operand, class Finish>
void convolve(const Operand& operand, const Work& work, const typename K::Factor* factors, const Depths& depths,
              const Finish& finish, Stream stream);

// By nine products, of `deep` and then `thin` numbers each: the depths of the factors, whole steps.
template <class K>
void convolve_nine(const Nine<K>& operand, const Work& work, const typename K::Factor* factors, int deep, int thin,
                   const Raw<K>& raw, Stream stream);

// Gradient of a weight: sums over all pixels of (what the patch reads, arriving), in parts that are added in order.
// fields: `arriving` is nine of the weight's outputs to a pixel, the patch one tap.
template <class K>
void weight_gradient(const Patch<K, Form::window>& patch, const Arriving<K>& arriving, bool fields, int offset,
                     int channels, typename K::Sum* to, const Context& context);

// The nine gradients (H, W, 9, K) that the taps of a convolution of an upsampled image give to its pixels.
template <class K>
void fields(const Arriving<K>& arriving, bool bilinear, Padding padding, typename K::Stored* to, Stream stream);

// ---- single channels

// Moments of what is read, or of that upsampled bilinearly (to the nearest they are the same), to statistics (2,
// pitch).
template <class K>
void moments(const Pixels<K>& pixels, bool bilinear, double* statistics, int pitch, const Context& context);
template <class K>
void merge_moments(const Moment<typename K::Sum>* parts, int64_t count, int channels, double* statistics, int pitch,
                   Stream stream);
// The gradients of a norm, prepared, (4, C), from the sums of t and t (x - mean); of its statistics where wanted.
template <class K>
struct NormGradient {
  const typename K::Sum *prepared = nullptr, *weight = nullptr;  // null: no norm
  double* to_statistics = nullptr;
  typename K::Sum *to_weight = nullptr, *to_bias = nullptr;
};
// Sums of (count, 2, channels) in order, in double, to (2, channels), which may be null, and to the norm.
template <class K>
void sums_back(const typename K::Sum* parts, int64_t count, int channels, double* sums, const NormGradient<K>& norm,
               Stream stream);
template <class K>
void column_sums(const Arriving<K>& arriving, typename K::Sum* to, const Context& context);

// Back through the norm between and through what is read before it: grad, as the convolution's way back left it, and
// its sums become the gradient of the raw image, in its place or elsewhere.
template <class K>
struct BackThrough {
  const typename K::Stored* grad;
  Pixels<K> image;                 // reading: what is before the norm between
  const typename K::Sum* between;  // prepared, (4, C); null: no norm between
  const double* between_sums;      // (2, C)
  NormGradient<K> own;             // of the norm before
  bool upsampled, bilinear;
  typename K::Stored* to;
};
template <class K>
void back_through(const BackThrough<K>& call, const Context& context);

}  // namespace dip_fast::cuda
