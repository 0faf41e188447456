"""Averaging of weights along the fit: one network whose picture is better than that of any iterate."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class WeightAverage:
    """Exponential moving average of a network's parameters.

    ``a <- a + (1 - f) (w - a)`` with ``f = min(factor, t / (t + 9))`` at update ``t = 1, 2, ...``: early on, when the
    weights still travel far, the average reaches back over a tenth of the way only.

    Parameters
    ----------
    parameters : iterable of Tensor
        The network's parameters, which each `update` reads.
    factor : float
        In [0, 1); 0 follows the weights.
    """

    def __init__(self, parameters: Iterable[Tensor], factor: float) -> None:
        self.parameters = list(parameters)
        self.factor = factor
        self.values = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, t: int) -> None:
        """Take the parameters as they are after update ``t``, counted from 1."""
        factor = min(self.factor, t / (t + 9))
        torch._foreach_lerp_(self.values, self.parameters, 1 - factor)
