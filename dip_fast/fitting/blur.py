"""Smoothing with a Gaussian window, in one order of the sums."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def blur(image: Tensor, deviation: float) -> Tensor:
    """Smooth an image with a Gaussian window of three deviations, mirrored at the edges.

    The bits depend neither on the number of threads nor on how a library computes convolutions.

    Parameters
    ----------
    image : Tensor
        ``(N, C, H, W)``.
    deviation : float
        Of the window, in pixels.
    """
    reach = math.ceil(3 * deviation)
    weights = torch.exp(-torch.arange(-reach, reach + 1, dtype=torch.float64).square() / (2 * deviation**2))
    weights /= weights.sum()
    for dim in (2, 3):
        length = image.shape[dim]
        place = torch.arange(-reach, length + reach, device=image.device) % max(2 * length - 2, 1)
        padded = image.index_select(dim, torch.minimum(place, (2 * length - 2 - place).clamp(min=0)))
        image = sum(
            (padded.narrow(dim, i, length) * weight for i, weight in enumerate(weights.tolist())),
            start=torch.zeros_like(image),
        )
    return image
