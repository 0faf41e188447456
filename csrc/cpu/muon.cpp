// The operator muon_ on a CPU: a step of Muon for some matrices (dip_fast/fitting/muon.py defines it).
//
// With the momentum u of a matrix, by rows, as U = u / |u| and G = U U^T, turns of
//
//   T = a + b G + c G^2      P = T P      G = T G T
//
// make P near to G^(-1/2), so that P U is nearly orthogonal.  Matrices are independent, so threads share them.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "threads.h"

namespace dip_fast::cpu {
namespace {

using at::Tensor;
using at::TensorList;

constexpr int64_t WIDTH = 32;  // rows of matrices are filled up with zeros to multiples of it, for all micro-kernels

int64_t padded(int64_t size) { return (size + WIDTH - 1) / WIDTH * WIDTH; }

struct MuonRule {
  double rate, momentum;
  double a, b, c;
  int64_t turns;
};

// The memory for a matrix of up to rows x cols.
struct Workplace {
  int64_t rows, cols;

  int64_t size() const { return 3 * rows * cols + 2 * rows * rows + 12 * rows * rows; }  // floats; 6 are of doubles
};

// out = left right, of square matrices.
void multiply(int64_t n, const double* left, const double* right, double* out) {
  layer_kernels<double>().multiply(n, n, n, left, n, right, n, out, n);
}

// Turns `gram`, which is overwritten, to about its power -1/2; there is memory for five matrices at `memory`.
const double* inverse_root(const MuonRule& rule, int64_t n, double* gram, double* memory) {
  double *square = memory, *turn = square + n * n, *product = turn + n * n, *next = product + n * n;
  for (int64_t left = rule.turns; left-- > 0;) {
    multiply(n, gram, gram, square);
    for (int64_t i = 0; i < n * n; ++i) turn[i] = rule.b * gram[i] + rule.c * square[i];
    for (int64_t i = 0; i < n; ++i) turn[i * n + i] += rule.a;
    if (left == rule.turns - 1) {
      std::copy_n(turn, n * n, product);
    } else {
      multiply(n, turn, product, next);
      std::swap(product, next);
    }
    if (left == 0) break;
    multiply(n, turn, gram, square);
    multiply(n, square, turn, gram);
  }
  return product;
}

double norm(int64_t count, const float* values) {
  double sums[8] = {};
  for (int64_t i = 0; i < count; i += 8)
    for (int64_t t = 0; t < std::min<int64_t>(8, count - i); ++t)
      sums[t] += static_cast<double>(values[i + t]) * values[i + t];
  return std::sqrt(((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7])));
}

void step(const MuonRule& rule, int64_t rows, int64_t cols, float* weight, float* momentum, const float* gradient,
          float* memory) {
  const int64_t n = padded(rows), width = padded(cols);
  float *U = memory, *transposed = U + n * width, *moves = transposed + n * width, *single = moves + n * width;
  double *gram = reinterpret_cast<double*>(single + 2 * n * n), *others = gram + n * n;
  std::fill_n(U, n * width, 0.0f);
  std::fill_n(transposed, n * width, 0.0f);
  const float keep = static_cast<float>(rule.momentum);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) {
      const float g = gradient[i * cols + j], m = keep * momentum[i * cols + j] + g;
      U[i * width + j] = keep * m + g;
      momentum[i * cols + j] = m;
    }
  const float scale = static_cast<float>(1 / (norm(n * width, U) + 1e-12));
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) transposed[j * n + i] = U[i * width + j] *= scale;
  layer_kernels<float>().multiply(n, n, width, U, width, transposed, n, single, n);
  std::copy_n(single, n * n, gram);
  const double* root = inverse_root(rule, n, gram, others);
  std::copy_n(root, n * n, single);
  layer_kernels<float>().multiply(n, width, n, single, n, U, width, moves, width);
  // The weights are kept at a norm of the root of their rows, and tall matrices move further.
  const double height = static_cast<double>(rows), stretch = height / static_cast<double>(cols);
  const float kept = static_cast<float>(std::sqrt(height) / norm(rows * cols, weight)),
              moved = static_cast<float>(rule.rate * std::sqrt(std::max(1.0, stretch)));
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j)
      weight[i * cols + j] = kept * weight[i * cols + j] - moved * moves[i * width + j];
}

void muon_(TensorList weights, TensorList momenta, TensorList gradients, const Tensor& rate,
           const std::optional<Tensor>& skipped, double factor, double momentum, at::ArrayRef<double> coefficients,
           int64_t turns) {
  TORCH_CHECK_VALUE(momenta.size() == weights.size() && gradients.size() == weights.size(),
                    "momenta and gradients must be as many as weights, ", weights.size(), ", got ", momenta.size(),
                    " and ", gradients.size());
  TORCH_CHECK_VALUE(coefficients.size() == 3 && turns >= 1, "coefficients must be three, and turns at least 1, got ",
                    coefficients.size(), " and ", turns);
  Workplace place{0, 0};
  std::vector<Tensor> from;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& weight = weights[i];
    for (const Tensor& tensor : {weight, momenta[i], gradients[i]}) {
      TORCH_CHECK_TYPE(tensor.scalar_type() == at::kFloat, "tensors must be of dtype float32, got ",
                       tensor.scalar_type());
      TORCH_CHECK_VALUE(tensor.sizes() == weight.sizes() && tensor.dim() >= 2 && tensor.numel() > 0,
                        "momenta and gradients must be of the shape of their weight, ", weight.sizes(), ", got ",
                        tensor.sizes());
    }
    TORCH_CHECK_VALUE(weight.is_contiguous() && momenta[i].is_contiguous(), "weights and momenta must be contiguous");
    from.push_back(gradients[i].contiguous());
    place.rows = std::max(place.rows, padded(weight.size(0)));
    place.cols = std::max(place.cols, padded(weight.numel() / weight.size(0)));
  }
  const MuonRule rule{rate.item<double>() * factor, momentum, coefficients[0], coefficients[1], coefficients[2], turns};
  if (skipped.has_value() && skipped->item<double>() > 0) return;
  for_each_item<float>(static_cast<int64_t>(weights.size()), place.size(), [&](int64_t item, float* memory) {
    const Tensor& weight = weights[item];
    const int64_t rows = weight.size(0);
    step(rule, rows, weight.numel() / rows, weight.data_ptr<float>(), momenta[item].data_ptr<float>(),
         from[item].const_data_ptr<float>(), memory);
  });
}

}  // namespace
}  // namespace dip_fast::cpu

TORCH_LIBRARY_IMPL(dip_fast, CPU, m) { m.impl("muon_", TORCH_FN(dip_fast::cpu::muon_)); }
