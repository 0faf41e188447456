"""Any module as the network of a fit."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from dip_fast.errors import UsageError
from dip_fast.networks.layers import Network, cover

MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128)


class OwnNetwork(Network):
    """A module of anybody's that draws an image from z; it is copied, and the copy is fitted from the weights it has.

    Its batch norms, dropout and so on stay in the mode that they are in.

    Parameters
    ----------
    module : Module
        From ``(1, in_channels, h, w)`` to an image ``(1, channels, H, W)``, of the size of z unless z is given.
    channels : int
        Channels of the image.
    size : tuple of int
        Height and width of the picture.
    z : Tensor, optional
        The fixed input, of any size; without it the sides of z are multiples of what the module needs, as tried.

    Attributes
    ----------
    module : Module
        The copy; with the engine ``fused`` as `dip_fast.fuse` makes it.
    in_channels : int
        Channels of z.

    Raises
    ------
    UsageError
        If the module does not draw such an image.
    """

    def __init__(self, module: nn.Module, channels: int, size: tuple[int, int], z: Tensor | None = None) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).requires_grad_(True)
        if not any(True for _ in self.module.parameters()):
            raise UsageError("network has no parameters to fit; pass a Module with some")
        self._plain = [self.module]  # in a list, so that its parameters have one name
        self._size_of_z = None if z is None else (z.shape[2], z.shape[3])
        self.in_channels = _in_channels(module) if z is None else z.shape[1]
        with torch.no_grad():
            if z is None:
                self.multiple = self._needed_multiple(channels, size)
            else:
                self._require(self.module(z), z, channels, size)

    def forward(self, z: Tensor) -> Tensor:
        """Draw the image."""
        image: Tensor = self.module(z)
        return image

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of z whose output covers a picture, see `Network.input_size`; that of z itself where it is given."""
        if self._size_of_z is not None:
            return self._size_of_z
        return cover(height, self.multiple, 1), cover(width, self.multiple, 1)

    def fusible(self) -> list[str]:
        """Names of the upsamplings that `dip_fast.fuse` replaces."""
        from dip_fast.ops.fuse import fusion_report

        return [str(pair) for pair in fusion_report(self._plain[0]).replaced]

    def use(self, engine: str) -> Self:
        """Choose the engine, see `Network.use`."""
        from dip_fast.ops.fuse import fuse

        self.module = self._plain[0]
        if engine == "fused":
            if not self.fusible():
                raise ValueError("engine must be plain for this network: no block of it has a fused form")
            self.module = fuse(self.module)
        return self

    def is_fused(self) -> bool:
        """Whether a block runs in its fused form."""
        return self.module is not self._plain[0]

    def is_wholly_fused(self) -> bool:
        """Whether every block does, which is not known."""
        return False

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights; running statistics and other buffers that are not among them stay as they are."""
        return super().load_state_dict({**self.state_dict(), **state_dict}, strict, assign)

    def _needed_multiple(self, channels: int, size: tuple[int, int]) -> int:
        """Try sides of z until the module draws an image of that size."""
        fault = ""
        weight = next(self.module.parameters())
        for multiple in MULTIPLES:
            sides = cover(size[0], multiple, 1), cover(size[1], multiple, 1)
            z = torch.zeros(1, self.in_channels, *sides, dtype=weight.dtype, device=weight.device)
            try:
                image = self.module(z)
            except Exception as error:  # anybody's code
                fault = f"failed on z {tuple(z.shape)}: {' '.join(str(error).split())}"
                continue
            if not isinstance(image, Tensor) or image.shape[2:] == z.shape[2:]:
                self._require(image, z, channels, size)
                return multiple
            fault = f"draws {tuple(image.shape)} of z {tuple(z.shape)}"
        raise UsageError(f"network {fault}; pass its input as z=")

    @staticmethod
    def _require(image: Any, z: Tensor, channels: int, size: tuple[int, int]) -> None:
        """Refuse what does not cover the picture."""
        wanted = f"(1, {channels}, {size[0]}, {size[1]})"
        if not isinstance(image, Tensor) or image.dim() != 4 or image.shape[0] != 1 or image.shape[1] != channels:
            got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise UsageError(f"network must draw an image {wanted}, got {got} of z {tuple(z.shape)}")
        if image.shape[2] < size[0] or image.shape[3] < size[1]:
            raise UsageError(f"network must draw at least {wanted}, got {tuple(image.shape)} of z {tuple(z.shape)}")


def _in_channels(module: nn.Module) -> int:
    """Find the channels that a module reads: those of its first convolution."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            return part.in_channels
        if isinstance(part, nn.ConvTranspose2d):
            return part.in_channels
    raise UsageError("network has no convolution that says how many channels z has; pass its input as z=")
