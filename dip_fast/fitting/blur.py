"""Smoothing with a Gaussian window, in one order of the sums."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def blur(image: Tensor, deviation: float | tuple[float, float]) -> Tensor:
    """Smooth an image with a Gaussian window of three deviations, mirrored at the edges.

    The bits depend neither on the number of threads nor on how a library computes convolutions.

    Parameters
    ----------
    image : Tensor
        ``(N, C, H, W)``.
    deviation : float or tuple of float
        Of the window in pixels, or along columns and along rows; 0 does nothing.
    """
    deviations = deviation if isinstance(deviation, tuple) else (deviation, deviation)
    for dim, along in zip((2, 3), deviations, strict=True):
        if not along:
            continue
        reach = math.ceil(3 * along)
        weights = torch.exp(-torch.arange(-reach, reach + 1, dtype=torch.float64).square() / (2 * along**2))
        length = image.shape[dim]
        place = torch.arange(-reach, length + reach, device=image.device) % max(2 * length - 2, 1)
        padded = image.index_select(dim, torch.minimum(place, (2 * length - 2 - place).clamp(min=0)))
        smoothed = torch.zeros_like(image)
        for i, weight in enumerate((weights / weights.sum()).tolist()):
            smoothed.add_(padded.narrow(dim, i, length), alpha=weight)
        image = smoothed
    return image
