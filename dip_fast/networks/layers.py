"""What the networks share."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

EPSILON = 1e-5  # of every batch norm, added to the variance


class Fusible(nn.Module):
    """A block that has a fused form, or could have one.

    Attributes
    ----------
    fusible : bool
        Whether these sizes and modes have one.
    fused : bool
        Whether it is in use.
    """

    fusible = True
    fused = False


class Network(nn.Module):
    """A network that draws an image from z.

    Attributes
    ----------
    multiple : int
        The sides of the image are multiples of it.
    """

    multiple: int

    def fusible(self) -> list[str]:
        """Names of the blocks that have a fused form."""
        return [name for name, module in self.named_modules() if isinstance(module, Fusible) and module.fusible]

    def use(self, engine: str) -> Self:
        """Choose the engine: the same function of the same parameters, computed plainly or fused where it can be.

        Raises
        ------
        ValueError
            For the fused engine of a network without a fusible block.
        """
        if engine == "fused" and not self.fusible():
            raise ValueError("engine must be plain for this network: no block of it has a fused form")
        for module in self.modules():
            if isinstance(module, Fusible):
                module.fused = engine == "fused" and module.fusible
        return self

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of z whose output covers a picture of ``height x width``."""
        return cover(height, self.multiple), cover(width, self.multiple)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm that always uses the statistics of the one image, in fitting and in inference."""
    return nn.BatchNorm2d(channels, EPSILON, track_running_stats=False)


class Block(nn.Module):
    """Convolution, pooling if any, batch norm, LeakyReLU or another activation: ``conv.*`` and ``norm.*``."""

    def __init__(
        self,
        conv: nn.Conv2d | nn.ConvTranspose2d,
        negative_slope: float = 0.0,
        *,
        pool: nn.Module | None = None,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv = conv
        self.pool = pool
        self.norm = batch_norm(conv.out_channels)
        self.activation = activation or nn.LeakyReLU(negative_slope, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in, H, W)`` to ``(N, out, ...)``."""
        return self.finish(self.conv(x))

    def finish(self, convolved: Tensor) -> Tensor:
        """Do what follows the convolution."""
        pooled = convolved if self.pool is None else self.pool(convolved)
        result: Tensor = self.activation(self.norm(pooled))
        return result


def normalise_upsampled(x: Tensor, mode: str, weight: Tensor, bias: Tensor) -> Tensor:
    """Batch norm of the upsampled image, applied before the upsampling: ``up(result) = batch_norm(up(x))``.

    Upsampling commutes with an affine map, since its weights sum to 1, so only the statistics have to be those of the
    upsampled image; both come from the small one.  Every pixel weighs the same in the upsampled image, so the mean is
    that of x; for nearest the variance is too.  For bilinear ``u = U x`` along each axis, and ``U^T U`` takes each
    pixel 1.25 times and its two neighbours, replicated at the border, 0.375 times.  With x centred:

        variance = <x, (U^T U, along both axes) x> / (number of pixels of u)

    Parameters
    ----------
    x : Tensor
        ``(1, C, H, W)``.
    mode : {"nearest", "bilinear"}
    weight, bias : Tensor
        Of the batch norm, ``(C,)``.
    """
    if mode == "nearest":
        return nn.functional.batch_norm(x, None, None, weight, bias, training=True)
    centred = x - x.mean((0, 2, 3), keepdim=True)
    padded = nn.functional.pad(centred, (1, 1, 1, 1), mode="replicate")
    rows = 1.25 * padded[..., 1:-1, :] + 0.375 * (padded[..., :-2, :] + padded[..., 2:, :])  # (1, C, H, W + 2)
    both = 1.25 * rows[..., 1:-1] + 0.375 * (rows[..., :-2] + rows[..., 2:])
    variance = (centred * both).mean((0, 2, 3)) / 4
    scale = weight * torch.rsqrt(variance + EPSILON)
    return centred * scale[:, None, None] + bias[:, None, None]


def cover(side: int, multiple: int, least: int = 2) -> int:
    """Smallest multiple of ``multiple``, at least ``least`` times it, that is no less than ``side``.

    Two pixels are the least at the deepest scale: reflection and batch norm need as many.
    """
    return multiple * max(least, -(-side // multiple))
