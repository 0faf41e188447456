"""A skip network that draws a part of the size, for pictures of which an outline is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from dip_fast.networks.layers import Network
from dip_fast.networks.skip import Skip
from dip_fast.values import integer

if TYPE_CHECKING:
    from dip_fast.programs.folding import Folder, Value


class Coarse(Network):
    """Skip network of a part of the size: ``(N, in_channels, H, W) -> (N, out_channels, 2**doublings H, ...)``.

    Each pixel that it draws is repeated, so a loss at full size compares it with the mean of what is known there.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the network input and of the image.
    doublings : int
        How often the image is doubled.  The task of filling holes chooses it by their size.
    **options
        Those of `Skip`, whose parameters are those of this network, behind ``small.``.
    """

    def __init__(self, in_channels: int = 32, out_channels: int = 3, *, doublings: int = 1, **options: Any) -> None:
        super().__init__()
        self.doublings = integer("doublings", doublings, least=0)
        self.small = Skip(in_channels, out_channels, **options)
        self.multiple = self.small.multiple * 2**doublings

    def forward(self, z: Tensor) -> Tensor:
        """Draw the image from ``z``, ``(N, in_channels, H, W)``."""
        image: Tensor = self.small(z)
        for dim in (2, 3):
            image = image.repeat_interleave(2**self.doublings, dim)
        return image

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of z whose output covers a picture of ``height x width``."""
        by = 2**self.doublings
        return self.small.input_size(-(-height // by), -(-width // by))

    def fold(self, folder: Folder, z: Value) -> Value:
        """Fold the network, see `Network.fold`."""
        image = self.small.fold(folder, z)
        for i in range(self.doublings):
            image = folder.layer("upsample", f"doubling.{i}", image, mode="nearest")
        return image

    def use(self, engine: str) -> Self:
        """Choose the engine, see `Network.use`."""
        self.small.use(engine)
        return self
