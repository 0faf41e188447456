"""What the networks share."""

from __future__ import annotations

from torch import nn


class Network(nn.Module):
    """A network that draws an image from z.

    Attributes
    ----------
    multiple : int
        The sides of the image are multiples of it.
    """

    multiple: int

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of z whose output covers a picture of ``height x width``."""
        return cover(height, self.multiple), cover(width, self.multiple)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm that always uses the statistics of the one image, in fitting and in inference."""
    return nn.BatchNorm2d(channels, track_running_stats=False)


def block(
    conv: nn.Conv2d | nn.ConvTranspose2d,
    negative_slope: float = 0.0,
    *,
    pool: nn.Module | None = None,
    activation: nn.Module | None = None,
) -> nn.Sequential:
    """Convolution, pooling if any, batch norm, LeakyReLU or another activation: ``conv.*`` and ``norm.*``."""
    layers = nn.Sequential()
    layers.add_module("conv", conv)
    if pool is not None:
        layers.add_module("pool", pool)
    layers.add_module("norm", batch_norm(conv.out_channels))
    layers.add_module("activation", activation or nn.LeakyReLU(negative_slope, inplace=True))
    return layers


def cover(side: int, multiple: int, least: int = 2) -> int:
    """Smallest multiple of ``multiple``, at least ``least`` times it, that is no less than ``side``.

    Two pixels are the least at the deepest scale: reflection and batch norm need as many.
    """
    return multiple * max(least, -(-side // multiple))
