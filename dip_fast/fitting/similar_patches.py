"""A second estimate of a denoised picture: each patch from its noisy samples and the patches that are like it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from dip_fast.fitting.noise_model import NoiseModel

SIDE = 5  # of a patch, in pixels
ALIKE = 24  # patches of a group
REACH = 13  # pixels that they are looked for around the first
STRIDE = 3  # pixels between the first patches of groups
GROUPS = 1024  # at a time
FAR = 1e3  # what no sample of the picture is near
UNIT = 2.0**-32  # of sums: those of whole numbers do not depend on their order, hence not on threads or device


def estimate(y: Tensor, x: Tensor, noise: NoiseModel) -> Tensor:
    """Estimate a picture once more, by the patches that are alike in a first estimate.

    The patches of a group, as vectors of all their samples, are taken for draws of one normal distribution, whose mean
    m and covariance C are those of the first estimate's.  With noise of the covariance N, the best estimate of a noisy
    patch p is ``m + C (C + N)^-1 (p - m)``.  There are fewer patches in a group than samples in a patch; with the rows
    Q of the k patches less their mean, ``C = Q' Q / (k - 1)``, so the inverse is that of a k by k matrix:

        C (C + N)^-1  =  Q' (Q N^-1 Q' + (k - 1) I)^-1 Q N^-1

    Each sample is the mean of its estimates in all patches of all groups.

    Parameters
    ----------
    y, x : Tensor
        The noisy picture, its samples without the bias of noise that is cut off, and the first estimate,
        ``(1, C, H, W)``.
    noise : NoiseModel

    Returns
    -------
    Tensor
        Of the shape of y; x itself where a picture has less than two patches.

    References
    ----------
    M. Lebrun, A. Buades, J.-M. Morel, "A Nonlocal Bayesian Image Denoising Algorithm", SIAM J. Imaging Sci. 6 (2013),
    doi:10.1137/120874989: the estimate, here without its first step.
    """
    if min(y.shape[2:]) <= SIDE:
        return x
    channels, height, width = y.shape[1:]
    beyond = (0, -(width - SIDE) % STRIDE, 0, -(height - SIDE) % STRIDE)
    y, x = (pad(image, beyond, mode="reflect") for image in (y, x))
    samples, estimates = (image[0].flatten(1).t().contiguous() for image in (y, x))
    sums = torch.zeros(samples.shape, dtype=torch.int64, device=y.device)
    count = torch.zeros(len(samples), dtype=torch.int64, device=y.device)
    square = torch.arange(SIDE, device=y.device)
    inside = (square[:, None] * y.shape[3] + square).flatten()
    for corners in _groups(x):
        places = (corners[..., None] + inside).flatten()
        shape = (*corners.shape, SIDE * SIDE * channels)
        restored = _restored(samples[places].view(shape), estimates[places].view(shape), noise)
        sums.index_add_(0, places, (restored.view(-1, channels) / UNIT).round().long())
        count += places.bincount(minlength=len(count))
    mean = (sums.double() * UNIT / count[:, None]).to(y)
    return mean.t().view(y.shape)[..., :height, :width]


def _restored(y: Tensor, x: Tensor, noise: NoiseModel) -> Tensor:
    """Estimate patches from noisy ones y and first estimates x, all ``(groups, patches, samples)``."""
    mean = x.mean(1, keepdim=True)
    own = noise.variance_at_mean(mean).clamp(min=1e-8)
    Q = (x - mean) / own.sqrt()
    both = Q @ torch.cat((Q, (y - mean) / own.sqrt()), dim=1).transpose(1, 2)
    k = Q.shape[1]
    inverse = torch.linalg.cholesky(both[..., :k] + (k - 1) * torch.eye(k, device=y.device))
    weights = torch.cholesky_solve(both[..., k:], inverse)
    return mean + weights.transpose(1, 2) @ Q * own.sqrt()


def _groups(x: Tensor) -> Iterator[Tensor]:
    """Find patches that are alike, as places of their first samples in the flat picture, ``(groups, patches)``."""
    height, width = x.shape[2:]
    rows, columns = ((length - SIDE) // STRIDE + 1 for length in (height, width))
    around = pad(x, (REACH,) * 4, value=FAR)
    shifts = torch.cartesian_prod(*[torch.arange(-REACH, REACH + 1)] * 2)
    alike = min(ALIKE, (min(height, REACH + SIDE) - SIDE + 1) * (min(width, REACH + SIDE) - SIDE + 1))
    steps = shifts.to(x.device) @ torch.tensor([width, 1], device=x.device)
    across = torch.arange(columns, device=x.device) * STRIDE
    strip = max(1, GROUPS // columns)
    for first in range(0, rows, strip):
        count = min(strip, rows - first)
        top, high = first * STRIDE, (count - 1) * STRIDE + SIDE
        here = x[:, :, top : top + high]
        distances = torch.empty((len(shifts), count, columns), device=x.device)
        for distance, (down, right) in zip(distances, shifts.tolist(), strict=True):
            begin = top + REACH + down, REACH + right
            there = around[:, :, begin[0] : begin[0] + high, begin[1] : begin[1] + width]
            distance.copy_(avg_pool2d((here - there).square_().sum(1), SIDE, STRIDE)[0])
        distances[len(shifts) // 2] = -1.0  # each is of its own group
        nearest = distances.flatten(1).t().topk(alike, dim=1, largest=False).indices
        corners = (torch.arange(count, device=x.device)[:, None] + first) * STRIDE * width + across
        yield corners.flatten()[:, None] + steps[nearest]
