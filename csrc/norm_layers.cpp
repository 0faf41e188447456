// The operator norm_layers: many norm_conv2d and norm_upsample_conv2d, each of which reads what those before it wrote,
// as one function of z and the parameters.
//
// A step of a small network calls some fifty operators, and each costs ten to thirty microseconds in Python and in
// autograd.  Here they are called one after another, forward and back; autograd sees one function.  It is the same as
// to call them one by one, bit for bit, and that is what it is tested against.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>

#include <algorithm>
#include <utility>

#include "autograd.h"

namespace dip_fast {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Parameters = c10::ArrayRef<Tensor>;

constexpr int64_t NONE = -1;
constexpr c10::string_view PADDINGS[] = {"zeros", "reflect", "replicate"}, MODES[] = {"nearest", "bilinear"};
constexpr at::ScalarType DTYPES[] = {at::kFloat, at::kDouble, at::kBFloat16};

// An image and its batch norm: image 0 is z, image i + 1 the output of layer i; weight and bias are parameters, NONE
// where the image is read as it is.
struct Read {
  int64_t image, weight, bias;
};

// A layer, as its row of the program has it (schema.cpp).
struct Layer {
  static constexpr int64_t FIELDS = 14;

  bool joins;       // norm_upsample_conv2d
  Read deep, skip;  // skip.image: NONE if there is none
  int64_t norm_weight, norm_bias, weight, bias;
  int64_t stride_or_mode, padding, dtype;
  double slope, eps;

  Layer(const int64_t* row, const double* numbers)
      : joins(row[0] != 0),
        deep{row[1], row[2], row[3]},
        skip{row[4], row[5], row[6]},
        norm_weight(row[7]),
        norm_bias(row[8]),
        weight(row[9]),
        bias(row[10]),
        stride_or_mode(row[11]),
        padding(row[12]),
        dtype(row[13]),
        slope(numbers[0]),
        eps(numbers[1]) {}

  Dtype output_type() const { return dtype == NONE ? Dtype() : Dtype(DTYPES[dtype]); }
  bool reads(int64_t image) const { return deep.image == image || skip.image == image; }

  // Throws where an index is out of range; images must have been written before layer `index` reads them.
  void check(int64_t index, int64_t parameters) const {
    const auto within = [](int64_t value, int64_t least, int64_t end) { return value >= least && value < end; };
    const auto is_read = [&](const Read& read, int64_t least) {
      return within(read.image, least, index + 1) && within(read.weight, NONE, parameters) &&
             within(read.bias, NONE, parameters) && (read.weight == NONE || (read.image > 0 && read.bias != NONE));
    };
    const bool fits = is_read(deep, 0) && is_read(skip, NONE) && within(weight, 0, parameters) &&
                      within(bias, NONE, parameters) && within(padding, 0, 3) && within(dtype, NONE, 3) &&
                      (!joins || (within(norm_weight, 0, parameters) && within(norm_bias, 0, parameters) &&
                                  within(stride_or_mode, 0, 2)));
    TORCH_CHECK_VALUE(fits, "program: row ", index, " names what is not there");
  }
};

std::vector<Layer> layers_of(at::IntArrayRef program, c10::ArrayRef<double> numbers, int64_t parameters) {
  const auto count = static_cast<int64_t>(program.size()) / Layer::FIELDS;
  TORCH_CHECK_VALUE(count > 0 && static_cast<int64_t>(program.size()) == count * Layer::FIELDS &&
                        static_cast<int64_t>(numbers.size()) == 2 * count,
                    "program and numbers must have ", Layer::FIELDS, " and 2 elements for each of some layers, got ",
                    program.size(), " and ", numbers.size());
  std::vector<Layer> layers;
  for (int64_t i = 0; i < count; ++i) {
    layers.emplace_back(program.data() + i * Layer::FIELDS, numbers.data() + 2 * i);
    layers.back().check(i, parameters);
  }
  return layers;
}

// The images and their statistics; those of z have none.
struct Images {
  std::vector<Tensor> images, statistics;

  explicit Images(const Tensor& z) : images{z}, statistics(1) {}

  // The arguments by which a layer reads an image.
  std::tuple<OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor> read(const Read& read,
                                                                                  Parameters parameters) const {
    if (read.image == NONE) return {};
    if (read.weight == NONE) return {images[read.image], std::nullopt, std::nullopt, std::nullopt};
    return {images[read.image], statistics[read.image], parameters[read.weight], parameters[read.bias]};
  }

  void write(const Layer& layer, Parameters parameters) {
    const auto [image, norm_statistics, norm_weight, norm_bias] = read(layer.deep, parameters);
    const OptionalTensor bias = layer.bias == NONE ? OptionalTensor() : OptionalTensor(parameters[layer.bias]);
    const c10::string_view padding = PADDINGS[layer.padding];
    Tensor output, output_statistics;
    if (layer.joins) {
      const auto [skip, skip_statistics, skip_weight, skip_bias] = read(layer.skip, parameters);
      std::tie(output, output_statistics) = norm_upsample_conv_operators().forward.call(
          *image, norm_statistics, norm_weight, norm_bias, skip, skip_statistics, skip_weight, skip_bias,
          parameters[layer.norm_weight], parameters[layer.norm_bias], parameters[layer.weight], bias, layer.slope,
          layer.eps, MODES[layer.stride_or_mode], padding, layer.output_type());
    } else {
      std::tie(output, output_statistics) = norm_conv_operators().forward.call(
          *image, norm_statistics, norm_weight, norm_bias, parameters[layer.weight], bias, layer.slope, layer.eps,
          layer.stride_or_mode, padding, layer.output_type());
    }
    images.push_back(std::move(output));
    statistics.push_back(std::move(output_statistics));
  }
};

Tensor draw(const Tensor& z, Parameters parameters, const std::vector<Layer>& layers) {
  const at::AutoDispatchBelowADInplaceOrView below;
  Images made(z);
  for (auto layer = layers.begin(); layer != layers.end(); ++layer) {
    made.write(*layer, parameters);
    // What it was the last to read is not kept.
    for (const int64_t image : {layer->deep.image, layer->skip.image})
      if (image != NONE && std::none_of(layer + 1, layers.end(), [&](const Layer& l) { return l.reads(image); }))
        made.images[image].reset();
  }
  return made.images.back();
}

// What the backward pass of one call needs beside z and the parameters.
struct Kept : torch::CustomClassHolder {
  std::vector<Layer> layers;
  Images made;

  Kept(std::vector<Layer> layers_, Images made_) : layers(std::move(layers_)), made(std::move(made_)) {}
};

// The gradients of images, statistics and parameters; undefined where there is none yet.
struct Gradients {
  std::vector<Tensor> images, statistics, parameters;

  static void add(std::vector<Tensor>& to, int64_t index, const Tensor& gradient) {
    if (index == NONE) return;
    if (to[index].defined())
      to[index].add_(gradient);
    else
      to[index] = gradient;
  }
  // Adds the gradients of an image, its statistics and its batch norm.
  void add(const Read& read, const Tensor* four) {
    if (read.image == NONE) return;
    add(images, read.image, four[0]);
    if (read.weight == NONE) return;
    add(statistics, read.image, four[1]);
    add(parameters, read.weight, four[2]);
    add(parameters, read.bias, four[3]);
  }
};

// Goes back through layer i, whose gradient is there; needed(p) says whether that of parameter p is.
template <class F>
void go_back(const Layer& layer, size_t i, const Images& made, Parameters parameters, bool of_z, F needed,
             Gradients& gradients) {
  const Tensor grad = std::exchange(gradients.images[i + 1], Tensor()), &output = made.images[i + 1],
               &statistics = made.statistics[i + 1];
  Tensor grad_statistics = std::exchange(gradients.statistics[i + 1], Tensor());
  if (!grad_statistics.defined()) grad_statistics = at::zeros_like(statistics);
  const auto [image, norm_statistics, norm_weight, norm_bias] = made.read(layer.deep, parameters);
  const c10::string_view padding = PADDINGS[layer.padding];
  const bool with_bias = layer.bias != NONE && needed(layer.bias), overwrites = may_be_overwritten(grad);
  if (layer.joins) {
    const auto [skip, skip_statistics, skip_weight, skip_bias] = made.read(layer.skip, parameters);
    const NormUpsampleConvOperators& operators = norm_upsample_conv_operators();
    const std::vector<Tensor> found =
        (overwrites ? operators.overwriting : operators.backward)
            .call(grad, grad_statistics, output, statistics, *image, norm_statistics, norm_weight, norm_bias, skip,
                  skip_statistics, skip_weight, skip_bias, parameters[layer.norm_weight], parameters[layer.norm_bias],
                  parameters[layer.weight], layer.slope, layer.eps, MODES[layer.stride_or_mode], padding, with_bias);
    gradients.add(layer.deep, found.data());
    gradients.add(layer.skip, found.data() + 4);
    gradients.add(gradients.parameters, layer.norm_weight, found[8]);
    gradients.add(gradients.parameters, layer.norm_bias, found[9]);
    gradients.add(gradients.parameters, layer.weight, found[10]);
    if (with_bias) gradients.add(gradients.parameters, layer.bias, found[11]);
  } else {
    const bool of_input = layer.deep.image > 0 || of_z, of_weight = needed(layer.weight);
    const NormConvOperators& operators = norm_conv_operators();
    const auto [of_image, of_statistics, of_norm_weight, of_norm_bias, of_weights, of_bias] =
        (overwrites ? operators.overwriting : operators.backward)
            .call(grad, grad_statistics, output, statistics, *image, norm_statistics, norm_weight, norm_bias,
                  parameters[layer.weight], layer.slope, layer.eps, layer.stride_or_mode, padding,
                  {of_input, of_weight, with_bias});
    const std::array four{of_image, of_statistics, of_norm_weight, of_norm_bias};
    if (of_input) gradients.add(layer.deep, four.data());
    if (of_weight) gradients.add(gradients.parameters, layer.weight, of_weights);
    if (with_bias) gradients.add(gradients.parameters, layer.bias, of_bias);
  }
}

struct NormLayers : torch::autograd::Function<NormLayers> {
  static Tensor forward(AutogradContext* ctx, const Tensor& z, at::TensorList parameters,
                        const std::vector<Layer>& layers) {
    const at::AutoDispatchBelowADInplaceOrView below;
    Images made(z);
    for (const Layer& layer : layers) made.write(layer, parameters);
    const Tensor drawn = made.images.back();
    made.images.front().reset();          // z is saved as an argument
    made.images.back() = drawn.detach();  // `drawn` itself will refer to this function
    variable_list arguments{z};
    arguments.insert(arguments.end(), parameters.begin(), parameters.end());
    ctx->save_for_backward(std::move(arguments));
    ctx->saved_data["kept"] = c10::IValue::make_capsule(c10::make_intrusive<Kept>(layers, std::move(made)));
    return drawn;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    check_first_derivative("dip_fast::norm_layers");
    const variable_list saved = ctx->get_saved_variables();
    const Parameters parameters = c10::ArrayRef(saved).slice(1);
    const auto kept = c10::static_intrusive_pointer_cast<Kept>(ctx->saved_data.at("kept").toCapsule());
    TORCH_CHECK(kept->made.images.size() > 1,
                "dip_fast::norm_layers: its images are freed; give retain_graph=True to the first backward pass");
    // Images are freed as soon as their layer is done, unless the graph is to be gone through again.
    Images made =
        torch::autograd::get_current_graph_task_keep_graph() ? kept->made : std::exchange(kept->made, Images(Tensor()));
    made.images.front() = saved[0];
    Gradients gradients{std::vector<Tensor>(made.images.size()), std::vector<Tensor>(made.images.size()),
                        std::vector<Tensor>(parameters.size())};
    gradients.images.back() = grads[0];
    const at::AutoDispatchBelowADInplaceOrView below;
    const bool of_z = ctx->needs_input_grad(0);
    for (size_t i = kept->layers.size(); i-- > 0;) {
      if (!gradients.images[i + 1].defined()) continue;  // nothing reads it
      go_back(
          kept->layers[i], i, made, parameters, of_z, [&](int64_t p) { return ctx->needs_input_grad(p + 1); },
          gradients);
      made.images[i + 1].reset();
    }
    variable_list result{of_z ? gradients.images[0] : Tensor()};
    for (size_t p = 0; p < parameters.size(); ++p) {
      Tensor& gradient = gradients.parameters[p];
      if (!ctx->needs_input_grad(p + 1))
        gradient.reset();
      else if (!gradient.defined())  // no layer reads it
        gradient = at::zeros_like(parameters[p]);
      result.push_back(std::move(gradient));
    }
    result.emplace_back();  // of the layers
    return result;
  }
};

Tensor norm_layers(const Tensor& z, at::TensorList parameters, at::IntArrayRef program, c10::ArrayRef<double> numbers) {
  const std::vector<Layer> layers = layers_of(program, numbers, static_cast<int64_t>(parameters.size()));
  const bool needs_grad = at::GradMode::is_enabled() &&
                          (z.requires_grad() || std::any_of(parameters.begin(), parameters.end(),
                                                            [](const Tensor& p) { return p.requires_grad(); }));
  return needs_grad ? NormLayers::apply(z, parameters, layers) : draw(z, parameters, layers);
}

}  // namespace
}  // namespace dip_fast

TORCH_LIBRARY_IMPL(dip_fast, CompositeImplicitAutograd, m) { m.impl("norm_layers", TORCH_FN(dip_fast::norm_layers)); }
