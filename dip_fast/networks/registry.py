"""Networks by name.  Importing this loads no torch: a network's module is imported when the network is built."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from dip_fast.errors import UsageError
from dip_fast.registry import Registry, suggest

if TYPE_CHECKING:
    from dip_fast.networks.layers import Network

NETWORKS: Registry[type[Network]] = Registry(
    "network",
    {
        "skip": "dip_fast.networks.skip:Skip",
        "hourglass": "dip_fast.networks.hourglass:Hourglass",
        "decoder": "dip_fast.networks.decoder:Decoder",
        "coarse": "dip_fast.networks.coarse:Coarse",
    },
)


def build(name: str, in_channels: int, out_channels: int, **options: Any) -> Network:
    """Build a network by its name.

    Parameters
    ----------
    name : str
        A key of `NETWORKS`: ``skip``, ``hourglass``, ``decoder``, ``coarse``, or what a plugin registered.
    in_channels, out_channels : int
        Channels of the network input and of the image.
    **options
        The network's own arguments.

    Raises
    ------
    UsageError
        If no network has that name, or it has no such argument.
    """
    network = NETWORKS[name]
    known = inspect.signature(network).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        for option in options.keys() - known.keys():
            raise UsageError(f"the {name} network has no {option!r}{suggest(option, known)}")
    return network(in_channels, out_channels, **options)


def input_size(name: str, size: tuple[int, int], **options: Any) -> tuple[int, int]:
    """Return the height and width of the input with which a network covers a picture of some size."""
    import torch  # here, so that the names can be read without it

    with torch.device("meta"):
        return build(name, 1, 1, **options).input_size(*size)
