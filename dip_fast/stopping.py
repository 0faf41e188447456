"""When to stop: the moving variance of the iterates, which is least about where their picture is best."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ALPHA = 0.1  # weight of the newest iterate, as in the paper
IGNORED_STEPS = 100  # the first iterates travel far: their variance says nothing


class MovingVariance:
    """Exponential moving variance of the iterates (ES-EMV): two pictures of state for any number of steps.

    ``m <- m + alpha (x - m)`` and ``v <- (1 - alpha) (v + alpha ||x - m||^2 / size)``, with the m of before the step.
    While the network learns the picture v falls; once it learns the noise, v rises again.  The answer is the network
    as it was at the minimum of v, and a fit that goes ``patience`` steps without a new minimum is over.

    Attributes
    ----------
    value : float
        v, in squared units of the picture's range [0, 1]; NaN before the second iterate.
    best, best_step : float, int
        The minimum so far, and its step; infinity and 0 before there is one.

    References
    ----------
    H. Wang et al., "Early Stopping for Deep Image Prior", arXiv 2112.06074.
    """

    def __init__(self) -> None:
        self.mean: Tensor | None = None
        self.value = math.nan
        self.best = math.inf
        self.best_step = 0

    @torch.no_grad()
    def update(self, iterate: Tensor, step: int) -> bool:
        """Take the iterate of a step, counted from 1, and say whether it is a new minimum."""
        if self.mean is None:
            self.mean = iterate.clone()
            return False
        difference = iterate - self.mean
        square = difference.square().mean().item()
        self.value = (1 - ALPHA) * ((0.0 if math.isnan(self.value) else self.value) + ALPHA * square)
        self.mean.add_(difference, alpha=ALPHA)
        if step <= IGNORED_STEPS or not self.value < self.best:
            return False
        self.best, self.best_step = self.value, step
        return True
