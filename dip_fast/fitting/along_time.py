"""Denoised pictures of one scene, averaged along its motion.

What is wrong in a denoised frame is wrong in another way in the next one, which shows as flicker.  So each part of a
frame is looked for in the frames before and after, and averaged with what is found there, as far as the two differ by
no more than their errors.  Where nothing is found that is like it, as in other scenes, a frame stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from dip_fast import large
from dip_fast.fitting.objectives import Passes
from dip_fast.fitting.pieces import pieces
from dip_fast.fitting.reductions import total

NEIGHBOURS = 3  # pictures before and after
REACH = 6  # pixels that a block may have moved from a picture to another
BLOCK, WINDOW = 8, 16  # pixels: sides of blocks that move as one, and of what is compared to find where to
AROUND = 24  # pixels around a piece that its average depends on, in whole blocks
SIDE = 7  # pixels: of the squares whose difference says how far two pictures agree
# Difference of two pictures up to which they agree, and from which on they do not, as multiples of the estimated error
# of the combination of prediction and samples; what is averaged has about 0.6 of that.
AGREE, DIFFER = 0.6, 1.8
LEAST_ERROR = 1e-9  # of pictures without noise
SAME_SCENE = 1 / 3  # part of a picture that agrees with another one, if both show one scene


def average(z: Tensor, errors: Sequence[float]) -> Generator[None, int | None, Tensor]:
    """Average pictures along the motion between them.

    Parameters
    ----------
    z : Tensor
        Denoised pictures, ``(N, C, H, W)``; neighbours in time or depth are neighbours here.
    errors : sequence of float
        Estimated mean squared error of each, before the patches.

    Returns
    -------
    Tensor
        Of the shape of z; z itself where `Objective.finish` is to be brief.
    """
    made = large.tensor(tuple(z.shape), z)
    for seen, inner, place in pieces((z.shape[2], z.shape[3]), AROUND):
        of_piece = large.part(z, seen)
        for n, error in enumerate(errors):
            if (yield):
                return z
            made[n : n + 1][place] = _averaged(of_piece, n, error)[inner]
    return made


def kind_of_passes(size: tuple[int, int], pictures: int) -> Passes:
    """Describe the passes of `average`, which take as much time a pixel as patches that are alike do."""
    count = sum(1 for _ in pieces(size, AROUND))
    return Passes(count * pictures, alike=math.prod(size) / count)


def _averaged(z: Tensor, n: int, error: float) -> Tensor:
    """Average one of the pictures with its neighbours."""
    this = z[n : n + 1]
    sums, weights = this, torch.ones_like(this[:, :1])
    for distance in range(1, NEIGHBOURS + 1):
        # Both at once, so that the order of the pictures does not matter to the bits.
        of_both, weight_of_both = torch.zeros_like(sums), torch.zeros_like(weights)
        for other in (n - distance, n + distance):
            if 0 <= other < len(z):
                found = _moved(this, z[other : other + 1])
                weight = _weight(this, found, error)
                of_both, weight_of_both = of_both + weight * found, weight_of_both + weight
        sums, weights = sums + of_both, weights + weight_of_both
    return sums / weights


def _weight(this: Tensor, found: Tensor, error: float) -> Tensor:
    """Compute how far two pictures agree at each pixel, 0 to 1: ``(1, 1, H, W)``."""
    difference = avg_pool2d(_mean((found - this).square()), SIDE, 1, SIDE // 2, count_include_pad=False)
    error = max(error, LEAST_ERROR)
    weight = ((DIFFER * error - difference) / ((DIFFER - AGREE) * error)).clamp(0, 1)
    return weight * (total(weight) > SAME_SCENE * weight.numel())


def _moved(this: Tensor, other: Tensor) -> Tensor:
    """Make a picture of another one's blocks, each from where it is most like this one's.

    The squared differences of windows around the blocks are compared, of the means of the channels.
    """
    height, width = this.shape[2:]
    beyond = (0, -width % BLOCK, 0, -height % BLOCK)
    here, there = (pad(_mean(image), beyond, mode="replicate") for image in (this, other))
    rows, columns = here.shape[2:]
    there = pad(there, (REACH,) * 4, mode="replicate")
    least = here.new_full((1, 1, rows // BLOCK, columns // BLOCK), math.inf)
    shift = torch.zeros_like(least, dtype=torch.int64)
    side = 2 * REACH + 1
    for number in range(side**2):
        down, right = divmod(number, side)
        difference = (there[:, :, down : down + rows, right : right + columns] - here).square_()
        of_blocks = avg_pool2d(difference, WINDOW, BLOCK, (WINDOW - BLOCK) // 2, count_include_pad=False)
        is_less = of_blocks < least
        least, shift = torch.where(is_less, of_blocks, least), torch.where(is_less, number, shift)
    shift = shift[0, 0].repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:height, :width]
    from_row = torch.arange(height, device=this.device)[:, None] + shift // side - REACH
    from_column = torch.arange(width, device=this.device) + shift % side - REACH
    return other[:, :, from_row.clamp(0, height - 1), from_column.clamp(0, width - 1)]


def _mean(image: Tensor) -> Tensor:
    """Average the channels, one after another: ``(1, 1, H, W)``."""
    sums = image[:, :1]
    for channel in range(1, image.shape[1]):
        sums = sums + image[:, channel : channel + 1]
    return sums / image.shape[1]
