"""Averaging along the fit: one network, and one picture, better than those of any step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class MovingAverage:
    """Exponential moving average of tensors.

    ``a <- a + (1 - f) (x - a)`` with ``f = min(most, t / (t + window))`` at update ``t = 1, 2, ...``: early on, when
    the network still travels far, the average reaches back over a part of the way only.

    Parameters
    ----------
    most : float
        In [0, 1); 0 follows the newest.
    window : int

    Attributes
    ----------
    values : list of Tensor
        Empty before the first update.
    """

    def __init__(self, most: float, window: int) -> None:
        self.most = most
        self.window = window
        self.values: list[Tensor] = []

    @torch.no_grad()
    def update(self, tensors: Iterable[Tensor], t: int) -> None:
        """Take the tensors of update ``t``, counted from 1."""
        if not self.values:
            self.values = [tensor.detach().clone() for tensor in tensors]
            return
        torch._foreach_lerp_(self.values, list(tensors), 1 - kept(self.most, self.window, t))


def kept(most: float, window: int, t: int) -> float:
    """Part of itself that a moving average keeps at update ``t``."""
    return min(most, t / (t + window))
