"""A second estimate of denoised pictures: each patch from its noisy samples and the patches that are like it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from dip_fast import large
from dip_fast.fitting.computing import shared
from dip_fast.fitting.noise_model import NoiseModel
from dip_fast.fitting.objectives import Passes
from dip_fast.fitting.pieces import pieces

SIDE = 5  # of a patch, in pixels
ALIKE, ALIKE_IN_STACKS = 24, 40  # patches of a group: more where there are several pictures
REACH = 13  # pixels that they are looked for around the first
NEIGHBOURS = 2  # pictures before and after, as in films and volumes, that they are looked for in
NEAR = 6  # pixels that they are looked for around the same place there
STRIDE = 3  # pixels between the first patches of groups
LEAST_VARIANCE = 1e-8  # of noise: a hundredth of what the rounding to 8 bits has
GROUPS = 1024  # at a time: a strip of the picture
STRIPS = 8  # that nothing interrupts
FAR = 1e3  # what no sample of the picture is near
UNIT = 2.0**-32  # of sums: those of whole numbers do not depend on their order, hence not on threads or device


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
            count += -(-rows // (_rows_of_strip(columns) * STRIPS))
    return count


def _rows_of_strip(columns: int) -> int:
    """Choose how many rows of groups are looked at at a time."""
    return max(1, GROUPS // columns)


def _of_piece(y: Tensor, x: Tensor, noise: NoiseModel) -> Generator[None, int | None, Tensor]:
    if min(y.shape[2:]) <= SIDE:
        return x
    channels, height, width = y.shape[1:]
    beyond = (0, -(width - SIDE) % STRIDE, 0, -(height - SIDE) % STRIDE)
    y, x = (pad(image, beyond, mode="reflect") for image in (y, x))
    samples, estimates = (images.movedim(1, 3).reshape(-1, channels) for images in (y, x))
    sums = torch.zeros(samples.shape, dtype=torch.int64, device=y.device)
    count = torch.zeros(len(samples), dtype=torch.int64, device=y.device)
    square = torch.arange(SIDE, device=y.device)
    inside = (square[:, None] * y.shape[3] + square).flatten()

    def restored(groups: Callable[[int], Tensor], row: int) -> tuple[Tensor, Tensor]:
        """Estimate the patches of a strip: places of samples, and what to add there, in units."""
        corners = groups(row)
        places = (corners[..., None] + inside).flatten()
        shape = (*corners.shape, SIDE * SIDE * channels)
        patches = _restored(samples[places].view(shape), estimates[places].view(shape), noise)
        return places, (patches.view(-1, channels) / UNIT).round().long()

    for n in range(len(y)):
        groups, strips = _groups(x, n)
        for first in range(0, len(strips), STRIPS):
            if (yield):
                return x[..., :height, :width]
            for places, parts in shared(partial(restored, groups), strips[first : first + STRIPS]):
                sums.index_add_(0, places, parts)
                count += places.bincount(minlength=len(count))
    mean = (sums.double() * UNIT / count[:, None]).to(y)
    return mean.view(len(y), *y.shape[2:], channels).movedim(3, 1)[..., :height, :width]


def _restored(y: Tensor, x: Tensor, noise: NoiseModel) -> Tensor:
    """Estimate patches from noisy ones y and first estimates x, all ``(groups, patches, samples)``, in float64."""
    y, x = y.double(), x.double()  # what has next to no noise makes matrices that are singular in float32
    mean = x.mean(1, keepdim=True)
    own = noise.variance_at_mean(mean).clamp(min=LEAST_VARIANCE)
    Q = (x - mean) / own.sqrt()
    both = Q @ torch.cat((Q, (y - mean) / own.sqrt()), dim=1).transpose(1, 2)
    k = Q.shape[1]
    inverse = torch.linalg.cholesky(both[..., :k] + (k - 1) * torch.eye(k, dtype=y.dtype, device=y.device))
    weights = torch.cholesky_solve(both[..., k:], inverse)
    return mean + weights.transpose(1, 2) @ Q * own.sqrt()


def _groups(x: Tensor, n: int) -> tuple[Callable[[int], Tensor], range]:
    """Find patches that are like those of a picture, as places of their first samples in the flat pictures.

    Returns
    -------
    callable
        From the first row of groups of a strip to int64 ``(groups, patches)``.
    range
        These rows.
    """
    height, width = x.shape[2:]
    rows, columns = ((length - SIDE) // STRIDE + 1 for length in (height, width))
    others = range(max(n - NEIGHBOURS, 0), min(n + NEIGHBOURS + 1, len(x)))
    shifts = [(0, 0, 0)]
    for k in others:
        far = REACH if k == n else NEAR
        reach = range(-far, far + 1)
        shifts += [
            (k - n, down, right) for down, right in itertools.product(reach, reach) if (k, down, right) != (n, 0, 0)
        ]
    around = pad(x[others.start : others.stop], (REACH,) * 4, value=FAR)
    places = (min(height, REACH + SIDE) - SIDE + 1) * (min(width, REACH + SIDE) - SIDE + 1)  # at a corner
    alike = min(ALIKE if len(x) == 1 else ALIKE_IN_STACKS, places)
    steps = torch.tensor([(k * height + down) * width + right for k, down, right in shifts], device=x.device)
    across = torch.arange(columns, device=x.device) * STRIDE
    strip = _rows_of_strip(columns)

    def groups(first: int) -> Tensor:
        count = min(strip, rows - first)
        top, high = first * STRIDE, (count - 1) * STRIDE + SIDE
        here = x[n, :, top : top + high]
        distances = torch.empty((len(shifts), count, columns), device=x.device)
        for distance, (k, down, right) in zip(distances, shifts, strict=True):
            begin = top + REACH + down, REACH + right
            there = around[n + k - others.start, :, begin[0] : begin[0] + high, begin[1] : begin[1] + width]
            distance.copy_(avg_pool2d((here - there).square_().sum(0, keepdim=True), SIDE, STRIDE)[0])
        distances[0] = -1.0  # each is of its own group
        nearest = distances.flatten(1).t().topk(alike, dim=1, largest=False).indices
        corners = ((torch.arange(count, device=x.device)[:, None] + first) * STRIDE + n * height) * width + across
        return corners.flatten()[:, None] + steps[nearest]

    return groups, range(0, rows, strip)
