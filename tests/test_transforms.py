"""Transforms of PyTorch, exporters and modes: what is fused computes, or is counted, as PyTorch's own layers are."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import onnxruntime
import pytest
import torch
from fuse_models import conv, picture
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

import dip_fast
from dip_fast.networks import Skip
from dip_fast.ops import extension, reference, upsample_conv2d

pytestmark = [
    pytest.mark.usefixtures("fixed_seed"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of TorchScript, which jvp loads rules from too
]
KINDS = [("nearest", "zeros"), ("bilinear", "reflect")]


def pair(mode: str = "nearest", padding_mode: str = "zeros") -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 1), nn.Upsample(scale_factor=2, mode=mode), conv(padding_mode=padding_mode))


def forward_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor | None:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, x.cos()))).tangent


def loss(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: function(x).square().sum()


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x.cos(),)),
    "dual numbers": forward_gradient,
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "grad": lambda f, x: torch.func.grad(loss(f))(x),
    "vjp": lambda f, x: torch.func.vjp(f, x)[1](f(x)),
    "hessian": lambda f, x: torch.func.hessian(loss(f))(x),
    "vmap": lambda f, x: torch.func.vmap(f)(torch.stack([x, 2 * x])),
    "vmap of grad": lambda f, x: torch.func.vmap(torch.func.grad(lambda one: loss(f)(one[None])))(
        torch.cat([x, 2 * x])
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(("mode", "padding_mode"), KINDS)
def test_transforms_of_a_fused_model(mode: str, padding_mode: str, transform: str) -> None:
    model = pair(mode, padding_mode)
    fused, x = dip_fast.fuse(model), picture(1, 2, 3, 4)
    got, expected = (TRANSFORMS[transform](each, x) for each in (fused, model))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_of_a_network_on_the_fused_engine(transform: str) -> None:
    if extension.load() is None:
        pytest.skip("there is no compiled extension")
    network = Skip(1, 1, down=2, up=2, skip=1, scales=1)
    z = picture(1, 1, 4, 4)
    expected = TRANSFORMS[transform](network, z)
    torch.testing.assert_close(TRANSFORMS[transform](network.use("fused"), z), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_operator_that_is_called_directly_drops_no_tangents(transform: str) -> None:
    x, weight, bias = picture(1, 2, 3, 4), picture(3, 2, 3, 3).requires_grad_(), picture(3)
    operators = torch.ops.dip_fast.upsample_conv2d, reference.upsample_conv2d
    got, expected = (TRANSFORMS[transform](lambda x: f(x, weight, bias, *KINDS[1]), x) for f in operators)  # noqa: B023
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("wanted", ["input", "weight"])
@pytest.mark.parametrize(("mode", "padding_mode"), KINDS)
def test_tangents_of_a_gradient(mode: str, padding_mode: str, wanted: str) -> None:
    x, weight = picture(1, 2, 3, 4).requires_grad_(), picture(3, 2, 3, 3).requires_grad_()

    def tangent(operator: Callable[..., Tensor], gradient: Tensor) -> Tensor | None:
        output = operator(x, weight, None, mode, padding_mode)  # before there are dual numbers
        return forward_gradient(
            lambda g: torch.autograd.grad(output, {"input": x, "weight": weight}[wanted], g)[0], gradient
        )

    gradient = picture(1, 3, 6, 8)
    got, expected = (tangent(f, gradient) for f in (torch.ops.dip_fast.upsample_conv2d, reference.upsample_conv2d))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_jacobian_of_the_parameters() -> None:
    model, x = pair(), picture(1, 2, 3, 4)
    fused, parameters = dip_fast.fuse(model), dict(model.named_parameters())

    def jacobian(module: nn.Module) -> Any:
        return torch.func.jacfwd(lambda weights: torch.func.functional_call(module, weights, (x,)))(parameters)

    torch.testing.assert_close(jacobian(fused), jacobian(model), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_compiled_forward_derivative() -> None:
    x, weight = picture(1, 2, 3, 4), picture(3, 2, 3, 3)

    def tangent(operator: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.func.jvp(lambda y: operator(y, weight), (x,), (x.cos(),))[1]

    compiled = torch.compile(tangent(upsample_conv2d), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), tangent(reference.upsample_conv2d)(x))


# ---- autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("input", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("mode", "padding_mode"), KINDS)
def test_autocast_takes_any_floating_input(
    mode: str, padding_mode: str, input: torch.dtype, dtype: torch.dtype, fused_calls: list[tuple[str, str]]
) -> None:
    model = nn.Sequential(*pair(mode, padding_mode)[1:], nn.Upsample(scale_factor=2), conv())
    fused, layer = dip_fast.fuse(model), dip_fast.UpsampleConv2d(4, 3)
    x = picture(1, 4, 5, 6).to(input)
    with torch.autocast("cpu", dtype):
        got, expected = fused(x), model(x)
        assert layer(x).dtype == dtype
        raw = torch.ops.dip_fast.upsample_conv2d(x, layer.weight, layer.bias, "nearest", "zeros")
    assert len(fused_calls) == 2
    assert raw.dtype == got.dtype == expected.dtype == dtype
    torch.testing.assert_close(got, expected, atol=3e-2, rtol=3e-2)
    (gradient,) = torch.autograd.grad(raw.float().sum(), layer.weight)
    assert gradient.dtype == torch.float32


# ---- hooks, counters and layouts


def test_hooks_of_all_modules_are_called(fused_calls: list[tuple[str, str]]) -> None:
    model = pair()
    fused, x = dip_fast.fuse(model), picture(1, 2, 3, 4)
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(module))
    try:
        expected = fused(x)
    finally:
        handle.remove()
    assert seen == [*fused, fused]
    assert not fused_calls
    torch.testing.assert_close(fused(x), expected, atol=1e-5, rtol=1e-5)
    assert len(fused_calls) == 1


def flops(module: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        module(x).sum().backward()
    return counter.get_total_flops()


def test_flops_are_those_of_the_layers() -> None:
    model, x = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(2, 4, 3, padding=1)), picture(1, 2, 3, 4)
    counted = flops(model, x)
    assert counted == 2 * 2 * (6 * 8) * 2 * 4 * 9
    assert flops(dip_fast.fuse(model), x) == counted
    assert flops(dip_fast.UpsampleConv2d(2, 4), x) == counted


@pytest.mark.skipif(extension.load() is None, reason="there is no compiled extension")
def test_flops_of_a_network_on_the_fused_engine() -> None:
    network, z = Skip(2, 3, down=4, up=4, skip=2, scales=2), picture(1, 2, 8, 8)
    counted = flops(network, z)
    assert flops(network.use("fused"), z) == counted > 0


@pytest.mark.parametrize("converted", ["input", "model"])
def test_channels_last_stays(converted: str, fused_calls: list[tuple[str, str]]) -> None:
    model, x = pair()[1:], picture(2, 4, 5, 6)
    if converted == "input":
        x = x.to(memory_format=torch.channels_last)
    else:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    expected, got = model(x), dip_fast.fuse(model)(x)
    assert len(fused_calls) == 1
    assert got.stride() == expected.stride()
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert dip_fast.fuse(pair()[1:])(picture(2, 4, 5, 6)).is_contiguous()


def test_layout_of_a_transposed_row_of_pixels_is_that_of_the_layers(fused_calls: list[tuple[str, str]]) -> None:
    """Attention leaves such strides, which are channels last for `is_contiguous` and not for a convolution."""
    model, x = pair()[1:], picture(1, 30, 4).transpose(1, 2).reshape(1, 4, 5, 6)
    x = x.as_strided(x.shape, (4, 1, 24, 4))
    assert dip_fast.fuse(model)(x).stride() == model(x).stride() == (480, 120, 12, 1)
    assert len(fused_calls) == 1


# ---- TorchScript and its exporter


def test_scripted_model_is_reported_and_left() -> None:
    model, x = pair()[1:], picture(1, 4, 5, 6)
    for script in (torch.jit.script(model), torch.jit.trace(model, x)):
        for whole in (script, nn.Sequential(script, nn.ReLU())):
            report = dip_fast.fusion_report(whole)
            assert not report.replaced
            assert [each.reason for each in report.left] == ["it is TorchScript, which cannot be traced"]
            torch.testing.assert_close(dip_fast.fuse(whole)(x), whole(x))


def test_layer_can_be_scripted() -> None:
    layer, x = dip_fast.UpsampleConv2d(4, 3, mode="bilinear", padding_mode="reflect"), picture()
    assert torch.equal(torch.jit.script(layer)(x), layer(x))


def test_fused_model_is_not_scripted_but_its_plain_one() -> None:
    fused, x = dip_fast.fuse(pair()), picture(1, 2, 48, 48)
    with pytest.raises(TypeError, match=r"script dip_fast.unfuse\(model\)"):
        torch.jit.script(fused)
    script = torch.jit.script(dip_fast.unfuse(fused))
    torch.testing.assert_close(script(x), fused(x), atol=1e-5, rtol=1e-5)
    assert torch.equal(torch.jit.trace(fused, x)(x), fused(x))


def test_unfused_model_is_the_plain_one(fused_calls: list[tuple[str, str]]) -> None:
    model = nn.Sequential(nn.Sequential(nn.Upsample(scale_factor=2), conv()), nn.ReLU())
    fused, x = dip_fast.fuse(model), picture()
    plain = dip_fast.unfuse(fused)
    assert torch.equal(plain(x), model(x))
    assert not fused_calls
    assert [type(module) for module in plain.modules()] == [type(module) for module in model.modules()]
    assert [id(parameter) for parameter in plain.parameters()] == [id(parameter) for parameter in model.parameters()]
    fused(x)
    assert len(fused_calls) == 1  # the fused one is as it was
    assert dip_fast.unfuse(fused, inplace=True) is fused
    assert torch.equal(fused(x), model(x))
    dip_fast.fuse(fused, inplace=True)(x)
    assert len(fused_calls) == 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["fused model", "layer"])
def test_torchscript_exporter_writes_standard_operators(kind: str) -> None:
    x = picture(1, 4, 5, 6)
    model = dip_fast.UpsampleConv2d(4, 3) if kind == "layer" else dip_fast.fuse(pair("bilinear", "reflect")[1:])
    file = io.BytesIO()
    torch.onnx.export(model, (x,), file, dynamo=False, input_names=["x"])
    (drawn,) = onnxruntime.InferenceSession(file.getvalue()).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(drawn), model(x).detach(), atol=1e-5, rtol=1e-5)
