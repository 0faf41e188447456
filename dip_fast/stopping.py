"""When to stop: the moving variance of the iterates, which is least about where their picture is best."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dip_fast.averaging import kept
from dip_fast.reductions import mean_square

ALPHA = 0.1  # weight of the newest iterate, as in the paper
IGNORED_STEPS = 100  # the first iterates travel far: their variance says nothing
# The variance is averaged over the last quarter of the steps.  As it is, it stops too early by up to 1.9 dB (F16 at
# sigma 50); averaged so, by 0.1 dB there and 0.15 dB at sigma 25 (docs/notes/2026-11-presets.md).
AVERAGED = (0.995, 3)


class MovingVariance:
    """Exponential moving variance of the iterates (ES-EMV): two pictures of state for any number of steps.

    ``m <- m + alpha (x - m)`` and ``v <- (1 - alpha) (v + alpha ||x - m||^2 / size)``, with the m of before the step.
    While the network learns the picture v falls; once it learns the noise, v rises again.  The answer is the network
    as it was at the minimum of v, averaged over the last quarter of the steps; a fit that goes on for long without a
    new minimum is over.

    Attributes
    ----------
    value : float
        The averaged v, in squared units of the picture's range [0, 1]; NaN before the second iterate.
    best, best_step : float, int
        Its minimum so far, and the step; infinity and 0 before there is one.

    References
    ----------
    H. Wang et al., "Early Stopping for Deep Image Prior", arXiv 2112.06074.
    """

    def __init__(self) -> None:
        self.mean: Tensor | None = None
        self.variance = 0.0
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
        self.variance = (1 - ALPHA) * (self.variance + ALPHA * mean_square(difference).item())
        self.mean.add_(difference, alpha=ALPHA)
        old = self.variance if math.isnan(self.value) else self.value
        self.value = old + (1 - kept(*AVERAGED, step)) * (self.variance - old)
        if step <= IGNORED_STEPS or not self.value < self.best:
            return False
        self.best, self.best_step = self.value, step
        return True
