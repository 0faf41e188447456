"""Fused decoders of the kinds that are in use, with pairs in code and across modules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from fuse_models import Blocks, CarefulUpsample, SuperResolutionTail, VaeUpsample, check, conv, picture
from torch import Tensor, nn

import dip_fast

pytestmark = pytest.mark.usefixtures("fixed_seed")


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


def test_conv_decoder(fused_calls: list[tuple[str, str]]) -> None:
    # 4 -> 8 -> 16 doubles; 16 -> 23 does not, and only its own upsampling is then left.
    model = ConvDecoder([(8, 8), (16, 16), (23, 23)])
    fused = check(model, picture(1, 4, 4, 4), fused_calls, 2)
    torch.testing.assert_close(fused(picture(1, 4, 4, 4), 2.0).shape, (1, 3, 23, 23))
    assert "net.2: nearest, zeros (if its size is twice that of its input)" in str(dip_fast.fusion_report(model))


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
def test_vae_decoder(upsample: Callable[[], nn.Module], fused_calls: list[tuple[str, str]]) -> None:
    fused = check(VaeDecoder(upsample), picture(), fused_calls, 2)
    fused(picture(), torch.randn(2, 4))
    assert isinstance(fused.up[0]["upsample"], upsample)  # type: ignore[arg-type]


def test_arguments_and_shapes_that_take_another_branch(fused_calls: list[tuple[str, str]]) -> None:
    plain = CarefulUpsample()
    fused = dip_fast.fuse(plain)
    for args, kwargs, expected in [
        ((picture(),), {}, 1),
        ((), {"x": picture()}, 1),
        ((picture(), None), {}, 1),
        ((picture(3, 4, 5, 6),), {}, 0),  # the other branch
        ((picture(), (10, 12)), {}, 1),  # twice the size
        ((picture(), (10, 13)), {}, 0),
        ((picture(),), {"output_size": (7, 9)}, 0),
    ]:
        fused_calls.clear()
        torch.testing.assert_close(fused(*args, **kwargs), plain(*args, **kwargs), atol=1e-5, rtol=1e-5)
        assert len(fused_calls) == expected, (kwargs, expected)
    with pytest.raises(AssertionError):
        fused(picture(1, 3, 5, 6))
    with pytest.raises(TypeError, match="no such argument"):
        fused(picture(), scale=2)
    with pytest.raises(TypeError):
        fused()


def test_super_resolution_tail(fused_calls: list[tuple[str, str]]) -> None:
    check(SuperResolutionTail(), picture(), fused_calls, 2)


def test_pairs_across_modules(fused_calls: list[tuple[str, str]]) -> None:
    model = Blocks()
    check(model, picture(), fused_calls, 2)
    report = dip_fast.fusion_report(model)
    assert [pair.where for pair in report.replaced] == ["block.conv", "tail.3.conv"]
    assert [(left.where, left.reason) for left in report.left] == [
        ("tail.0", "it is read by interpolate, not by an nn.Conv2d")
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


def test_size_of_another_tensor_is_compared_at_run_time(fused_calls: list[tuple[str, str]]) -> None:
    plain = PadOfSkip()
    fused = dip_fast.fuse(plain)
    for size, expected in [((10, 12), 1), ((9, 12), 0), ((10, 13), 0)]:
        fused_calls.clear()
        skip = picture(2, 4, *size)
        x = picture()
        torch.testing.assert_close(fused(x, skip), plain(x, skip), atol=1e-5, rtol=1e-5)
        assert len(fused_calls) == expected
    assert "read by pad, not by an nn.Conv2d" in str(dip_fast.fusion_report(SizeOfSkip()))
