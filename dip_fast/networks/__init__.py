"""Untrained networks that draw one picture from a fixed input.

A network's output covers the picture and may be larger (`Network.input_size`); the picture is the middle of it
(`crop`), so that no picture is ever cut or resized.  Importing this loads no torch; a name that needs it loads it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dip_fast.networks.registry import NETWORKS, build, input_size

if TYPE_CHECKING:
    from dip_fast.networks.coarse import Coarse
    from dip_fast.networks.decoder import Decoder
    from dip_fast.networks.hourglass import Hourglass
    from dip_fast.networks.layers import Network
    from dip_fast.networks.network_input import NetworkInput, Part, surround
    from dip_fast.networks.skip import Skip
    from dip_fast.programs.drawing import crop

__all__ = [
    "NETWORKS",
    "Coarse",
    "Decoder",
    "Hourglass",
    "Network",
    "NetworkInput",
    "Part",
    "Skip",
    "build",
    "crop",
    "input_size",
    "surround",
]

_HOME = {
    "Coarse": "networks.coarse",
    "Decoder": "networks.decoder",
    "Hourglass": "networks.hourglass",
    "Network": "networks.layers",
    "NetworkInput": "networks.network_input",
    "Part": "networks.network_input",
    "Skip": "networks.skip",
    "crop": "programs.drawing",
    "surround": "networks.network_input",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"dip_fast.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
