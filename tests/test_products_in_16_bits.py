"""Layers that multiply in bfloat16 and add up in float32, where the CPU has such instructions."""

import itertools

import pytest
import torch
from norm_conv_cases import KINDS, PADDED, Layer, arguments, call, errors, gradient, values_and_gradients
from test_stored_in_16_bits import NETWORKS, drawn, drawn_by, network_of, stored

from dip_fast.ops import extension, norm_conv
from dip_fast.ops.norm_conv import stored_as

BUILD = extension.load()
pytestmark = [
    pytest.mark.skipif(BUILD is None or "avx512_bf16" not in BUILD.cpu_levels(), reason="this CPU has none"),
    pytest.mark.cpu_only,
]

FLOAT, HALF = torch.float32, torch.bfloat16
SHAPES = [
    (5, 3, 7, 11, 21),  # channels, skip channels, outputs, sides: pairs that are not filled
    (36, 4, 32, 24, 40),
    (70, 17, 66, 9, 8),  # more than one chain of sums
    (1, 1, 5, 3, 3),
]


@pytest.fixture(autouse=True)
def level_is_put_back():
    before = BUILD.cpu_level()
    yield
    BUILD.select_cpu_level(before)


def at_both_levels(compute):
    results = []
    for level in ("avx512", "avx512_bf16"):
        BUILD.select_cpu_level(level)
        results.append(compute())
    return results


def whole_numbers(tensors, layer):
    """Replace tensors by small whole numbers, without batch norms but the one of an upsampling layer, which is 1."""
    generator = torch.Generator().manual_seed(3)

    def whole(tensor, most):
        return torch.randint(-most, most + 1, tensor.shape, generator=generator).to(tensor.dtype)

    made = {name: whole(tensor, 2) for name, tensor in tensors.items() if name in ("weight", "bias")}
    for name in ("image", "skip"):
        if name in tensors:
            values = whole(tensors[name], 3)
            if layer.mode:  # mean 0 and variance 1
                values = values.flatten(2)
                half = values.shape[-1] // 2
                values[..., : 2 * half : 2], values[..., 1 : 2 * half : 2] = 1, -1
                values = values[..., torch.randperm(values.shape[-1], generator=generator)].view_as(tensors[name])
            made[name] = values
    if layer.mode:
        made |= {"norm_weight": torch.ones_like(tensors["norm_weight"])}
        made |= {"norm_bias": torch.zeros_like(tensors["norm_bias"])}
    return made


def gradients_of(layer, tensors, written, eps=0.0):
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    output, statistics = call(norm_conv, layer, leaves, dtype=written, eps=eps)
    generator = torch.Generator().manual_seed(4)
    grad = torch.randint(-2, 3, output.shape, generator=generator).to(written)
    made = torch.autograd.grad(output, list(leaves.values()), grad)
    return {"output": output.detach(), "statistics": statistics.detach(), **dict(zip(leaves, made, strict=True))}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("read", [FLOAT, HALF], ids=str)
@pytest.mark.parametrize("layer", [KINDS[0], *(kind for kind in PADDED if kind.mode != "bilinear")], ids=str)
def test_factors_that_need_no_rounding_are_multiplied_as_in_float32(layer, read, shape):
    """Fields and weights that Winograd makes of small whole numbers have 8 bits at most, and their sums 24."""
    if layer.mode and shape[3] * shape[4] % 2:
        shape = (*shape[:4], shape[4] + 1)
    if layer.padding_mode == "reflect" and min(shape[3:]) < 2:
        pytest.skip("too small to reflect")
    tensors = stored(whole_numbers(arguments(layer, shape, FLOAT, plain=("image", "skip")), layer), read)
    wanted, got = at_both_levels(lambda: gradients_of(layer, tensors, HALF))
    for name, tensor in wanted.items():
        assert torch.equal(got[name], tensor), name


# In units of 2^-8, a factor's rounding: the worst seen is 1.0, 1.3 and, of the weights of Winograd's form, 3.2.
TOLERANCE = {"output": 1.5, "gradient of image": 2, "gradient of skip": 2, "gradient of weight": 5}


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
@pytest.mark.parametrize("layer", [KINDS[0], *PADDED], ids=str)
def test_factors_are_rounded(layer, shape):
    tensors = stored(drawn(layer, shape), HALF)
    grad = gradient(layer, shape)

    def compute():
        with stored_as(HALF):
            return values_and_gradients(norm_conv, layer, tensors, grad)

    wanted, got = at_both_levels(compute)
    assert not torch.equal(got["output"], wanted["output"])
    assert not torch.equal(got["gradient of weight"], wanted["gradient of weight"])
    found = errors(*({name: tensor.double() for name, tensor in each.items()} for each in (got, wanted)))
    for name, error in found.items():
        assert error * 2**8 <= TOLERANCE.get(name, 1), name


@pytest.mark.parametrize(("layer", "outputs"), [*itertools.product([KINDS[0], *PADDED], [7]), (KINDS[0], 3)], ids=str)
def test_layers_that_write_float32_or_have_few_outputs_are_as_before(layer, outputs):
    shape = (9, 3, outputs, 11, 12)
    written = FLOAT if outputs == 7 else HALF
    tensors = stored(drawn(layer, shape), HALF)
    wanted, got = at_both_levels(lambda: gradients_of(layer, tensors, written, eps=0.1))
    for name, tensor in wanted.items():
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("layer", [*KINDS, Layer(mode="bilinear", padding_mode="reflect")], ids=str)
def test_same_bits_for_any_number_of_threads(layer):
    shape = (20, 4, 7, 40, 36)
    tensors, grad = stored(drawn(layer, shape), HALF), gradient(layer, shape)
    BUILD.select_cpu_level("avx512_bf16")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with stored_as(HALF):
                results.append(values_and_gradients(norm_conv, layer, tensors, grad))
    finally:
        torch.set_num_threads(before)
    for name, tensor in results[1].items():
        assert torch.equal(tensor, results[0][name]), name


@pytest.mark.parametrize("name", NETWORKS)
def test_network_draws_nearly_the_same_in_float32(name):
    network = network_of(name).use("fused")
    z = torch.rand(1, 4, 32, 48, generator=torch.Generator().manual_seed(1))
    BUILD.select_cpu_level("avx512_bf16")
    exact, image = drawn_by(network, z), drawn_by(network, z, HALF)
    for near, right, tolerance in zip(image, exact, (0.02, 0.08), strict=True):  # worst seen 0.012 and 0.063
        assert (near - right).norm() <= tolerance * right.norm()
