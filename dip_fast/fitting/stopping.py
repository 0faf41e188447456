"""The stopping statistic: the moving variance of the iterates, smallest about where their picture is best."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dip_fast.fitting.averaging import weight_of_newest
from dip_fast.fitting.reductions import mean_square

ALPHA = 0.1  # the weight of the newest iterate, as in the paper
IGNORED_STEPS = 100  # the first iterates change too much for their variance to mean anything
# The variance is averaged over the last quarter of the steps.  Unaveraged, it stops the fit too early by up to 1.9 dB
# (F16 at sigma 50); averaged, by 0.1 dB there and 0.15 dB at sigma 25 (docs/notes/2026-11-presets.md).
AVERAGED = (0.995, 3)


class Variance(NamedTuple):
    """The stopping statistic so far, in 0-dim float64 tensors.

    Attributes
    ----------
    variance : Tensor
        The moving variance, v of `MovingVariance`.
    value : Tensor
        The averaged v, in squared units of the picture's range [0, 1]; NaN before the second iterate.
    best, best_step : Tensor
        Its minimum so far, and the step; infinity and 0 before there is one.
    """

    variance: Tensor
    value: Tensor
    best: Tensor
    best_step: Tensor


class MovingVariance:
    """Exponential moving variance of the iterates (ES-EMV): two pictures of state for any number of steps.

    ``m <- m + alpha (x - m)`` and ``v <- (1 - alpha) (v + alpha ||x - m||^2 / size)``, with the m of before the step.
    While the network learns the picture v falls; once it learns the noise, v rises again.  The answer is the network
    as it was at the minimum of v, averaged over the last quarter of the steps; a fit that goes on for long without a
    new minimum is over.

    Parameters
    ----------
    like : Tensor
        A tensor of the iterates' shape, type and device.

    Attributes
    ----------
    mean : Tensor
        The moving mean m; zeros before the first iterate.

    References
    ----------
    H. Wang et al., "Early Stopping for Deep Image Prior", arXiv 2112.06074.
    """

    def __init__(self, like: Tensor) -> None:
        self.mean = torch.zeros_like(like)

    @staticmethod
    def weights(step: int) -> tuple[float, float]:
        """Compute the weights of a step, counted from 1: of the iterate in its mean, and of v in its average."""
        return 1.0 if step == 1 else ALPHA, weight_of_newest(*AVERAGED, step)

    @torch.no_grad()
    def update(
        self, iterate: Tensor, step: Tensor, weights: tuple[Tensor, Tensor], known: Variance, takes: Tensor
    ) -> Variance:
        """Update the mean and the statistic with the iterate of a step, without reading a tensor on the host.

        Parameters
        ----------
        iterate : Tensor
            The image of the step.
        step : Tensor
            The step, counted from 1; float64, as all that are not images.
        weights : tuple of Tensor
            What `weights` computes for the step.
        known : Variance
            The statistic before the step.
        takes : Tensor
            Bool: whether the mean moves.  The caller drops what is returned where it does not.

        Returns
        -------
        Variance
            The statistic after the step; its ``best_step`` is this step if it is a new minimum.
        """
        alpha, share = weights
        distance = mean_square(iterate, self.mean).to(step)
        self.mean.lerp_(iterate, (alpha * takes).to(self.mean))
        later = step > 1
        variance = torch.where(later, (1 - ALPHA) * (known.variance + ALPHA * distance), known.variance)
        old = torch.where(torch.isnan(known.value), variance, known.value)
        value = torch.where(later, old + share * (variance - old), known.value)
        better = (step > IGNORED_STEPS) & (value < known.best)
        best, best_step = torch.where(better, value, known.best), torch.where(better, step, known.best_step)
        return Variance(variance, value, best, best_step)
