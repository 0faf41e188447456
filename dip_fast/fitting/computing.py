"""What the steps of a fit hold meanwhile: memory, and the threads that compute them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from dip_fast import networks


def workspace(network: networks.Network, device: torch.device) -> object:
    """Hold the memory of the fused engine between steps, while the returned object lives."""
    if device.type != "cpu" or not network.is_fused():
        return None
    from dip_fast.ops.workspace import Workspace  # here, since it loads or builds the extension

    return Workspace()


def threads(network: networks.Network, device: torch.device) -> AbstractContextManager[Any]:
    """Make the context of a step: the operators' own threads, where hardly anything is computed beside them."""
    if device.type != "cpu" or not network.is_wholly_fused():
        return nullcontext()
    from dip_fast.ops.workspace import own_threads  # here, since it loads or builds the extension

    return own_threads()
