"""Fused models say what the plain ones say, share their parameters, and fuse what they promise to fuse."""

from __future__ import annotations

import copy
import io
import pickle
import random
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dip_fast
import dip_fast.ops.fuse as fusing


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """The modes of the calls that reach the operator."""
    made: list[tuple[str, str]] = []
    operator = fusing.upsample_conv2d

    def counting(*args: Tensor, mode: str, padding_mode: str) -> Tensor:
        made.append((mode, padding_mode))
        return operator(*args, mode=mode, padding_mode=padding_mode)

    monkeypatch.setattr(fusing, "upsample_conv2d", counting)
    return made


def conv(channels: int = 4, **options: object) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, **({"padding": 1} | options))  # type: ignore[arg-type]


def picture(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 4, 5, 6)))


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    return list(torch.autograd.grad(y.square().sum(), [x, *model.parameters()], allow_unused=True))


def check(model: nn.Module, x: Tensor, calls: list[tuple[str, str]], expected: int) -> nn.Module:
    """Check a fused model against the plain one: outputs, gradients, keys, parameters, and the calls it makes."""
    fused = dip_fast.fuse(model)
    assert list(fused.state_dict()) == list(model.state_dict())
    assert [id(p) for p in fused.parameters()] == [id(p) for p in model.parameters()]
    assert [id(b) for b in fused.buffers()] == [id(b) for b in model.buffers()]
    calls.clear()
    torch.testing.assert_close(fused(x), model(x), atol=1e-5, rtol=1e-5)
    assert len(calls) == expected
    plain_gradients = gradients(model, x)
    # Of one size for all: a bias that feeds a batch norm has a gradient of zero but for rounding.
    tolerance = 1e-5 * max(gradient.abs().max().item() for gradient in plain_gradients if gradient is not None)
    for got, wanted in zip(gradients(fused, x), plain_gradients, strict=True):
        assert (got is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(got, wanted, atol=tolerance, rtol=1e-4)
    return fused


# ---- sequences of modules --------------------------------------------------------------------------------------------

PADS: dict[str, tuple[Callable[[], nn.Module] | None, dict[str, object], str]] = {
    "zeros of the convolution": (None, {}, "zeros"),
    "same": (None, {"padding": "same"}, "zeros"),
    "reflection of the convolution": (None, {"padding_mode": "reflect"}, "reflect"),
    "replication of the convolution": (None, {"padding_mode": "replicate"}, "replicate"),
    "ZeroPad2d": (lambda: nn.ZeroPad2d(1), {"padding": 0}, "zeros"),
    "ConstantPad2d": (lambda: nn.ConstantPad2d(1, 0.0), {"padding": 0}, "zeros"),
    "ReflectionPad2d": (lambda: nn.ReflectionPad2d(1), {"padding": 0}, "reflect"),
    "ReplicationPad2d": (lambda: nn.ReplicationPad2d(1), {"padding": "valid"}, "replicate"),
}


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "nearest-exact"])
@pytest.mark.parametrize("name", PADS)
def test_sequence_with_every_padding(mode: str, name: str, calls: list[tuple[str, str]]) -> None:
    pad, options, padding_mode = PADS[name]
    layers = [nn.Upsample(scale_factor=2, mode=mode), *([] if pad is None else [pad()]), conv(**options)]
    check(nn.Sequential(*layers, nn.LeakyReLU(inplace=True)), picture(), calls, 1)
    assert set(calls) == {(mode.removesuffix("-exact"), padding_mode)}


def test_pair_across_nested_sequences(calls: list[tuple[str, str]]) -> None:
    tail = nn.Sequential(nn.ReflectionPad2d(1), conv(padding=0, bias=False))
    model = nn.Sequential(nn.Sequential(conv(), nn.Upsample(scale_factor=(2, 2))), tail, nn.BatchNorm2d(4))
    check(model, picture(), calls, 1)


def test_one_pixel(calls: list[tuple[str, str]]) -> None:
    model = nn.Sequential(nn.Upsample(scale_factor=2), nn.ReflectionPad2d(1), conv(padding=0))
    check(model, picture(1, 4, 1, 1), calls, 1)


LEFT = {
    "scale factor": ([nn.Upsample(scale_factor=3), conv()], "its scale factor is 3.0, not 2"),
    "one direction": ([nn.Upsample(scale_factor=(2, 1)), conv()], r"its scale factor is \(2.0, 1.0\), not 2"),
    "mode": ([nn.Upsample(scale_factor=2, mode="bicubic"), conv()], "its mode is bicubic"),
    "corners": ([nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), conv()], "corners are aligned"),
    "kernel": ([nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 5, padding=1)], r"1 \(Conv2d\) has kernel_size \(5, 5\)"),
    "stride": ([nn.Upsample(scale_factor=2), conv(stride=2)], "has stride"),
    "dilation": ([nn.Upsample(scale_factor=2), conv(dilation=2)], "has dilation"),
    "groups": ([nn.Upsample(scale_factor=2), conv(groups=2)], "has groups 2, not 1"),
    "no padding": ([nn.Upsample(scale_factor=2), conv(padding=0)], "padded by other than one pixel"),
    "wide padding": ([nn.Upsample(scale_factor=2), conv(padding=2)], r"has padding \(2, 2\), not 1"),
    "wide layer": ([nn.Upsample(scale_factor=2), nn.ReflectionPad2d(2), conv(padding=0)], r"read by 1 \(Reflection"),
    "constant": ([nn.Upsample(scale_factor=2), nn.ConstantPad2d(1, 0.5), conv(padding=0)], r"read by 1 \(ConstantPad"),
    "padded twice": ([nn.Upsample(scale_factor=2), nn.ZeroPad2d(1), conv()], "padded twice"),
    "circular": ([nn.Upsample(scale_factor=2), conv(padding_mode="circular")], "has padding_mode circular"),
    "normalised between": ([nn.Upsample(scale_factor=2), nn.BatchNorm2d(4), conv()], r"read by 1 \(BatchNorm2d\)"),
    "transposed": (
        [nn.Upsample(scale_factor=2), nn.ConvTranspose2d(4, 4, 3), conv()],
        r"read by 1 \(ConvTranspose2d\)",
    ),
    "last": ([conv(), nn.Upsample(scale_factor=2)], "the code around this module"),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_with_a_reason(name: str, calls: list[tuple[str, str]]) -> None:
    layers, reason = LEFT[name]
    model = nn.Sequential(*layers)
    check(model, picture(), calls, 0)
    report = dip_fast.fusion_report(model)
    assert report.replaced == []
    assert len(report.left) == 1
    with pytest.raises(ValueError, match=reason):  # `match` shows both when they differ
        raise ValueError(report.left[0].reason)


def test_report() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Upsample(scale_factor=2), conv()),
        nn.Upsample(size=(20, 24), mode="bilinear"),
        conv(padding_mode="reflect"),
        nn.Upsample(scale_factor=4),
    )
    wanted = """replaced 2
  0.1: nearest, zeros
  2: bilinear, reflect (if its size is twice that of its input)
left 1
  3: its scale factor is 4.0, not 2"""
    assert str(dip_fast.fusion_report(model)) == wanted
    assert str(dip_fast.fusion_report(dip_fast.fuse(model))) == wanted
    assert type(model[0]) is nn.Sequential


# ---- decoders in the wild --------------------------------------------------------------------------------------------


class ConvDecoder(nn.Module):
    """The pattern of deepinv's decoder: upsamplings to listed sizes, each followed by convolution, ReLU, batch norm."""

    def __init__(self, sizes: list[tuple[int, int]], channels: int = 4) -> None:
        super().__init__()
        self.net = nn.Sequential()
        for size in sizes:
            self._append(nn.Upsample(size=size, mode="nearest"), conv(channels))
            self._append(nn.ReLU(), nn.BatchNorm2d(channels))
        self._append(conv(channels), nn.ReLU(), nn.BatchNorm2d(channels), nn.Conv2d(channels, 3, 1))

    def _append(self, *layers: nn.Module) -> None:
        for layer in layers:  # numbered from one
            self.net.add_module(str(len(self.net) + 1), layer)

    def forward(self, x: Tensor, scale_out: float = 1) -> Tensor:
        return self.net(x) * scale_out


def test_conv_decoder(calls: list[tuple[str, str]]) -> None:
    # 4 -> 8 -> 16 doubles; 16 -> 23 does not, and only its own upsampling is then left.
    model = ConvDecoder([(8, 8), (16, 16), (23, 23)])
    fused = check(model, picture(1, 4, 4, 4), calls, 2)
    torch.testing.assert_close(fused(picture(1, 4, 4, 4), 2.0).shape, (1, 3, 23, 23))
    assert "net.2: nearest, zeros (if its size is twice that of its input)" in str(dip_fast.fusion_report(model))


class VaeUpsample(nn.Module):
    """The up-sampling block of latent diffusion."""

    def __init__(self, channels: int = 4, with_conv: bool = True) -> None:
        super().__init__()
        self.with_conv = with_conv
        self.conv = conv(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(x) if self.with_conv else x


class CarefulUpsample(nn.Module):
    """The same with the checks and the options that a library has around it."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.channels = channels
        self.conv = conv(channels)

    def forward(self, x: Tensor, output_size: tuple[int, int] | None = None, *args: object, **kwargs: object) -> Tensor:
        if len(args) > 0 or kwargs.get("scale") is not None:
            raise TypeError("no such argument")
        assert x.shape[1] == self.channels
        if x.dtype == torch.float64 and x.numel() > 2**20:
            x = x.float()
        if x.shape[0] >= 3:
            x = x.contiguous()
        if output_size is None:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        else:
            x = F.interpolate(x, size=output_size, mode="nearest")
        return self.conv(x)


class ResidualBlock(nn.Module):
    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, channels)
        self.conv = conv(channels)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.conv(F.silu(self.norm(x)))
        return x + (h if embedding is None else h + embedding[:, :, None, None])


class VaeDecoder(nn.Module):
    def __init__(self, upsample: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.up = nn.ModuleList(
            nn.ModuleDict({"blocks": nn.ModuleList([ResidualBlock(), ResidualBlock()]), "upsample": upsample()})
            for _ in range(2)
        )

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        for level in self.up:
            for block in level["blocks"]:
                x = block(x, embedding)
            x = level["upsample"](x)
        return x


@pytest.mark.parametrize("upsample", [VaeUpsample, CarefulUpsample])
def test_vae_decoder(upsample: Callable[[], nn.Module], calls: list[tuple[str, str]]) -> None:
    fused = check(VaeDecoder(upsample), picture(), calls, 2)
    fused(picture(), torch.randn(2, 4))
    assert isinstance(fused.up[0]["upsample"], upsample)  # type: ignore[arg-type]


def test_arguments_and_shapes_that_take_another_branch_run_plain(calls: list[tuple[str, str]]) -> None:
    plain = CarefulUpsample()
    fused = dip_fast.fuse(plain)
    for args, kwargs, expected in [
        ((picture(),), {}, 1),
        ((), {"x": picture()}, 1),
        ((picture(), None), {}, 1),
        ((picture(3, 4, 5, 6),), {}, 0),  # the other branch
        ((picture(), (10, 12)), {}, 0),
        ((picture(),), {"output_size": (7, 9)}, 0),
    ]:
        calls.clear()
        torch.testing.assert_close(fused(*args, **kwargs), plain(*args, **kwargs), atol=1e-5, rtol=1e-5)
        assert len(calls) == expected, (kwargs, expected)
    with pytest.raises(AssertionError):
        fused(picture(1, 3, 5, 6))
    with pytest.raises(TypeError, match="no such argument"):
        fused(picture(), scale=2)
    with pytest.raises(TypeError):
        fused()


class SuperResolutionTail(nn.Module):
    """Interpolate and convolve, twice, then two more convolutions."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.first, self.second, self.third = conv(channels), conv(channels), conv(channels)
        self.last = nn.Conv2d(channels, 3, 3, padding=1)
        self.activation = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.first(F.interpolate(x, scale_factor=2, mode="nearest")))
        x = self.activation(self.second(F.interpolate(x, scale_factor=2, mode="nearest")))
        return self.last(self.activation(self.third(x)))


def test_super_resolution_tail(calls: list[tuple[str, str]]) -> None:
    check(SuperResolutionTail(), picture(), calls, 2)


class Interpolate(nn.Module):
    def __init__(self, scale_factor: int) -> None:
        super().__init__()
        self.scale_factor = scale_factor

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=self.scale_factor, mode="bilinear", align_corners=False)


class ConvBlock(nn.Module):
    def __init__(self, padding_mode: str = "zeros") -> None:
        super().__init__()
        self.conv = conv(padding_mode=padding_mode)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class Blocks(nn.Module):
    """Pairs that meet across modules, in this code and in a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.up = Interpolate(2)
        self.block = ConvBlock("reflect")
        self.tail = nn.Sequential(Interpolate(2), nn.Identity(), Interpolate(2), ConvBlock())

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.block(self.up(x)))


def test_pairs_across_modules(calls: list[tuple[str, str]]) -> None:
    model = Blocks()
    check(model, picture(), calls, 2)
    report = dip_fast.fusion_report(model)
    assert [pair.where for pair in report.replaced] == ["block.conv", "tail.3.conv"]
    assert [(left.where, left.reason) for left in report.left] == [
        ("tail.0", "it is read by tail.1 (Identity), not by an nn.Conv2d")
    ]


class SizeOfSkip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv(F.pad(F.interpolate(x, size=skip.shape[2:]), (0, 0, 0, 0))) + skip


class PadOfSkip(SizeOfSkip):
    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        up = F.interpolate(x, skip.shape[2:], mode="bilinear")
        return self.conv(up) + skip


def test_size_of_another_tensor_is_compared_at_run_time(calls: list[tuple[str, str]]) -> None:
    plain = PadOfSkip()
    fused = dip_fast.fuse(plain)
    for size, expected in [((10, 12), 1), ((9, 12), 0), ((10, 13), 0)]:
        calls.clear()
        skip = picture(2, 4, *size)
        x = picture()
        torch.testing.assert_close(fused(x, skip), plain(x, skip), atol=1e-5, rtol=1e-5)
        assert len(calls) == expected
    assert "read by pad, not by an nn.Conv2d" in str(dip_fast.fusion_report(SizeOfSkip()))


# ---- code that a graph does not hold ---------------------------------------------------------------------------------


class Awkward(nn.Module):
    """One interpolation and one convolution, around something that torch.fx would get wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()
        self.seen = 0
        self.kept: list[Tensor] = []
        self.register_buffer("counter", torch.zeros(()))

    def pair(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2))


class BranchesOnValues(Awkward):
    def forward(self, x: Tensor) -> Tensor:
        return self.pair(x + 1 if x.sum() > 0 else x)


class Counts(Awkward):
    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.pair(x)


class Keeps(Awkward):
    def forward(self, x: Tensor) -> Tensor:
        self.kept.append(x)
        return self.pair(x)


class AddsNoise(Awkward):
    def forward(self, x: Tensor) -> Tensor:
        return self.pair(x + torch.randn(1, 4, 1, 1))


class DropsAtRandom(Awkward):
    def forward(self, x: Tensor) -> Tensor:
        return x if random.random() < 0.0 else self.pair(x)


class WithoutGradients(Awkward):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.pair(x)
        return self.conv(x)


class Listed(Awkward):
    def forward(self, x: list[Tensor]) -> Tensor:
        return self.pair(torch.cat(x))


@pytest.mark.parametrize("kind", [BranchesOnValues, Counts, Keeps, AddsNoise, DropsAtRandom, WithoutGradients])
def test_code_that_does_more_than_compute_runs_as_before(kind: type[Awkward], calls: list[tuple[str, str]]) -> None:
    model = kind()
    fused = dip_fast.fuse(model)
    assert "its code cannot be traced: its code" in str(dip_fast.fusion_report(model))
    assert model.seen == fused.seen == len(model.kept) == len(fused.kept) == 0
    x = picture()
    torch.manual_seed(1)
    wanted = model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(fused(x), wanted, atol=0, rtol=0)
    assert (fused.seen, len(fused.kept), len(calls)) == (model.seen, len(model.kept), 0)


def test_untraceable_module_around_a_traceable_one(calls: list[tuple[str, str]]) -> None:
    class Around(BranchesOnValues):
        def __init__(self) -> None:
            super().__init__()
            self.inner = VaeUpsample()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(super().forward(x))

    check(Around(), picture(), calls, 1)


def test_list_of_tensors_runs_plain(calls: list[tuple[str, str]]) -> None:
    model = Listed()
    x = [picture(), picture()]
    torch.testing.assert_close(dip_fast.fuse(model)(x), model(x))
    assert calls == []


def test_updates_of_a_buffer_happen_at_each_run(calls: list[tuple[str, str]]) -> None:
    class CountsInBuffer(Awkward):
        def forward(self, x: Tensor) -> Tensor:
            self.counter.add_(1)
            return self.pair(x) * self.counter

    fused = dip_fast.fuse(CountsInBuffer())
    assert fused.counter == 0
    fused(picture())
    fused(picture())
    assert (fused.counter.item(), len(calls)) == (2, 2)


def test_in_place_changes_are_kept_in_order(calls: list[tuple[str, str]]) -> None:
    class ChangesInput(Awkward):
        def forward(self, x: Tensor) -> Tensor:
            x = x * 1
            up = F.interpolate(x, scale_factor=2)
            x.add_(1)
            return self.conv(up) + F.interpolate(x, scale_factor=2)

    class ChangesUpsampled(Awkward):
        def forward(self, x: Tensor) -> Tensor:
            up = F.interpolate(x, scale_factor=2)
            other = F.relu(up, inplace=True)
            return self.conv(up) + other

    for kind in (ChangesInput, ChangesUpsampled):
        model = kind()
        check(model, picture(), calls, 0)
        assert "may change in place what the convolution reads" in str(dip_fast.fusion_report(model))


def test_code_that_is_no_python_is_named(calls: list[tuple[str, str]]) -> None:
    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        scripted = torch.jit.script(nn.Sequential(nn.Upsample(scale_factor=2), conv()))
    model = nn.Sequential(scripted, conv())
    torch.testing.assert_close(dip_fast.fuse(model)(picture()).shape, (2, 4, 10, 12))
    assert "0.0: it is TorchScript, which is not looked into" in str(dip_fast.fusion_report(model))
    replaced = VaeUpsample()
    replaced.forward = lambda x: x  # type: ignore[method-assign]
    assert "the model itself: its forward was replaced" in str(dip_fast.fusion_report(replaced))


def test_model_that_torch_fx_has_traced_already(calls: list[tuple[str, str]]) -> None:
    check(torch.fx.symbolic_trace(SuperResolutionTail()), picture(), calls, 2)
    traced = torch.fx.symbolic_trace(dip_fast.fuse(SuperResolutionTail()))
    check(traced, picture(), calls, 2)


def test_autocast(calls: list[tuple[str, str]]) -> None:
    model = nn.Sequential(nn.Upsample(scale_factor=2), conv())
    fused = dip_fast.fuse(model)
    x = picture()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, wanted = fused(x), model(x)
    assert got.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(got, wanted, atol=3e-2, rtol=3e-2)


# ---- sharing, state and life after fusion ----------------------------------------------------------------------------


class Shared(nn.Module):
    """One upsampling and one convolution used by several callers, and an upsampled image read three times."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2)
        self.conv = conv()
        self.other = conv(padding_mode="replicate")
        self.tail = nn.Sequential(self.up, self.conv, self.conv)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)
        return self.tail(self.conv(up) + self.other(up) + up + self.conv(F.interpolate(x, scale_factor=2)))


def test_shared_layers_and_skip_connections(calls: list[tuple[str, str]]) -> None:
    model = Shared()
    check(model, picture(), calls, 4)
    kept = "the upsampled image is read elsewhere too, and still made"
    # A shared module goes by its first name in the model.
    pairs = sorted((pair.where, pair.note) for pair in dip_fast.fusion_report(model).replaced)
    assert pairs == [("conv", ""), ("conv", ""), ("conv", kept), ("other", kept)]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_hooks_are_called(position: int, calls: list[tuple[str, str]]) -> None:
    model = nn.Sequential(nn.Upsample(scale_factor=2), nn.ReflectionPad2d(1), conv(padding=0))
    fused = dip_fast.fuse(model)
    shapes = []
    handle = fused[position].register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    torch.testing.assert_close(fused(picture(1, 4, 5, 6)).shape, (1, 4, 10, 12))
    assert (len(shapes), len(calls)) == (1, 0)
    handle.remove()
    fused(picture())
    assert (len(shapes), len(calls)) == (1, 1)


def test_hook_that_is_there_when_fusing() -> None:
    model = nn.Sequential(nn.Upsample(scale_factor=2), conv())
    model[1].register_forward_hook(lambda module, args, output: 2 * output)
    x = picture()
    torch.testing.assert_close(dip_fast.fuse(model)(x), model(x), atol=0, rtol=0)
    assert "1 (Conv2d) has hooks, or a forward of its own" in str(dip_fast.fusion_report(model))


def test_weight_norm(calls: list[tuple[str, str]]) -> None:
    model = nn.Sequential(nn.Upsample(scale_factor=2), nn.utils.parametrizations.weight_norm(conv()))
    check(model, picture(), calls, 1)
    with pytest.warns(FutureWarning, match="weight_norm"):
        hooked = nn.Sequential(nn.Upsample(scale_factor=2), nn.utils.weight_norm(conv()))  # works through a hook
    hooked(picture())
    check(hooked, picture(), calls, 0)


def test_convolution_with_a_forward_of_its_own(calls: list[tuple[str, str]]) -> None:
    class Doubled(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    check(nn.Sequential(nn.Upsample(scale_factor=2), Doubled(4, 4, 3, padding=1)), picture(), calls, 0)


def test_training_mode(calls: list[tuple[str, str]]) -> None:
    model = nn.Sequential(nn.Upsample(scale_factor=2), conv(), nn.BatchNorm2d(4), nn.Dropout(0.5))
    fused = dip_fast.fuse(model)
    assert (fused(picture()) == 0).any()
    fused.eval()
    x = picture()
    torch.testing.assert_close(fused(x), model.eval()(x), atol=1e-5, rtol=1e-5)
    assert fused[2].num_batches_tracked == 1
    assert len(calls) == 2


def test_flags_in_code_are_read_at_each_run(calls: list[tuple[str, str]]) -> None:
    fused = dip_fast.fuse(VaeUpsample())
    x = picture()
    fused.with_conv = False
    torch.testing.assert_close(fused(x), F.interpolate(x, scale_factor=2), atol=0, rtol=0)
    fused.with_conv = True
    fused(x)
    assert len(calls) == 1


def test_changed_sequence_is_noticed() -> None:
    fused = dip_fast.fuse(nn.Sequential(nn.Upsample(scale_factor=2), conv()))
    fused.append(nn.ReLU())
    assert (fused(picture()) >= 0).all()
    fused[1].padding = (0, 0)
    assert fused(picture(1, 4, 5, 6)).shape == (1, 4, 8, 10)
    assert fused[:1](picture(1, 4, 5, 6)).shape == (1, 4, 10, 12)


def test_training_goes_on_and_checkpoints_load(calls: list[tuple[str, str]]) -> None:
    model = SuperResolutionTail()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fused = dip_fast.fuse(model)
    before = model.first.weight.clone()
    fused(picture()).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model.first.weight, before)
    other = dip_fast.fuse(SuperResolutionTail())
    other.load_state_dict(model.state_dict())
    x = picture()
    torch.testing.assert_close(other(x), model(x), atol=1e-5, rtol=1e-5)


def test_original_stays_plain_unless_in_place(calls: list[tuple[str, str]]) -> None:
    model = nn.Sequential(nn.Upsample(scale_factor=2), conv())
    assert dip_fast.fuse(model) is not model
    model(picture())
    assert calls == []
    assert dip_fast.fuse(model, inplace=True) is model
    model(picture())
    assert len(calls) == 1


def test_fusing_twice(calls: list[tuple[str, str]]) -> None:
    fused = dip_fast.fuse(dip_fast.fuse(Blocks()))
    fused(picture())
    assert len(calls) == 2


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "copy.deepcopy": copy.deepcopy,
    "copy.copy": copy.copy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


def _saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [*COPIES.values(), _saved], ids=[*COPIES, "torch.save"])
def test_copies_are_fused_and_say_the_same(
    copied: Callable[[nn.Module], nn.Module], calls: list[tuple[str, str]]
) -> None:
    x = picture()
    for model in (nn.Sequential(nn.Upsample(scale_factor=2), conv()), nn.Sequential(nn.Identity(), conv())):
        fused = dip_fast.fuse(model)
        wanted = fused(x)
        expected = len(calls)
        calls.clear()
        torch.testing.assert_close(copied(fused)(x), wanted, atol=0, rtol=0)
        assert len(calls) == expected
        calls.clear()


def test_copy_has_parameters_of_its_own() -> None:
    fused = dip_fast.fuse(nn.Sequential(nn.Upsample(scale_factor=2), conv()))
    other = copy.deepcopy(fused)
    nn.init.zeros_(other[1].weight)
    nn.init.zeros_(other[1].bias)
    assert (other(picture()) == 0).all()
    assert (fused(picture()) != 0).any()


def test_unbatched_and_other_dimensions_run_plain(calls: list[tuple[str, str]]) -> None:
    model = nn.Sequential(nn.Upsample(scale_factor=2), conv())
    x = picture(1, 4, 6)  # for nn.Upsample a row of 6, for the convolution an image without a batch
    with pytest.raises(RuntimeError) as plain:
        model(x)
    with pytest.raises(RuntimeError) as fused:
        dip_fast.fuse(model)(x)
    assert str(fused.value) == str(plain.value)
    assert calls == []


def test_layer_of_our_own_stays() -> None:
    model = nn.Sequential(dip_fast.UpsampleConv2d(4, 4), nn.Upsample(scale_factor=2), conv())
    x = picture()
    torch.testing.assert_close(dip_fast.fuse(model)(x), model(x), atol=1e-5, rtol=1e-5)


def test_bfloat16_and_double(calls: list[tuple[str, str]]) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.bfloat16, 3e-2)):
        model = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), conv()).to(dtype)
        x = picture().to(dtype)
        got = dip_fast.fuse(model)(x)
        assert got.dtype == dtype
        torch.testing.assert_close(got, model(x), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kind", [CarefulUpsample, Blocks, SuperResolutionTail])
def test_compiles_in_one_graph(kind: Callable[[], nn.Module], calls: list[tuple[str, str]]) -> None:
    model = kind()
    fused = dip_fast.fuse(model)
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend="eager")
    x = picture()
    for training in (True, False, True):
        model.train(training)
        fused.train(training)
        calls.clear()
        wanted = fused(x)
        assert calls
        torch.testing.assert_close(compiled(x), wanted, atol=1e-5, rtol=1e-5)


def test_exports() -> None:
    model = nn.Sequential(nn.Upsample(scale_factor=2), conv()).eval()
    x = picture()
    program = torch.export.export(dip_fast.fuse(model), (x,))
    assert "dip_fast.upsample_conv2d" in str(program.graph)
    torch.testing.assert_close(program.module()(x), model(x), atol=1e-5, rtol=1e-5)


# ---- the layer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate"])
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_layer_is_upsample_and_convolution(mode: str, padding_mode: str, bias: bool) -> None:
    torch.manual_seed(3)
    layer = dip_fast.UpsampleConv2d(4, 6, bias=bias, mode=mode, padding_mode=padding_mode)
    torch.manual_seed(3)
    plain = nn.Sequential(
        nn.Upsample(scale_factor=2, mode=mode), nn.Conv2d(4, 6, 3, padding=1, padding_mode=padding_mode, bias=bias)
    )
    assert {k: v.tolist() for k, v in layer.state_dict().items()} == {
        k: v.tolist() for k, v in plain[1].state_dict().items()
    }
    layer.load_state_dict(plain[1].state_dict())
    x = picture()
    torch.testing.assert_close(layer(x), plain(x), atol=1e-5, rtol=1e-5)


def test_layer_shows_its_arguments() -> None:
    layer = dip_fast.UpsampleConv2d(4, 6, bias=False, mode="bilinear", dtype=torch.float64, device="cpu")
    assert str(layer) == "UpsampleConv2d(4, 6, mode='bilinear', padding_mode='zeros', bias=False)"
    assert layer.weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"out_channels": -1}, "out_channels must be at least 1, got -1"),
        ({"mode": "bicubic"}, "mode must be one of nearest, bilinear, got 'bicubic'"),
        ({"padding_mode": "circular"}, "padding_mode must be one of zeros, reflect, replicate, got 'circular'"),
    ],
)
def test_layer_refuses(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dip_fast.UpsampleConv2d(**({"in_channels": 2, "out_channels": 2} | options))  # type: ignore[arg-type]
