"""Estimates the squared error of a prediction and of its combination with the noisy samples, without the truth."""

from __future__ import annotations

import torch
from torch import Tensor

from dip_fast.fitting.error_map import error_map


def estimated_error(y: Tensor, A: Tensor, own: Tensor, learned: float, slope: Tensor) -> tuple[float, float]:
    """Estimate the mean squared error of A and of ``A + w (y - A)``.

    The weight w of a sample comes from the error map, hence from ``(y - A)^2`` around it; where that is large by chance
    w is large too, and the error of the combination would look smaller than it is.  So the pixels are divided like a
    chess board: those of one colour give the weights by which the error of the other colour is estimated.

    Parameters
    ----------
    y, A : Tensor
        Noisy samples, and predictions that do not depend on their own sample's noise, ``(1, C, H, W)``.
    own : Tensor
        The variance of the samples' noise.
    learned : float
        As in `share_of_samples`.
    slope : Tensor
        The true value over the mean of samples that are cut off: what an error of the mean is multiplied by.

    Returns
    -------
    predicted, combined : float
    """
    height, width = y.shape[2:]
    excess = (y - A).square() - own
    error_of_A = excess + 2 * learned * own
    colour = (torch.arange(height, device=y.device)[:, None] + torch.arange(width, device=y.device)) % 2 == 0
    combined = torch.zeros_like(y)
    for seen in (colour, ~colour):
        w = share_of_samples(torch.where(seen, excess, _neighbours(excess)), A, own, learned)
        error = (1 - w).square() * error_of_A + (w.square() + 2 * w * (1 - w) * learned) * own
        combined += torch.where(seen, 0.0, error)
    # Chance can make a mean of few samples small, or negative; what the weights have learned is an error in any case.
    least = learned * float(own.double().mean())
    errors = (float((error * slope.square()).double().mean()) for error in (error_of_A, combined))
    predicted, mixed = (max(error, least) for error in errors)
    return predicted, mixed


def share_of_samples(excess: Tensor, A: Tensor, own: Tensor, learned: float) -> Tensor:
    """Compute the weight w of the noisy samples that makes the error of ``A + w (y - A)`` least.

    With the error v of A, the variance s^2 of the noise n, and cov(A, n) = r s^2, that error is
    ``(1 - w)^2 v + w^2 s^2 + 2 w (1 - w) r s^2``, and the excess ``(y - A)^2 - s^2`` has the mean ``v - 2 r s^2``.

    Parameters
    ----------
    excess, A, own : Tensor
        As in `error_map`.
    learned : float
        r: how far a prediction follows the noise of its own sample, which the weights have learned in part.

    Returns
    -------
    Tensor
        In [0, 1].
    """
    v = error_map(excess, own, A)
    return ((v + learned * own) / (v + own).clamp(min=1e-12)).clamp(max=1)


def _neighbours(image: Tensor) -> Tensor:
    """Average the four neighbours of each pixel, mirrored at the edges."""
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1), mode="reflect")
    return (padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1] + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]) / 4
