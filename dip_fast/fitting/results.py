"""What a fit gives, and what it can go on from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from dip_fast.networks.network_input import NetworkInput

COLUMNS = ("step", "loss", "learning_rate", "variance", "psnr")  # of the history


@dataclass(frozen=True)
class State:
    """All that the rest of a fit depends on: tensors by name, and numbers that JSON holds."""

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What a fit gave.

    Attributes
    ----------
    image : ndarray
        ``(H, W, C)``, float32, range [0, 1].
    network : Module
        With the averaged weights that draw ``image`` from ``z``.
    z : NetworkInput
    history : dict of str to ndarray
        One value a step: ``step``, ``loss``, ``learning_rate``, ``variance`` (the stopping statistic) and, with a
        reference, ``psnr`` of the iterate in dB.
    steps, best_step : int
        Steps done, and the one whose averaged weights are the answer.
    stop_reason : {"iterations", "variance", "interrupted"}
    seconds : float
        Spent in the loop.
    events : list of dict
        Losses that became NaN or jumped, and what was done.
    kept : tuple of ndarray, optional
        Where the image's pixels were not drawn but are those of the target, bool ``(H, W, 1)``, and the target,
        float32 ``(H, W, C)``.
    """

    image: np.ndarray
    network: nn.Module
    z: NetworkInput
    history: dict[str, np.ndarray]
    steps: int
    best_step: int
    stop_reason: str
    seconds: float
    events: list[dict[str, Any]]
    kept: tuple[np.ndarray, np.ndarray] | None = None
