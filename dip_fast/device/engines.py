"""Which engine computes a network: the fused one where there is one."""

from __future__ import annotations

from typing import Literal

import torch

from dip_fast.errors import Argument, UsageError
from dip_fast.names import ENGINES
from dip_fast.networks import Network


def choose(engine: str, network: Network, device: torch.device) -> Literal["plain", "fused"]:
    """Choose between the fused and the plain engine.

    Parameters
    ----------
    engine : {"auto", "fused", "plain"}
    network : Network
        Its blocks and sizes decide; its parameters may be on any device, meta included.
    device : device
        Where it will run.

    Returns
    -------
    {"fused", "plain"}

    Raises
    ------
    UsageError
        For an unknown engine, or if ``fused`` is asked for and not available.
    """
    if engine not in ENGINES:
        raise UsageError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if engine == "plain":
        return "plain"
    obstacle = _obstacle(network, device)
    if engine == "fused" and obstacle:
        raise UsageError(
            "{} is not available: {}; use {}", Argument("engine", "fused"), obstacle, Argument("engine", "plain")
        )
    return "plain" if obstacle else "fused"


def _obstacle(network: Network, device: torch.device) -> str:
    """Find what stands against the fused engine; empty where nothing does."""
    if not network.fusible():
        return f"no block of the {type(network).__name__.lower()} network has a fused form"
    if device.type not in ("cpu", "cuda"):
        return f"it has no kernels for {device.type}"
    from dip_fast.ops import building, extension  # here, since it loads or builds the extension

    build = extension.info()
    if build.interface is None:
        return build.reason
    lacking = building.lacks_cuda(build.record) if device.type == "cuda" else None
    return "" if lacking is None else f"the operators were built without CUDA: {lacking}"


def build() -> str:
    """Describe in one line which build of the fused operators is used."""
    from dip_fast.ops import extension  # here, since it loads or builds the extension

    return str(extension.info())


def describe(network: Network) -> str:
    """Describe how many blocks of a network have a fused form, and why the others have none."""
    blocks = network.blocks()
    left = {name: why for name, why in blocks.items() if why}
    if not left:
        return f"all {len(blocks)} blocks"
    reasons: dict[str, list[str]] = {}
    for name, why in left.items():
        reasons.setdefault(why, []).append(name)
    plain = "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())
    return f"{len(blocks) - len(left)} of {len(blocks)} blocks ({plain})"
