"""Estimates the squared error of a prediction and of its combination with the noisy samples, without the truth."""

from __future__ import annotations

import torch
from torch import Tensor

from dip_fast.fitting.error_map import error_map

# How far the prediction of a sample follows the sample's own noise, which the weights have learned in part, times the
# samples of a channel.  docs/notes/masked.md has the pictures that it was measured on.
LEARNED = 0.0


def estimated_error(y: Tensor, A: Tensor, own: Tensor, slope: Tensor) -> tuple[float, float]:
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
    slope : Tensor
        The true value over the mean of samples that are cut off: what an error of the mean is multiplied by.

    Returns
    -------
    predicted, combined : float
    """
    height, width = y.shape[2:]
    learned = LEARNED / (height * width)
    excess = (y - A).square() - own * (1 - 2 * learned)
    colour = (torch.arange(height, device=y.device)[:, None] + torch.arange(width, device=y.device)) % 2 == 0
    combined = torch.zeros_like(y)
    for seen in (colour, ~colour):
        v = error_map(torch.where(seen, excess, _neighbours(excess)), own, A)
        w = v / (v + own).clamp(min=1e-12)
        error = (1 - w).square() * excess + (w.square() + 2 * w * (1 - w) * learned) * own
        combined += torch.where(seen, 0.0, error)
    return float((excess * slope.square()).double().mean()), float((combined * slope.square()).double().mean())


def _neighbours(image: Tensor) -> Tensor:
    """Average the four neighbours of each pixel, mirrored at the edges."""
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1), mode="reflect")
    return (padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1] + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]) / 4
