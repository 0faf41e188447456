"""The local error of a prediction, from its squared distances to noisy samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dip_fast.fitting.blur import blur

LEVELS = 24  # of the gradient, each with the mean excess of its pixels
SCALES = (2.5, 5.0, 10.0, 20.0)  # deviations of Gaussian windows, in pixels
SPREAD = 3.0  # of the window in which a scale's detail is weighed, in deviations of the scale
POWER = 2.5  # times the variance that chance gives a detail: what is below is chance
# Times s^2: what is above it is an error that chance does not explain, of a star or a hot pixel, and is spread no
# farther than NEAR pixels.  In the sky around stars x has 50.0 dB in place of 45.5; pictures lose 0.01.
OUTSTANDING, NEAR = 9.0, 1.5
LINE, ACROSS = 16.0, 1.25  # pixels: deviations of a window along a row or column, and of the one beside it
LINE_POWER = 12.0


def error_map(excess: Tensor, own: Tensor, A: Tensor) -> Tensor:
    """Estimate the mean squared error v of a prediction at each pixel.

    A sample of the excess ``(y - A)^2 - s^2`` has the mean v and a deviation of ``sqrt(2) (s^2 + v)``, far above v.  So
    it is averaged, as locally as what it shows allows: first over all pixels with as large a gradient, since
    predictions go wrong at edges; then what that leaves is smoothed at several scales, and each scale's detail counts
    by the share of its local power that chance does not explain (Wiener's weight); last, single rows and columns that
    differ from their neighbours, as the damaged ones at the margin of many a picture do.  Errors that stand out by
    themselves count next to where they are, and nowhere else.

    Parameters
    ----------
    excess : Tensor
        ``(1, C, H, W)``.
    own : Tensor
        s^2, of the same shape.
    A : Tensor
        The prediction.

    Returns
    -------
    Tensor
        ``(1, 1, H, W)``, at least 0.

    Notes
    -----
    docs/notes/masked.md has what each part gives: 0.3 to 0.5 dB of the combination over one window of 5 pixels.
    """
    channels = excess.shape[1]
    excess, own = excess.mean(1, keepdim=True), own.mean(1, keepdim=True)
    outstanding = (excess - OUTSTANDING * own).clamp(min=0)
    excess = excess - outstanding
    expected = _by_gradient(excess, A)
    rest = excess - expected
    smoothed = [blur(rest, scale) for scale in SCALES]
    v = (expected + smoothed[-1]).clamp(min=0)
    for i in reversed(range(len(SCALES) - 1)):
        detail = smoothed[i] - smoothed[i + 1]
        chance = _chance(_overlaps(SCALES[i], SCALES[i + 1], 2), own + v, channels)
        power = blur(detail.square(), SPREAD * SCALES[i])
        v = (v + detail * _wiener(power, POWER * chance)).clamp(min=0)
    for window, beside in (((LINE, 0.0), (LINE, ACROSS)), ((0.0, LINE), (ACROSS, LINE))):
        detail = blur(excess, window) - blur(excess, beside)
        along = 1 / (2 * math.sqrt(math.pi) * LINE)
        chance = _chance(along * (1 + _overlap(ACROSS, ACROSS) - 2 * _overlap(0.0, ACROSS)), own + v, channels)
        v = (v + detail * _wiener(detail.square(), LINE_POWER * chance)).clamp(min=0)
    return v + blur(outstanding, NEAR)


def _by_gradient(excess: Tensor, A: Tensor) -> Tensor:
    """Average the excess over all pixels with a gradient of the same quantile."""
    gradient = torch.zeros_like(excess)
    for dim in (2, 3):
        length = A.shape[dim]
        place = torch.arange(length, device=A.device)
        ahead = A.index_select(dim, (place + 1).clamp(max=length - 1))
        gradient += (ahead - A.index_select(dim, (place - 1).clamp(min=0))).square().mean(1, keepdim=True)
    order = blur(gradient, 1.0).flatten().argsort(stable=True)
    level = torch.empty_like(order)
    level[order] = torch.arange(len(order), device=A.device) * LEVELS // len(order)
    flat = excess.flatten().double()
    means = torch.stack([flat[level == i].mean() for i in range(LEVELS)]).nan_to_num(0.0).clamp(min=0)
    return means[level].view_as(excess).to(excess)


def _overlap(first: float, second: float) -> float:
    """Integrate the product of two Gaussian windows of one dimension; 0 stands for a single pixel."""
    variance = first * first + second * second
    return 1 / math.sqrt(2 * math.pi * variance)


def _overlaps(fine: float, coarse: float, dimensions: int) -> float:
    """Compute the sum of the squared weights of the difference of two windows: what is left of white noise."""
    parts = _overlap(fine, fine), _overlap(fine, coarse), _overlap(coarse, coarse)
    fine_fine, fine_coarse, coarse_coarse = (part**dimensions for part in parts)
    return fine_fine - 2 * fine_coarse + coarse_coarse


def _chance(weights: float, variance: Tensor, channels: int) -> Tensor:
    """Compute the variance that chance gives a weighted mean of squares of normal numbers."""
    return 2 * variance.square() * (weights / channels)


def _wiener(power: Tensor, chance: Tensor) -> Tensor:
    """Compute the share of a power that chance does not explain."""
    return (power - chance).clamp(min=0) / power.clamp(min=1e-30)
