"""A second estimate of denoised pictures: each patch from its noisy samples and the patches that are like it."""

from __future__ import annotations

import math
from collections.abc import Generator

import torch
from torch import Tensor
from torch.nn.functional import pad

from dip_fast import large
from dip_fast.fitting.noise_model import NoiseModel
from dip_fast.fitting.objectives import Passes
from dip_fast.fitting.pieces import pieces

SIDE = 5  # of a patch, in pixels; those of `dip_fast.ops.patches`
STRIDE = 3  # pixels between the first patches of groups
ALIKE, ALIKE_IN_STACKS = 24, 40  # patches of a group: more where there are several pictures
REACH = 13  # pixels that they are looked for around the first
NEIGHBOURS = 2  # pictures before and after, as in films and volumes, that they are looked for in
NEAR = 6  # pixels that they are looked for around the same place there
LEAST_VARIANCE = 1e-8  # of noise: a hundredth of what the rounding to 8 bits has
GROUPS = 8192  # at a time, that nothing interrupts


def estimate(y: Tensor, x: Tensor, noise: NoiseModel) -> Generator[None, int | None, Tensor]:
    """Estimate pictures once more, by the patches that are alike in a first estimate.

    The patches of a group, as vectors of all their samples, are taken for draws of one normal distribution, whose mean
    m and covariance C are those of the first estimate's.  With noise of the covariance N, the best estimate of a noisy
    patch p is ``m + C (C + N)^-1 (p - m)``.  There are fewer patches in a group than samples in a patch; with the rows
    Q of the k patches less their mean, ``C = Q' Q / (k - 1)``, so the inverse is that of a k by k matrix:

        C (C + N)^-1  =  Q' (Q N^-1 Q' + (k - 1) I)^-1 Q N^-1

    Each sample is the mean of its estimates in all patches of all groups.

    Parameters
    ----------
    y, x : Tensor
        Noisy pictures, whose samples have no bias of noise that is cut off, and their first estimates,
        ``(N, C, H, W)``; neighbours in time or depth are neighbours here.
    noise : NoiseModel

    Returns
    -------
    Tensor
        Of the shape of y; x itself where pictures have less than two patches, or `Objective.finish` is to be brief.

    References
    ----------
    M. Lebrun, A. Buades, J.-M. Morel, "A Nonlocal Bayesian Image Denoising Algorithm", SIAM J. Imaging Sci. 6 (2013),
    doi:10.1137/120874989: the estimate, here without its first step.
    """
    made = large.tensor(tuple(x.shape), x)
    for seen, inner, place in pieces((y.shape[2], y.shape[3]), REACH + SIDE):
        made[place] = (yield from _of_piece(large.part(y, seen), large.part(x, seen), noise))[inner]
    return made


def kind_of_passes(size: tuple[int, int], estimates: int) -> Passes:
    """Describe the passes of so many calls of `estimate`, for a picture of this height and width each."""
    count = passes(size)
    return Passes(estimates * count, alike=math.prod(size) / max(count, 1))


def passes(size: tuple[int, int]) -> int:
    """Count how often `estimate` yields for a picture of this height and width."""
    count = 0
    for seen, _, _ in pieces(size, REACH + SIDE):
        sides = [place.stop - place.start for place in seen[1:]]
        if min(sides) > SIDE:
            rows, columns = (-(-(side - SIDE) // STRIDE) + 1 for side in sides)
            count += -(-rows // _rows_at_a_time(columns))
    return count


def _rows_at_a_time(columns: int) -> int:
    """Choose how many rows of groups are estimated at a time."""
    return max(1, GROUPS // columns)


def _of_piece(y: Tensor, x: Tensor, noise: NoiseModel) -> Generator[None, int | None, Tensor]:
    from dip_fast.ops.patches import UNIT, band, similar_patches  # here, since it loads or builds the extension

    height, width = y.shape[2:]
    if min(height, width) <= SIDE:
        return x
    beyond = (0, -(width - SIDE) % STRIDE, 0, -(height - SIDE) % STRIDE)
    y, x = (pad(image, beyond, mode="reflect") for image in (y, x))
    rows, columns = ((length - SIDE) // STRIDE + 1 for length in y.shape[2:])
    places = math.prod(min(length, REACH + SIDE) - SIDE + 1 for length in y.shape[2:])  # at a corner
    alike = min(ALIKE if len(y) == 1 else ALIKE_IN_STACKS, places)
    variance, low, high = noise.variances(y.device)
    variance = variance.clamp(min=LEAST_VARIANCE)
    sums = torch.zeros(y.shape, dtype=torch.int64, device=y.device)
    count = torch.zeros((len(y), *y.shape[2:]), dtype=torch.int64, device=y.device)
    step = _rows_at_a_time(columns)
    for n in range(len(y)):
        for first in range(0, rows, step):
            if (yield):
                return x[..., :height, :width]
            some = n, first, min(step, rows - first)
            pictures, lines = band(y.shape, *some, NEIGHBOURS, REACH)
            of_some, number = similar_patches(y, x, *some, alike, NEIGHBOURS, REACH, NEAR, variance, low, high)
            sums[pictures, :, lines] += of_some
            count[pictures, lines] += number
    return (sums.double() * UNIT / count[:, None]).to(y)[..., :height, :width]
