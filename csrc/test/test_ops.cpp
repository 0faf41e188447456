// Tests of the operators in the C++ library: against ATen's layers on a grid of shapes, and with invalid arguments.
// Exit code 0: passed, 1: failed, 77: the CPU lacks the instructions that DIP_FAST_CPU asks for.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <limits>
#include <string>
#include <vector>

namespace {

using at::Tensor;

int failures = 0;

void fail(const std::string& what) {
  ++failures;
  std::cerr << "FAILED " << what << '\n';
}

Tensor upsample_conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                       const std::string& mode, const std::string& padding_mode) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("dip_fast::upsample_conv2d", "")
                             .typed<Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&, c10::string_view,
                                           c10::string_view)>();
  return op.call(input, weight, bias, mode, padding_mode);
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                            const std::string& mode, const std::string& padding_mode) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("dip_fast::upsample_conv2d_backward", "")
          .typed<std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, c10::string_view,
                                                    c10::string_view, std::array<bool, 3>)>();
  return op.call(grad, input, weight, mode, padding_mode, {true, true, true});
}

Tensor padded(const Tensor& image, const std::string& padding_mode) {
  if (padding_mode == "reflect") return at::reflection_pad2d(image, {1, 1, 1, 1});
  if (padding_mode == "replicate") return at::replication_pad2d(image, {1, 1, 1, 1});
  return at::constant_pad_nd(image, {1, 1, 1, 1}, 0);
}

// The definition of upsample_conv2d, in float64.
Tensor reference(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const std::string& mode,
                 const std::string& padding_mode) {
  const std::vector<int64_t> size = {2 * input.size(2), 2 * input.size(3)};
  const Tensor x = input.to(at::kDouble);
  const Tensor up = mode == "nearest" ? at::upsample_nearest2d(x, size) : at::upsample_bilinear2d(x, size, false);
  return at::conv2d(padded(up, padding_mode), weight.to(at::kDouble),
                    bias ? std::optional(bias->to(at::kDouble)) : std::nullopt);
}

double error(const Tensor& got, const Tensor& expected) {
  if (got.sizes() != expected.sizes()) return std::numeric_limits<double>::infinity();
  if (expected.numel() == 0) return 0;
  return ((got.to(at::kDouble) - expected).norm() / (expected.norm() + 1e-30)).item<double>();
}

void compare(const std::string& name, const Tensor& got, const Tensor& expected) {
  const double limit = got.scalar_type() == at::kDouble ? 1e-13 : 2e-6;
  const double found = error(got, expected);
  if (!(found <= limit)) fail(name + ": relative error " + std::to_string(found));
}

void test_against_conv2d() {
  struct Shape {
    int64_t N, C, K, H, W;
  };
  // Empty batches, single pixels, rows and columns, channels around the tiles of the kernels, and several bands and
  // strips.
  const std::vector<Shape> shapes = {{0, 3, 2, 4, 5},    {1, 1, 1, 1, 1},      {2, 3, 5, 1, 7},    {1, 4, 16, 9, 1},
                                     {3, 2, 8, 2, 2},    {1, 15, 17, 6, 8},    {1, 33, 31, 13, 5}, {2, 64, 48, 19, 23},
                                     {1, 17, 9, 5, 301}, {1, 40, 24, 130, 67}, {1, 2, 128, 4, 190}};
  for (const std::string mode : {"nearest", "bilinear"})
    for (const std::string padding_mode : {"zeros", "reflect", "replicate"})
      for (const at::ScalarType dtype : {at::kFloat, at::kDouble})
        for (const Shape& s : shapes)
          for (const bool with_bias : {false, true}) {
            const auto options = at::TensorOptions().dtype(dtype);
            Tensor input = at::randn({s.N, s.C, s.H, s.W}, options);
            if (with_bias) input = input.contiguous(at::MemoryFormat::ChannelsLast);
            const Tensor weight = at::randn({s.K, s.C, 3, 3}, options);
            const auto bias = with_bias ? std::optional(at::randn({s.K}, options)) : std::nullopt;
            const std::string name = mode + " " + padding_mode + " " + toString(dtype) + " " + std::to_string(s.N) +
                                     "x" + std::to_string(s.C) + "->" + std::to_string(s.K) + " " +
                                     std::to_string(s.H) + "x" + std::to_string(s.W);
            const Tensor output = upsample_conv2d(input, weight, bias, mode, padding_mode);
            compare(name, output, reference(input, weight, bias, mode, padding_mode));

            // The gradients are the adjoints: <A x, g> = <x, A* g>, for x and for w.
            const Tensor grad = at::randn_like(output);
            const auto [to_input, to_weight, to_bias] = backward(grad, input, weight, mode, padding_mode);
            const Tensor linear = reference(input, weight, std::nullopt, mode, padding_mode);
            const double expected = (linear * grad.to(at::kDouble)).sum().item<double>();
            const double scale = linear.norm().item<double>() * grad.norm().item<double>() + 1e-30;
            const double limit = dtype == at::kDouble ? 1e-13 : 2e-6;
            const double by_input = (to_input * input).to(at::kDouble).sum().item<double>();
            const double by_weight = (to_weight * weight).to(at::kDouble).sum().item<double>();
            if (!(std::abs(by_input - expected) <= limit * scale)) fail(name + ": gradient of the input");
            if (!(std::abs(by_weight - expected) <= limit * scale)) fail(name + ": gradient of the weight");
            compare(name + ", gradient of the bias", to_bias, grad.to(at::kDouble).sum({0, 2, 3}));
          }
}

// ---- whole layers

bool rounds_factors = false;

// norm_conv2d or norm_upsample_conv2d with its options; `mode` is empty for norm_conv2d.
struct Layer {
  int64_t taps, stride;
  std::string mode, padding_mode;

  std::string operator_name() const {
    return mode.empty() ? "dip_fast::norm_conv2d" : "dip_fast::norm_upsample_conv2d";
  }
  std::vector<c10::IValue> options() const {
    return {SLOPE, EPS, mode.empty() ? c10::IValue(stride) : c10::IValue(mode), padding_mode};
  }
  static constexpr double SLOPE = 0.2, EPS = 0.1;
};

// The tensors of a layer in the order of its operator, undefined where absent: image, statistics, weight and bias of
// its norm; for an upsampling the same four of skip, then weight and bias of the norm in the middle; weight; bias.
using Tensors = std::vector<Tensor>;

std::vector<Tensor> call(const std::string& name, std::vector<c10::IValue> stack) {
  c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "").callBoxed(&stack);
  if (stack.size() == 1) return stack[0].toTensorVector();
  std::vector<Tensor> results;
  for (const c10::IValue& value : stack) results.push_back(value.toTensor());
  return results;
}

c10::IValue optional(const Tensor& tensor) { return tensor.defined() ? c10::IValue(tensor) : c10::IValue(); }

std::vector<Tensor> forward(const Layer& layer, const Tensors& tensors) {
  std::vector<c10::IValue> stack;
  for (const Tensor& tensor : tensors) stack.push_back(optional(tensor));
  for (const c10::IValue& option : layer.options()) stack.push_back(option);
  stack.push_back(c10::IValue());  // the dtype of the output: that of the image
  return call(layer.operator_name(), stack);
}

// The gradients of all tensors, of shape (0,) for those that are undefined.
std::vector<Tensor> backward(const Layer& layer, const Tensors& tensors, const std::vector<Tensor>& outputs,
                             const std::vector<Tensor>& grads) {
  std::vector<c10::IValue> stack{grads[0], grads[1], outputs[0], outputs[1]};
  for (size_t i = 0; i + 1 < tensors.size(); ++i) stack.push_back(optional(tensors[i]));
  for (const c10::IValue& option : layer.options()) stack.push_back(option);
  const bool with_bias = tensors.back().defined();
  stack.push_back(layer.mode.empty() ? c10::IValue(c10::List<bool>({true, true, with_bias})) : c10::IValue(with_bias));
  return call(layer.operator_name() + "_backward", stack);
}

Tensor per_channel(const Tensor& values) { return values.reshape({1, -1, 1, 1}); }

Tensor normalised(const Tensor& image, const Tensor& mean, const Tensor& variance, const Tensor& weight,
                  const Tensor& bias) {
  const Tensor scale = weight * (variance + Layer::EPS).rsqrt();
  return (image - per_channel(mean)) * per_channel(scale) + per_channel(bias);
}

Tensor statistics_of(const Tensor& image) {
  const Tensor mean = image.mean({0, 2, 3});
  return at::stack({mean, (image - per_channel(mean)).square().mean({0, 2, 3})});
}

// The definition of a layer, in float64: its output and the statistics of it.
std::vector<Tensor> defined(const Layer& layer, const Tensors& tensors) {
  const auto activated = [&](size_t at) {
    if (!tensors[at + 1].defined()) return tensors[at];
    return at::leaky_relu(
        normalised(tensors[at], tensors[at + 1][0], tensors[at + 1][1], tensors[at + 2], tensors[at + 3]),
        Layer::SLOPE);
  };
  Tensor x = activated(0);
  if (!layer.mode.empty()) {
    const std::vector<int64_t> size = {2 * x.size(2), 2 * x.size(3)};
    x = layer.mode == "nearest" ? at::upsample_nearest2d(x, size) : at::upsample_bilinear2d(x, size, false);
    if (tensors[4].defined()) x = at::cat({activated(4), x}, 1);
    const Tensor own = statistics_of(x);
    x = normalised(x, own[0], own[1], tensors[8], tensors[9]);
  }
  if (layer.taps == 3) x = padded(x, layer.padding_mode);
  const Tensor &weight = tensors[tensors.size() - 2], &bias = tensors.back();
  const Tensor output = at::conv2d(x, weight, bias.defined() ? std::optional(bias) : std::nullopt, layer.stride);
  return {output, statistics_of(output)};
}

struct LayerShape {
  int64_t C, S, K, H, W;
};

// If `whole`, the layer has biases and norms; otherwise all optional tensors are absent.  Images alone are of bfloat16.
Tensors tensors_of(const Layer& layer, const LayerShape& s, at::ScalarType dtype, bool whole) {
  const auto options = at::TensorOptions().dtype(dtype == at::kBFloat16 ? at::kFloat : dtype);
  const auto positive = [&](int64_t count) { return at::rand({count}, options) + 0.5; };
  Tensors result;
  const auto image = [&](int64_t channels, int64_t height, int64_t width) {
    const Tensor pixels = channels > 0 ? at::randn({1, channels, height, width}, options).to(dtype) : Tensor();
    const Tensor statistics = at::stack({at::randn({channels}) * 0.3, at::rand({channels}) + 0.5}).to(at::kDouble);
    result.push_back(pixels);
    if (whole && channels > 0)
      result.insert(result.end(), {statistics, positive(channels), at::randn({channels}, options) * 0.3});
    else
      result.insert(result.end(), 3, Tensor());
  };
  image(s.C, s.H, s.W);
  int64_t C = s.C;
  if (!layer.mode.empty()) {
    image(s.S, 2 * s.H, 2 * s.W);
    C += s.S;
    result.insert(result.end(), {positive(C), at::randn({C}, options) * 0.3});
  }
  result.push_back(at::randn({s.K, C, layer.taps, layer.taps}, options) / (layer.taps * std::sqrt(double(C))));
  result.push_back(whole ? at::randn({s.K}, options) : Tensor());
  return result;
}

void test_layer(const Layer& layer, const LayerShape& s, at::ScalarType dtype, bool whole) {
  const std::string name = layer.operator_name() + " " + std::to_string(layer.taps) + "x" + std::to_string(layer.taps) +
                           " stride " + std::to_string(layer.stride) + " " + layer.mode + " " + layer.padding_mode +
                           " " + toString(dtype) + " " + std::to_string(s.C) + "+" + std::to_string(s.S) + "->" +
                           std::to_string(s.K) + " " + std::to_string(s.H) + "x" + std::to_string(s.W) +
                           (whole ? "" : " bare");
  const Tensors tensors = tensors_of(layer, s, dtype, whole);
  Tensors exact;
  std::vector<Tensor> leaves;
  for (const Tensor& tensor : tensors) {
    exact.push_back(tensor.defined() ? tensor.to(at::kDouble, false, true).set_requires_grad(true) : Tensor());
    if (tensor.defined()) leaves.push_back(exact.back());
  }
  const std::vector<Tensor> expected = defined(layer, exact), outputs = forward(layer, tensors);
  const double in_16_bits = rounds_factors ? 0.1 : 0.05;  // worst seen 0.055 and 0.029
  const double limit = dtype == at::kDouble ? 1e-12 : dtype == at::kFloat ? 5e-6 : in_16_bits;
  const auto compare = [&](const std::string& what, const Tensor& got, const Tensor& right, double scale) {
    const double off = got.sizes() != right.sizes() ? std::numeric_limits<double>::infinity()
                                                    : (got.to(at::kDouble) - right).norm().item<double>();
    if (!(off <= limit * std::max(1.0, scale)))
      fail(name + ", " + what + ": off by " + std::to_string(off) + " of " + std::to_string(scale));
  };
  const auto norm = [](const Tensor& tensor) { return tensor.norm().item<double>(); };
  compare("output", outputs[0], expected[0], norm(expected[0]));
  compare("statistics", outputs[1], expected[1], norm(expected[1]));
  if (outputs[0].sizes() != expected[0].sizes()) return;

  // The statistics have as large a share in the loss as the output; in a bare layer they have none, and the kernels
  // get a null pointer in place of the output.
  const double share = whole ? double(expected[0][0][0].numel()) : 0;
  const std::vector<Tensor> grads = {at::randn_like(outputs[0]), at::randn_like(outputs[1]) * share};
  const auto right = torch::autograd::grad(expected, leaves, {grads[0].to(at::kDouble), grads[1]});
  const auto got = backward(layer, tensors, outputs, grads);
  // Gradients of all but images and weights are sums over pixels, in which much cancels.
  const double sums = norm(right[0]) * std::sqrt(double(right[0][0][0].numel()));
  for (size_t i = 0, leaf = 0; i < tensors.size(); ++i) {
    const std::string what = "gradient " + std::to_string(i);
    if (!tensors[i].defined())
      compare(what, got[i], at::empty({0}, at::kDouble), 0);
    else
      compare(what, got[i], right[leaf], right[leaf].dim() == 4 ? norm(right[leaf]) : sums), ++leaf;
  }
}

void test_layers() {
  // Odd sides, single pixels, rows and columns, numbers of channels just above and below the tiles of the kernels, and
  // several bands.
  const std::vector<LayerShape> shapes = {{1, 0, 1, 1, 1},    {3, 1, 2, 2, 2},   {2, 2, 5, 1, 9},
                                          {5, 3, 7, 7, 1},    {17, 4, 13, 9, 8}, {16, 16, 12, 8, 15},
                                          {33, 8, 31, 13, 5}, {70, 4, 66, 6, 7}, {2, 3, 3, 35, 67}};
  const LayerShape large = {2, 3, 33, 64, 512}, wide = {2, 3, 33, 32, 256};  // outputs are written past the caches
  const std::vector<Layer> layers = {
      {1, 1, "", ""}, {3, 1, "", ""}, {3, 2, "", ""}, {3, 1, "nearest", ""}, {3, 1, "bilinear", ""}};
  for (Layer layer : layers) {
    for (const std::string padding_mode : {"zeros", "reflect", "replicate"})
      for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16})
        for (const LayerShape& s : shapes)
          for (const bool whole : {false, true}) {
            layer.padding_mode = padding_mode;
            const bool small = s.H == 1 || s.W == 1;
            if (padding_mode == "reflect" && small && layer.mode.empty() && layer.taps == 3) continue;
            test_layer(layer, s, dtype, whole);
          }
    for (const auto dtype : {at::kFloat, at::kBFloat16})
      test_layer(layer, layer.mode.empty() ? large : wide, dtype, true);
  }
}

// Inputs that are not contiguous: a slice of a wider tensor, transposed.
void test_strides() {
  const Tensor wide = at::randn({2, 7, 12, 10});
  const Tensor input = wide.slice(1, 1, 6).slice(3, 0, 10, 2).transpose(2, 3);
  const Tensor weight = at::randn({3, 3, 4, 5}).permute({2, 3, 0, 1});
  compare("strides", upsample_conv2d(input, weight, std::nullopt, "bilinear", "reflect"),
          reference(input, weight, std::nullopt, "bilinear", "reflect"));
}

// A masked view that reaches over the edges is the mirrored whole; a sanitizer sees what the kernel reads and writes.
void test_masked_window() {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("dip_fast::masked_window", "")
          .typed<std::tuple<Tensor, Tensor>(const Tensor&, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, double,
                                            int64_t, int64_t, const Tensor&)>();
  const Tensor step = at::full({}, 3, at::kLong);
  for (const int64_t block : {1, 2, 20})
    for (const auto& [H, W] : {std::pair(1, 1), std::pair(3, 70), std::pair(41, 5)})
      for (const int64_t orientation : {0, 3, 4}) {
        const Tensor y = at::rand({2, 3, H, W}), whole = std::get<0>(op.call(y, 1, 0, 0, H, W, 0, 0.6, block, 7, step));
        const auto mirrored = [](int64_t begin, int64_t count, int64_t length) {
          const Tensor at = at::arange(begin, begin + count).remainder(std::max<int64_t>(1, 2 * length - 2));
          return length == 1 ? at.mul(0) : at.minimum(2 * length - 2 - at);
        };
        Tensor wanted = whole.index_select(2, mirrored(-5, 90, H)).index_select(3, mirrored(-8, 77, W));
        wanted = orientation == 4 ? wanted.transpose(2, 3) : orientation == 3 ? wanted.flip({2, 3}) : wanted;
        if (!std::get<0>(op.call(y, 1, -5, -8, 90, 77, orientation, 0.6, block, 7, step)).equal(wanted))
          fail("masked window of " + std::to_string(H) + "x" + std::to_string(W) + ", block " + std::to_string(block));
      }
}

template <class Error>
void test_rejected(const std::string& message, const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    if (std::string(error.what()).find(message) == std::string::npos)
      fail("message has no '" + message + "': " + error.what_without_backtrace());
    return;
  } catch (const std::exception& error) {
    return fail("wrong type of error for '" + message + "': " + error.what());
  }
  fail("not rejected: " + message);
}

void test_bad_arguments() {
  const Tensor x = at::ones({1, 2, 3, 4}), w = at::ones({5, 2, 3, 3}), b = at::ones({5});
  const auto call = [&](const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                        const std::string& mode = "nearest", const std::string& padding_mode = "zeros") {
    return [=] { upsample_conv2d(input, weight, bias, mode, padding_mode); };
  };
  test_rejected<c10::ValueError>("input must be (N, C, H, W)", call(x[0], w, b));
  test_rejected<c10::ValueError>("input must be (N, C, H, W)", call(at::ones({1, 2, 0, 4}), w, b));
  test_rejected<c10::ValueError>("weight must be (K, C, 3, 3)", call(x, at::ones({5, 3, 3, 3}), b));
  test_rejected<c10::ValueError>("weight must be (K, C, 3, 3)", call(x, at::ones({5, 2, 3, 1}), b));
  test_rejected<c10::ValueError>("bias must be (K,)", call(x, w, at::ones({4})));
  test_rejected<c10::ValueError>("mode must be nearest or bilinear, got 'bicubic'", call(x, w, b, "bicubic"));
  test_rejected<c10::ValueError>("padding_mode must be zeros, reflect or replicate",
                                 call(x, w, b, "nearest", "circular"));
  test_rejected<c10::TypeError>("input must be of dtype", call(x.to(at::kLong), w, b));
  test_rejected<c10::TypeError>("weight must have the dtype of input", call(x, w.to(at::kDouble), b));

  const Tensors upsample_inputs = {x, {}, {}, {}, {}, {}, {}, {}, at::ones({2}), at::ones({2}), w, b};
  const Layer upsampling{3, 1, "nearest", "circular"}, conv{3, 3, "", "zeros"};
  test_rejected<c10::ValueError>("padding_mode must be zeros, reflect or replicate",
                                 [&] { forward(upsampling, upsample_inputs); });
  test_rejected<c10::ValueError>("stride must be 1, or 2 with 3x3 taps", [&] { forward(conv, {x, {}, {}, {}, w, b}); });
}

void test_gradient_request() {
  const Tensor x = at::ones({1, 2, 3, 4}), w = at::ones({5, 2, 3, 3}).set_requires_grad(true);
  test_rejected<c10::NotImplementedError>("the C++ library is for inference",
                                          [&] { upsample_conv2d(x, w, std::nullopt, "nearest", "zeros"); });
  const at::NoGradGuard guard;
  upsample_conv2d(x, w, std::nullopt, "nearest", "zeros");
}

}  // namespace

int main() {
  const char* level = std::getenv("DIP_FAST_CPU");
  rounds_factors = level != nullptr && std::string(level) == "avx512_bf16";
  at::manual_seed(0);
  try {
    test_against_conv2d();
    test_strides();
    test_layers();
    test_masked_window();
    test_bad_arguments();
    test_gradient_request();
  } catch (const std::exception& error) {
    if (std::string(error.what()).find("this CPU cannot run") != std::string::npos) return 77;
    fail(error.what());
  }
  std::cout << (failures == 0 ? "passed" : std::to_string(failures) + " failed") << '\n';
  return failures == 0 ? 0 : 1;
}
