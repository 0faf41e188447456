"""A network whose input is fitted along with its weights."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from dip_fast.networks.layers import Network
from dip_fast.networks.network_input import NetworkInput, of_image


class LearnedInput(Network):
    """A network that reads ``z + change``, where the change is a parameter that begins with 0.

    Parameters
    ----------
    network : Network
        What reads the sum.
    channels : int
        Channels of z.
    size : tuple of int
        Height and width of z.
    """

    def __init__(self, network: Network, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.network = network
        self.multiple = getattr(network, "multiple", 1)
        self.change = nn.Parameter(torch.zeros(1, channels, *size))

    def forward(self, z: Tensor) -> Tensor:
        """Draw the image."""
        image: Tensor = self.network(z + self.change.to(z.dtype))
        return image

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of z whose output covers a picture, see `Network.input_size`."""
        return self.network.input_size(height, width)

    def fusible(self) -> list[str]:
        """Names of the blocks that have a fused form."""
        return self.network.fusible()

    def is_fused(self) -> bool:
        """Whether a block runs in its fused form."""
        return self.network.is_fused()

    def is_wholly_fused(self) -> bool:
        """Whether every block runs in its fused form."""
        return self.network.is_wholly_fused()

    def use(self, engine: str) -> Self:
        """Choose the engine, see `Network.use`."""
        self.network.use(engine)
        return self

    def settled(self, z: NetworkInput) -> tuple[Network, NetworkInput]:
        """Return the network alone, and the sum that it reads."""
        whole = z.tensor() + self.change.detach().cpu()
        return self.network, of_image(whole, bits=32)
