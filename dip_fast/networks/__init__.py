"""Untrained networks that draw one picture from a fixed random input.

A network's output covers the picture and may be larger (`Network.input_size`); the picture is the middle of it
(`crop`), so that no picture is ever cut or resized.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dip_fast.networks.decoder import Decoder
from dip_fast.networks.hourglass import Hourglass
from dip_fast.networks.layers import Network
from dip_fast.networks.skip import Skip
from dip_fast.programs.drawing import crop

__all__ = ["NETWORKS", "Decoder", "Hourglass", "Network", "Skip", "build", "crop"]

NETWORKS: dict[str, type[Network]] = {"skip": Skip, "hourglass": Hourglass, "decoder": Decoder}


def build(name: str, in_channels: int, out_channels: int, **options: Any) -> Network:
    """Build a network by its name.

    Parameters
    ----------
    name : {"skip", "hourglass", "decoder"}
    in_channels, out_channels : int
        Channels of the network input and of the image.
    **options
        The network's own arguments.

    Raises
    ------
    ValueError
        If no network has that name.
    """
    if name not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {name!r}")
    return NETWORKS[name](in_channels, out_channels, **options)


def input_size(name: str, size: tuple[int, int], **options: Any) -> tuple[int, int]:
    """Height and width of the input with which a network covers a picture of some size."""
    with torch.device("meta"):
        return build(name, 1, 1, **options).input_size(*size)


def surround(z: Tensor, height: int, width: int) -> Tensor:
    """TEMPORARY."""
    assert tuple(z.shape[-2:]) == (height, width)
    return z
