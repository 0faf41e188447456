// The operator as a C++ user of libtorch has it: against at::conv2d on a grid of shapes, and what it refuses.
// Exit code 0: passed, 1: failed, 77: the CPU lacks the instructions that DIP_FAST_CPU asks for.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>

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

// The definition, in float64.
Tensor reference(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const std::string& mode,
                 const std::string& padding_mode) {
  const std::vector<int64_t> size = {2 * input.size(2), 2 * input.size(3)};
  const Tensor x = input.to(at::kDouble);
  Tensor up = mode == "nearest" ? at::upsample_nearest2d(x, size) : at::upsample_bilinear2d(x, size, false);
  if (padding_mode == "zeros") up = at::constant_pad_nd(up, {1, 1, 1, 1}, 0);
  if (padding_mode == "reflect") up = at::reflection_pad2d(up, {1, 1, 1, 1});
  if (padding_mode == "replicate") up = at::replication_pad2d(up, {1, 1, 1, 1});
  return at::conv2d(up, weight.to(at::kDouble), bias ? std::optional(bias->to(at::kDouble)) : std::nullopt);
}

double error(const Tensor& got, const Tensor& wanted) {
  if (got.sizes() != wanted.sizes()) return std::numeric_limits<double>::infinity();
  if (wanted.numel() == 0) return 0;
  return ((got.to(at::kDouble) - wanted).norm() / (wanted.norm() + 1e-30)).item<double>();
}

void compare(const std::string& name, const Tensor& got, const Tensor& wanted) {
  const double limit = got.scalar_type() == at::kDouble ? 1e-13 : 2e-6;
  const double found = error(got, wanted);
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
            const double wanted = (linear * grad.to(at::kDouble)).sum().item<double>();
            const double scale = linear.norm().item<double>() * grad.norm().item<double>() + 1e-30;
            const double limit = dtype == at::kDouble ? 1e-13 : 2e-6;
            const double by_input = (to_input * input).to(at::kDouble).sum().item<double>();
            const double by_weight = (to_weight * weight).to(at::kDouble).sum().item<double>();
            if (!(std::abs(by_input - wanted) <= limit * scale)) fail(name + ": gradient of the input");
            if (!(std::abs(by_weight - wanted) <= limit * scale)) fail(name + ": gradient of the weight");
            compare(name + ", gradient of the bias", to_bias, grad.to(at::kDouble).sum({0, 2, 3}));
          }
}

// A slice of a wider tensor, transposed.
void test_strides() {
  const Tensor wide = at::randn({2, 7, 12, 10});
  const Tensor input = wide.slice(1, 1, 6).slice(3, 0, 10, 2).transpose(2, 3);
  const Tensor weight = at::randn({3, 3, 4, 5}).permute({2, 3, 0, 1});
  compare("strides", upsample_conv2d(input, weight, std::nullopt, "bilinear", "reflect"),
          reference(input, weight, std::nullopt, "bilinear", "reflect"));
}

template <class Error>
void test_refused(const std::string& message, const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    if (std::string(error.what()).find(message) == std::string::npos)
      fail("message has no '" + message + "': " + error.what_without_backtrace());
    return;
  } catch (const std::exception& error) {
    return fail("wrong type of error for '" + message + "': " + error.what());
  }
  fail("not refused: " + message);
}

void test_bad_arguments() {
  const Tensor x = at::ones({1, 2, 3, 4}), w = at::ones({5, 2, 3, 3}), b = at::ones({5});
  const auto call = [&](const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                        const std::string& mode = "nearest", const std::string& padding_mode = "zeros") {
    return [=] { upsample_conv2d(input, weight, bias, mode, padding_mode); };
  };
  test_refused<c10::ValueError>("input must be (N, C, H, W)", call(x[0], w, b));
  test_refused<c10::ValueError>("input must be (N, C, H, W)", call(at::ones({1, 2, 0, 4}), w, b));
  test_refused<c10::ValueError>("weight must be (K, C, 3, 3)", call(x, at::ones({5, 3, 3, 3}), b));
  test_refused<c10::ValueError>("weight must be (K, C, 3, 3)", call(x, at::ones({5, 2, 3, 1}), b));
  test_refused<c10::ValueError>("bias must be (K,)", call(x, w, at::ones({4})));
  test_refused<c10::ValueError>("mode must be nearest or bilinear, got 'bicubic'", call(x, w, b, "bicubic"));
  test_refused<c10::ValueError>("padding_mode must be zeros, reflect or replicate",
                                call(x, w, b, "nearest", "circular"));
  test_refused<c10::TypeError>("input must be of dtype", call(x.to(at::kLong), w, b));
  test_refused<c10::TypeError>("weight must have the dtype of input", call(x, w.to(at::kDouble), b));
}

void test_gradient_request() {
  const Tensor x = at::ones({1, 2, 3, 4}), w = at::ones({5, 2, 3, 3}).set_requires_grad(true);
  test_refused<c10::NotImplementedError>("the C++ library is for inference",
                                         [&] { upsample_conv2d(x, w, std::nullopt, "nearest", "zeros"); });
  const at::NoGradGuard guard;
  upsample_conv2d(x, w, std::nullopt, "nearest", "zeros");
}

bool cpu_has(const std::string& level) {
  if (level == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (level == "avx512")
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  return true;
}

}  // namespace

int main() {
  const char* level = std::getenv("DIP_FAST_CPU");
  if (level != nullptr && !cpu_has(level)) return 77;
  at::manual_seed(0);
  try {
    test_against_conv2d();
    test_strides();
    test_bad_arguments();
    test_gradient_request();
  } catch (const std::exception& error) {
    fail(error.what());
  }
  std::cout << (failures == 0 ? "passed" : std::to_string(failures) + " failed") << '\n';
  return failures == 0 ? 0 : 1;
}
