"""Images that the operators read or write in bfloat16 on a CPU, while all is computed in float32.

Where factors are rounded to bfloat16 too: tests/test_products_in_16_bits.py.
"""

import itertools
import threading
from dataclasses import replace

import pytest
import torch
from norm_conv_cases import (
    KINDS,
    MEDIUM,
    PADDED,
    PARTS,
    Layer,
    arguments,
    assert_close,
    call,
    gradient,
    values_and_gradients,
)
from step_cases import OPTIONS, RECIPE, target

from dip_fast import networks
from dip_fast.device import precision
from dip_fast.fitting import prepare
from dip_fast.fitting.degradations import Identity
from dip_fast.ops import extension, norm_conv, reference
from dip_fast.ops.norm_conv import stored_as

pytestmark = [
    pytest.mark.skipif(extension.load() is None, reason="there is no compiled extension"),
    pytest.mark.cpu_only,
]

FLOAT, HALF = torch.float32, torch.bfloat16
PAIRS = list(itertools.product((FLOAT, HALF), repeat=2))  # what is read, what is written
ODD = (5, 3, 7, 11, 21)
# The layer and its shape: channels, skip channels, outputs, and the sides.
LAYERS = [(layer, ODD) for layer in (KINDS[0], *PADDED)]
LAYERS += [(Layer(mode=mode), (6, 0, 4, 9, 6)) for mode in ("nearest", "bilinear")]
# Written past the caches, by several items of work.
LAYERS += [(Layer(taps=1), (2, 0, 2, 512, 512)), (Layer(), (2, 0, 2, 512, 512))]
LAYERS += [(Layer(mode="nearest", padding_mode="reflect"), (2, 5, 2, 256, 256))]
LAYERS += [(Layer(mode="bilinear", padding_mode="replicate"), (2, 3, 2, 256, 256))]
layers = pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)


@pytest.fixture(autouse=True)
def factors_in_float32():
    build = extension.load()
    before = build.cpu_level()
    if build.rounds_factors():
        build.select_cpu_level("avx512")
    yield
    build.select_cpu_level(before)


def drawn(layer, shape):
    """Draw arguments in float32 whose images can be stored in 16 bits as they are."""
    tensors = arguments(layer, shape, FLOAT)
    return tensors | {name: tensor.to(HALF).float() for name, tensor in images(tensors).items()}


def images(tensors):
    return {name: tensors[name] for name in ("image", "skip") if name in tensors}


def stored(tensors, dtype):
    return tensors | {name: tensor.to(dtype) for name, tensor in images(tensors).items()}


def is_rounded_twice(layer):
    """Whether the border of the output is rounded before something is added to it: see csrc/cpu/ring.h."""
    return layer.mode == "bilinear" and layer.padding_mode != "replicate"


# ---- one operator


@pytest.mark.parametrize(("read", "written"), PAIRS, ids=str)
@layers
def test_output_is_that_of_float32_rounded(layer, shape, read, written):
    tensors = drawn(layer, shape)
    exact, statistics = call(norm_conv, layer, tensors)
    output, own_statistics = call(norm_conv, layer, stored(tensors, read), dtype=written)
    rounded = exact.to(written)
    assert output.dtype == written
    if written == FLOAT or not is_rounded_twice(layer):
        assert torch.equal(own_statistics, statistics)
        assert torch.equal(output, rounded)
        return
    assert ((own_statistics - statistics).abs() <= 2e-3 * (1 + statistics.abs())).all()
    assert torch.equal(output[..., 1:-1, 1:-1], rounded[..., 1:-1, 1:-1])
    # The border is rounded to 2^-9 of what it is without the sums of the ring, and again of what it is.
    assert ((output.float() - exact).abs() <= exact.abs().amax() * 2**-7).all()


@pytest.mark.parametrize(("read", "written"), PAIRS, ids=str)
@layers
def test_gradients_are_those_of_float32(layer, shape, read, written):
    """The operator of float32 is given the same stored images; sums are added in another order there."""
    tensors = drawn(layer, shape)
    leaves = {name: tensor.requires_grad_() for name, tensor in stored(tensors, read).items()}
    output, statistics = call(norm_conv, layer, leaves, dtype=written)
    grad = gradient(layer, shape).to(HALF)
    grad_statistics = torch.randn(statistics.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    found = torch.autograd.grad((output, statistics), list(leaves.values()), (grad.to(written), grad_statistics))
    assert [each.dtype for each in found] == [leaf.dtype for leaf in leaves.values()]
    wanted = backward(layer, tensors, grad.float(), grad_statistics, output.detach().float(), statistics.detach())
    for name, gradient_of in zip(leaves, found, strict=True):
        exact = wanted[name]
        if name in ("image", "skip"):
            assert torch.equal(gradient_of, exact.to(read)), name
        else:
            assert (gradient_of - exact).norm() <= 1e-5 * exact.norm(), name


def backward(layer, tensors, grad, grad_statistics, output, statistics):
    """Compute the gradients with the operator in float32, which reads the output too, by name."""
    names = [name + part for name in ("image", "skip")[: 1 + bool(layer.mode)] for part in PARTS]
    names += ["norm_weight", "norm_bias", "weight"] if layer.mode else ["weight"]
    operands = grad, grad_statistics, output, statistics, *(tensors.get(name) for name in names), 0.2, 0.1
    if layer.mode:
        made = torch.ops.dip_fast.norm_upsample_conv2d_backward(*operands, layer.mode, layer.padding_mode, True)
    else:
        mask = [True, True, True]
        made = torch.ops.dip_fast.norm_conv2d_backward(*operands, layer.stride, layer.padding_mode, mask)
    return dict(zip([*names, "bias"], made, strict=True))


@pytest.mark.parametrize(("read", "written"), PAIRS[1:], ids=str)
@pytest.mark.parametrize("layer", KINDS, ids=str)
def test_as_it_is_defined(layer, read, written):
    tensors = stored(drawn(layer, MEDIUM), read)
    made = [call(module, layer, tensors, dtype=written) for module in (norm_conv, reference)]
    assert {output.dtype for output, _ in made} == {written}
    got, wanted = (dict(zip(("output", "statistics"), each, strict=True)) for each in made)
    assert_close(got, {name: tensor.double() for name, tensor in wanted.items()}, 2**-8)


@pytest.mark.parametrize("layer", [replace(kind, padding_mode="reflect") for kind in KINDS], ids=str)
def test_same_bits_for_any_number_of_threads(layer):
    shape = (20, 4, 7, 40, 36)
    tensors, grad = stored(drawn(layer, shape), HALF), gradient(layer, shape)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(values_and_gradients(norm_conv, layer, tensors, grad))
    finally:
        torch.set_num_threads(before)
    for name, tensor in results[1].items():
        assert torch.equal(tensor, results[0][name]), name


@pytest.mark.parametrize(("read", "written"), PAIRS, ids=str)
@pytest.mark.parametrize("layer", KINDS, ids=str)
def test_meta_tensors(layer, read, written):
    tensors = stored(drawn(layer, (3, 2, 4, 5, 6)), read)
    metas = {name: tensor.to("meta").requires_grad_() for name, tensor in tensors.items()}
    output, statistics = call(norm_conv, layer, metas, dtype=written)
    real = call(norm_conv, layer, tensors, dtype=written)
    for meta, own in zip((output, statistics), real, strict=True):
        assert (meta.shape, meta.dtype, meta.stride()) == (own.shape, own.dtype, own.stride())
    gradients = torch.autograd.grad((output, statistics), list(metas.values()), (output.detach(), statistics.detach()))
    for name, grad in zip(metas, gradients, strict=True):
        assert (grad.shape, grad.dtype) == (tensors[name].shape, tensors[name].dtype)


@pytest.mark.parametrize("layer", [Layer(), Layer(mode="nearest")], ids=str)
def test_refused_dtypes(layer):
    double, tensors = arguments(layer, MEDIUM), arguments(layer, MEDIUM, FLOAT)
    for given, dtype in ((double, FLOAT), (double, HALF)):
        with pytest.raises(TypeError, match=r"^dtype must be that of the image for an image of Double, got \w+$"):
            call(norm_conv, layer, given, dtype=dtype)
    for dtype in (torch.float16, torch.float64, torch.int32):
        with pytest.raises(TypeError, match=r"^dtype must be float32 or bfloat16 for an image of Float, got \w+$"):
            call(norm_conv, layer, tensors, dtype=dtype)
    with pytest.raises(TypeError, match="must be of dtype Float, got BFloat16"):
        call(norm_conv, layer, {name: t.to(HALF) if t.dtype == FLOAT else t for name, t in tensors.items()})
    if layer.mode:
        with pytest.raises(TypeError, match="skip must be of dtype BFloat16, got Float"):
            call(norm_conv, layer, tensors | {"image": tensors["image"].to(HALF)})


def test_output_of_a_backward_pass_has_a_dtype_that_the_forward_pass_writes():
    """Its dtype was not compared with that of the image, and one of float16 was read as float32, beyond its end."""
    tensors = arguments(Layer(), MEDIUM, FLOAT)
    output, statistics = call(norm_conv, Layer(), tensors)
    for dtype in (torch.float16, torch.float64):
        wrong = output.to(dtype)
        with pytest.raises(TypeError, match="dtype of output must be float32 or bfloat16 for an image of Float"):
            backward(Layer(), tensors, torch.ones_like(wrong), torch.zeros_like(statistics), wrong, statistics)


# ---- the context


def dtype_of_an_output():
    return call(norm_conv, Layer(), arguments(Layer(), MEDIUM, FLOAT))[0].dtype


def test_context_nests_and_is_undone():
    with stored_as(HALF):
        assert dtype_of_an_output() == HALF
        with stored_as(None):
            assert dtype_of_an_output() == FLOAT
        assert dtype_of_an_output() == HALF
        assert call(norm_conv, Layer(), arguments(Layer(), MEDIUM, FLOAT), dtype=FLOAT)[0].dtype == FLOAT
        with pytest.raises(ZeroDivisionError), stored_as(FLOAT):
            raise ZeroDivisionError
        assert dtype_of_an_output() == HALF
    assert dtype_of_an_output() == FLOAT


def test_context_is_that_of_its_thread():
    """It was a global: a fit changed what other threads drew meanwhile."""
    seen = []
    thread = threading.Thread(target=lambda: seen.append(dtype_of_an_output()))
    with stored_as(HALF):
        thread.start()
        thread.join()
    assert seen == [FLOAT]


def test_compiled_function_is_one_graph_that_follows_the_context():
    """A ContextVar, in place of a thread's own attribute, broke the graph."""
    tensors = arguments(Layer(), MEDIUM, FLOAT)
    torch.compiler.reset()
    compiled = torch.compile(lambda: call(norm_conv, Layer(), tensors)[0], backend="eager", fullgraph=True)
    assert compiled().dtype == FLOAT
    with stored_as(HALF):
        assert compiled().dtype == HALF
    assert compiled().dtype == FLOAT


# ---- networks

THIN = {"down": 8, "up": 8, "skip": 2, "scales": 2}
NETWORKS = {
    "nearest": {"upsampling": "nearest"},
    "without sigmoid": {"sigmoid": False},
    "bilinear": {"upsampling": "bilinear"},
    "pooling": {"downsampling": "average"},
    "Lanczos": {"downsampling": "lanczos2"},
    "wide skip": {"skip": 32},
    "wide skip inside, without 1x1": {"skip": [2, 32], "conv1x1": False},
    # Whose deep or skip image is of PyTorch's layers, and in float32, while the other one is stored in 16 bits.
    "large kernels down": {"kernel_down": 5},
    "large kernels of the skip branch": {"kernel_skip": 5},
    "large kernel up inside": {"kernel_up": [3, 5], "conv1x1": False},
}


def network_of(name):
    torch.manual_seed(0)
    return networks.build("skip", 4, 3, **THIN | NETWORKS[name])


def drawn_by(network, z, dtype=None):
    """Draw an image, and compute the gradients of the weights in one vector."""
    with stored_as(dtype):
        image = network(z)
    weights = [weight for name, weight in network.named_parameters() if not name.endswith("conv.bias")]
    gradients = torch.autograd.grad((image - 0.5).square().sum(), weights)
    return image.detach(), torch.cat([each.flatten() for each in gradients])


@pytest.mark.parametrize("name", NETWORKS)
def test_network_draws_nearly_the_same_in_float32(name):
    network = network_of(name).use("fused")
    z = torch.rand(1, 4, 32, 48, generator=torch.Generator().manual_seed(1))
    exact, image = drawn_by(network, z), drawn_by(network, z, HALF)
    assert image[0].dtype == FLOAT
    assert not torch.equal(image[0], exact[0])
    assert (image[0].to(HALF) != image[0]).any()  # it was never rounded
    for near, right, tolerance in zip(image, exact, (0.01, 0.05), strict=True):
        assert (near - right).norm() <= tolerance * right.norm()


def test_half_the_memory_is_kept_for_the_gradients():
    network = network_of("nearest").use("fused")
    weights = {weight.data_ptr() for weight in network.parameters()}
    z = torch.rand(1, 4, 64, 64)

    def kept(dtype):
        storages = {}

        def keep(tensor):
            if tensor.dim() == 4 and tensor.data_ptr() not in weights and tensor.shape[1] > 4:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor.detach()  # an output that its own node holds would never be freed

        with stored_as(dtype), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network(z)
        return sum(storages.values())

    assert kept(HALF) == kept(FLOAT) / 2 > 0


# ---- a fit


def test_fit_keeps_its_input_and_its_image_in_float32():
    losses, recipe = {}, replace(RECIPE, options=replace(OPTIONS, iterations=10))
    for name in ("fp32", "bf16"):
        fit, read, between = prepare(Identity(target()), recipe, engine="fused", precision=name), [], []
        fit.network.register_forward_pre_hook(lambda module, inputs, read=read: read.append(inputs[0].dtype))
        fit.network.scale.deepen.register_forward_pre_hook(
            lambda module, inputs, between=between: between.append(inputs[0].tensor.dtype)
        )
        assert fit.network.is_fused()
        assert precision.is_stored_alone(name, fit.device, fit.network) == (name == "bf16")
        fit.run()
        losses[name] = fit.rows[0][1]
        assert set(read) == {FLOAT}
        assert between[0] == (HALF if name == "bf16" else FLOAT)
        assert fit.iterate.dtype == fit.draw().dtype == FLOAT
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.01)
    assert losses["bf16"] != losses["fp32"]
