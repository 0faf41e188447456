"""The fixed random input z of a network, on a grid that 8 bits hold exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NetworkInput:
    """Network input ``z = codes / denominator``, stored in 8 bits a value because model files carry it.

    Attributes
    ----------
    codes : Tensor
        ``(1, C, H, W)``, uint8 or int8.
    denominator : int
        The grid's step is its reciprocal.
    """

    codes: Tensor
    denominator: int

    @property
    def channels(self) -> int:
        """Channels of z."""
        return self.codes.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the codes."""
        return self.codes.nbytes

    def surrounded(self, height: int, width: int) -> NetworkInput:
        """TEMPORARY."""
        return self

    def tensor(self, device: torch.device | str = "cpu") -> Tensor:
        """Give z in float32, ``(1, C, H, W)``: each value is the quotient, correctly rounded."""
        return self.codes.to(device, torch.float32, copy=True).div_(self.denominator)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> NetworkInput:
    """Uniform in [0, 0.1): k / 2560 for k = 0..255."""
    return NetworkInput(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8), 2560)


def _gaussian(shape: tuple[int, ...], generator: torch.Generator) -> NetworkInput:
    """N(0, 1) rounded to k / 32, cut at 127 / 32, beyond which one value in 14,000 lies."""
    codes = (32 * torch.randn(shape, generator=generator)).round_().clamp_(-127, 127)
    return NetworkInput(codes.to(torch.int8), 32)


INPUTS: dict[str, Callable[[tuple[int, ...], torch.Generator], NetworkInput]] = {
    "uniform": _uniform,
    "gaussian": _gaussian,
}


def draw(distribution: str, channels: int, size: tuple[int, int], *, seed: int) -> NetworkInput:
    """Draw a network input.

    Parameters
    ----------
    distribution : {"uniform", "gaussian"}
        Uniform in [0, 0.1) on multiples of 1/2560, or N(0, 1) on multiples of 1/32.
    channels : int
    size : tuple of int
        Height and width.
    seed : int
        Drawn on the CPU, so that every device gets the same input.
    """
    return INPUTS[distribution]((1, channels, *size), torch.Generator().manual_seed(seed))
