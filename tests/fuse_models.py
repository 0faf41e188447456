"""Models of the tests of `dip_fast.fuse`, and the comparison of a fused model with the plain one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dip_fast


def conv(channels: int = 4, **options: object) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, **({"padding": 1} | options))  # type: ignore[arg-type]


def picture(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 4, 5, 6)))


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    return list(torch.autograd.grad(y.square().sum(), [x, *model.parameters()], allow_unused=True))


def check(model: nn.Module, x: Tensor, fused_calls: list[tuple[str, str]], expected: int) -> nn.Module:
    """Check a fused model against the plain one: outputs, gradients, keys, parameters, and the calls it makes."""
    fused = dip_fast.fuse(model)
    assert list(fused.state_dict()) == list(model.state_dict())
    assert [id(p) for p in fused.parameters()] == [id(p) for p in model.parameters()]
    assert [id(b) for b in fused.buffers()] == [id(b) for b in model.buffers()]
    fused_calls.clear()
    torch.testing.assert_close(fused(x), model(x), atol=1e-5, rtol=1e-5)
    assert len(fused_calls) == expected
    plain_gradients = gradients(model, x)
    # All gradients share one tolerance: that of a bias before a batch norm is zero but for rounding.
    tolerance = 1e-5 * max(gradient.abs().max().item() for gradient in plain_gradients if gradient is not None)
    for got, wanted in zip(gradients(fused, x), plain_gradients, strict=True):
        assert (got is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(got, wanted, atol=tolerance, rtol=1e-4)
    return fused


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
