"""The operators ``masked_crop`` and ``masked_window``: a view of a picture with holes, for a blind-spot network.

A network that sees a picture with holes, and is compared with the samples in them, cannot copy the noise of what it
is to restore.  Which samples are dropped, and which crop is seen how, depend on seed, step and place alone.
`masked_crop_reference` and `masked_window_reference` define the operators, and run where there is no kernel.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dip_fast.ops import extension
from dip_fast.ops.perturbation import BLOCKS, GROUP, LOW, philox

CROP, WINDOW = "dip_fast::masked_crop", "dip_fast::masked_window"
MAX_BLOCK = 64  # side of a square in pixels
MAX_PLACE = 2**30  # of coordinates outside the picture, so that no index overflows
PLACEMENT = 1 << 31  # the high word of the generator's blocks from which a step's placement is drawn


def masked_crop(
    y: Tensor, side: int, margin: int, keep: float, block: int, seed: int, step: int | Tensor
) -> tuple[Tensor, Tensor]:
    """Draw the view of a step, a square crop in one of eight orientations, and mask it.

    Parameters
    ----------
    y : Tensor
        Pictures of one size, float32, (N, C, H, W).
    side : int
        Side of the crop, at most H + 2 margin and W + 2 margin.
    margin : int
        How far a crop may reach over the edges, where the picture is mirrored, so that samples near an edge are seen as
        often as others.
    keep : float
        Probability that a sample is kept, in [0, 1].
    block : int
        Side of the squares of pixels that are kept or dropped as a whole, for noise that is correlated over this many
        pixels, all channels alike.  1: each sample of each channel by itself.
    seed, step : int
        In [-2**63, 2**63); each pair selects a view and a mask of its own.  The step may also be a 0-dim int64 tensor
        on the device of y, which is read where it lies, so that the call can be captured as a CUDA graph.

    Returns
    -------
    z : Tensor
        Float32, (1, 2C, side, side): the view with its holes filled, then the mask, 1 where a sample is kept, else 0.
    target : Tensor
        Float32, (1, C, side, side): the view as it is.

    Raises
    ------
    TypeError
        If y is not float32, or a step in a tensor is not one int64.
    ValueError
        If a size or a probability is out of range.

    Notes
    -----
    A *view* (n, top, left, orientation) is the rows from top and the columns from left of picture n, `oriented`.
    Outside of the picture it is mirrored, without repeating the samples at the edge; a side of one sample is repeated.

    Sample (n, c, row, column) of a picture is kept if its random word is less than keep * 2**32.  Its word has index
    ``((n C + c) H + row) W + column`` among those of seed and step, in the order of `perturb`.  For squares of b > 1
    pixels, which each step displaces by i and j of its own, 0 <= i, j < b, the index is
    ``(n R + (row + i) // b) S + (column + j) // b`` with ``R = ceil(H / b) + 1`` and ``S = ceil(W / b) + 1``.  So a
    mirror image of a sample is dropped with it, and overlapping views agree.

    A hole is filled with the mean of the kept samples of its channel among the (2b + 1) x (2b + 1) samples around it,
    mirrored at the picture's edges, or with 1/2 where there are none.  Each row is summed from its middle outwards, the
    two samples of the same distance first, and then the rows alike.  This order does not change in a mirror, so the
    value depends on the place alone.

    The outputs have no gradient.  The seed should not be that of a perturbation, as both would be made of the same
    numbers.

    Examples
    --------
    >>> z, target = masked_crop(torch.rand(1, 3, 48, 64), 32, 8, keep=0.9, block=1, seed=0, step=1)
    >>> z.shape, target.shape
    (torch.Size([1, 6, 32, 32]), torch.Size([1, 3, 32, 32]))
    >>> kept = z[:, 3:] == 1
    >>> torch.equal(z[:, :3][kept], target[kept])
    True
    """
    return torch.ops.dip_fast.masked_crop(y, side, margin, keep, block, seed, _in_tensor(step, y))


def masked_window(
    y: Tensor,
    n: int,
    top: int,
    left: int,
    height: int,
    width: int,
    orientation: int,
    keep: float,
    block: int,
    seed: int,
    step: int | Tensor,
) -> tuple[Tensor, Tensor]:
    """Mask a given view, for instance a tile of a picture: `masked_crop` without the draw of a place.

    Parameters
    ----------
    y, keep, block, seed, step
        As in `masked_crop`; the mask is that of its step.
    n : int
        Which picture.
    top, left, height, width : int
        Rows ``top .. top + height`` and columns ``left .. left + width`` of the picture, also outside of it.
    orientation : int
        In 0 .. 7, as in `oriented`.

    Returns
    -------
    z, target : Tensor
        As in `masked_crop`, (1, 2C, height, width) and (1, C, height, width), or with the sides exchanged if the
        orientation transposes.
    """
    step = _in_tensor(step, y)
    return torch.ops.dip_fast.masked_window(y, n, top, left, height, width, orientation, keep, block, seed, step)


def oriented(image: Tensor, orientation: int) -> Tensor:
    """Turn or mirror an image (..., H, W) into one of eight orientations.

    First, bit 2 of the orientation transposes the image; then bit 0 reverses the order of its rows, and bit 1 that of
    its columns.  The result may be a view of the image.
    """
    if orientation & 4:
        image = image.transpose(-2, -1)
    return image.flip([dim for bit, dim in ((1, -2), (2, -1)) if orientation & bit])


def oriented_back(image: Tensor, orientation: int) -> Tensor:
    """Turn or mirror an image (..., H, W) back: the inverse of `oriented`."""
    image = image.flip([dim for bit, dim in ((1, -2), (2, -1)) if orientation & bit])
    return image.transpose(-2, -1) if orientation & 4 else image


# ---- definition


class Mask(NamedTuple):
    """A mask: what the choice of the kept samples depends on, besides their place."""

    keep: float
    block: int
    seed: int
    step: int | Tensor

    def words(self, low: Tensor | int, high: Tensor | int) -> tuple[Tensor | int, ...]:
        """Draw the four words of the blocks of the generator that have this low and this high word."""
        counter = (low, high, self.step & LOW, self.step >> 32 & LOW)
        return philox(counter, (self.seed & LOW, self.seed >> 32 & LOW))

    def kept(self, y: Tensor, n: int | Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Return which samples of picture n in these rows and columns are kept, (C or 1, rows, columns)."""
        C, H, W = y.shape[1:]
        if self.block == 1:
            index = ((n * C + _arange(C, y)[:, None, None]) * H + rows[:, None]) * W + columns
        else:
            i, j = (word * self.block >> 32 for word in self.words(1, PLACEMENT)[:2])
            R, S = (-(-side // self.block) + 1 for side in (H, W))
            index = ((n * R + (rows + i) // self.block)[:, None] * S + (columns + j) // self.block)[None]
        # Value 64 g + 16 j + l is word j of block 16 g + l.
        block = index // GROUP * BLOCKS + index % BLOCKS
        words = torch.stack(self.words(block & LOW, block >> 32))  # type: ignore[arg-type]  # a tensor for a tensor
        return words.gather(0, index[None] // BLOCKS % 4)[0] < math.ceil(self.keep * 2**32)


def masked_crop_reference(
    y: Tensor, side: int, margin: int, keep: float, block: int, seed: int, step: int | Tensor
) -> tuple[Tensor, Tensor]:
    """Compute `masked_crop` in PyTorch: its definition.  A step in a tensor is not read on the host."""
    _check_crop(y, side, margin, keep, block, seed, step)
    mask = Mask(keep, block, seed, step)
    words = mask.words(0, PLACEMENT)
    N, _, H, W = y.shape
    counts = N, H + 2 * margin - side + 1, W + 2 * margin - side + 1
    n, top, left = (word * count >> 32 for word, count in zip(words[:3], counts, strict=True))
    z, target = _masked(y, n, top - margin, left - margin, side, side, mask)
    # The orientation is applied to the indices, since it may be known to the device alone.
    orientation = torch.as_tensor(words[3] >> 29, device=y.device)
    forth = _arange(side, y)
    i, j = (torch.where((orientation & bit).bool(), side - 1 - forth, forth) for bit in (1, 2))
    source = torch.where((orientation & 4).bool(), j * side + i[:, None], i[:, None] * side + j)
    return z.flatten(2)[:, :, source], target.flatten(2)[:, :, source]


def masked_window_reference(
    y: Tensor,
    n: int,
    top: int,
    left: int,
    height: int,
    width: int,
    orientation: int,
    keep: float,
    block: int,
    seed: int,
    step: int | Tensor,
) -> tuple[Tensor, Tensor]:
    """Compute `masked_window` in PyTorch: its definition.  A step in a tensor is not read on the host."""
    _check_window(y, n, top, left, height, width, orientation, keep, block, seed, step)
    z, target = _masked(y, n, top, left, height, width, Mask(keep, block, seed, step))
    return oriented(z, orientation).contiguous(), oriented(target, orientation).contiguous()


def _masked(
    y: Tensor, n: int | Tensor, top: int | Tensor, left: int | Tensor, height: int, width: int, mask: Mask
) -> tuple[Tensor, Tensor]:
    """Mask a view of the orientation 0."""
    b = mask.block
    C, H, W = y.shape[1:]
    rows = _mirrored(_arange(height + 2 * b, y) + (top - b), H)
    columns = _mirrored(_arange(width + 2 * b, y) + (left - b), W)
    kept = mask.kept(y, n, rows, columns).expand(C, -1, -1)
    values = y.flatten()[((n * C + _arange(C, y)[:, None, None]) * H + rows[:, None]) * W + columns]
    sums = _sum_around(torch.where(kept, values, 0), b)
    counts = _sum_around(kept.float(), b)
    means = torch.where(counts > 0, sums / counts.clamp(min=1), 0.5)
    inner = (slice(None), slice(b, b + height), slice(b, b + width))
    kept, target = kept[inner], values[inner]
    return torch.cat([torch.where(kept, target, means), kept.float()])[None], target[None].contiguous()


def _mirrored(place: Tensor, length: int) -> Tensor:
    """Return the sample of a side of this length that stands at each place, inside or outside."""
    if length == 1:
        return torch.zeros_like(place)
    place = place % (2 * length - 2)
    return torch.minimum(place, 2 * length - 2 - place)


def _sum_around(values: Tensor, reach: int) -> Tensor:
    """Sum over the squares of up to `reach` from the middle that fit in the image (C, H, W)."""
    for dim in (2, 1):
        length = values.shape[dim] - 2 * reach

        def shifted(by: int, values: Tensor = values, dim: int = dim, length: int = length) -> Tensor:
            return values.narrow(dim, reach + by, length)

        total = shifted(0)
        for distance in range(1, reach + 1):
            total = total + (shifted(-distance) + shifted(distance))
        values = total
    return values


def _arange(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, device=like.device)


# ---- checks, fakes, registration


def _in_tensor(step: int | Tensor, y: Tensor) -> Tensor:
    return step if isinstance(step, Tensor) else torch.full((), step, dtype=torch.int64, device=y.device)


def _check(y: Tensor, keep: float, block: int, step: int | Tensor) -> None:
    if y.dtype != torch.float32:
        raise TypeError(f"y must be of dtype float32, got {y.dtype}")
    if y.dim() != 4 or y.numel() == 0:
        raise ValueError(f"y must be (N, C, H, W) with N, C, H, W >= 1, got {tuple(y.shape)}")
    if not 0 <= keep <= 1:
        raise ValueError(f"keep must be a probability, in [0, 1], got {keep}")
    if not 1 <= block <= MAX_BLOCK:
        raise ValueError(f"block must be a number of pixels in 1 .. {MAX_BLOCK}, got {block}")
    if isinstance(step, Tensor):
        if step.dtype != torch.int64 or step.numel() != 1:
            raise TypeError(f"step must be a tensor of one int64, got {step.numel()} of {step.dtype}")
        if step.device != y.device:
            raise ValueError(f"step must be on the device of y, {y.device}, got {step.device}")


def _check_crop(y: Tensor, side: int, margin: int, keep: float, block: int, seed: int, step: int | Tensor) -> None:
    _check(y, keep, block, step)
    H, W = y.shape[2:]
    if not 0 <= margin <= MAX_PLACE:
        raise ValueError(f"margin must be in 0 .. 2**30, got {margin}")
    if not 1 <= side <= min(H, W) + 2 * margin:
        raise ValueError(
            f"side must be in 1 .. {min(H, W) + 2 * margin}, which pictures of {H}x{W} have with a margin of {margin}, "
            f"got {side}: crop less, or allow a wider margin"
        )


def _check_window(
    y: Tensor,
    n: int,
    top: int,
    left: int,
    height: int,
    width: int,
    orientation: int,
    keep: float,
    block: int,
    seed: int,
    step: int | Tensor,
) -> None:
    _check(y, keep, block, step)
    if not 0 <= n < y.shape[0]:
        raise ValueError(f"n must be one of the {y.shape[0]} pictures, counted from 0, got {n}")
    if max(abs(top), abs(left)) > MAX_PLACE:
        raise ValueError(f"top and left must be in -2**30 .. 2**30, got {top} and {left}")
    if not (1 <= height <= MAX_PLACE and 1 <= width <= MAX_PLACE):
        raise ValueError(f"height and width must be in 1 .. 2**30, got {height} and {width}")
    if not 0 <= orientation <= 7:
        raise ValueError(f"orientation must be in 0 .. 7, got {orientation}")


def _fake_crop(
    y: Tensor, side: int, margin: int, keep: float, block: int, seed: int, step: Tensor
) -> tuple[Tensor, Tensor]:
    _check_crop(y, side, margin, keep, block, seed, step)
    return y.new_empty(1, 2 * y.shape[1], side, side), y.new_empty(1, y.shape[1], side, side)


def _fake_window(
    y: Tensor,
    n: int,
    top: int,
    left: int,
    height: int,
    width: int,
    orientation: int,
    keep: float,
    block: int,
    seed: int,
    step: Tensor,
) -> tuple[Tensor, Tensor]:
    _check_window(y, n, top, left, height, width, orientation, keep, block, seed, step)
    sides = (width, height) if orientation & 4 else (height, width)
    return y.new_empty(1, 2 * y.shape[1], *sides), y.new_empty(1, y.shape[1], *sides)


_VIEWS = {CROP: "int side, int margin", WINDOW: "int n, int top, int left, int height, int width, int orientation"}
_REST = "float keep, int block, int seed, Tensor step"
for name, reference, fake in (
    (CROP, masked_crop_reference, _fake_crop),
    (WINDOW, masked_window_reference, _fake_window),
):
    if extension.load() is None or name not in torch._C._dispatch_get_all_op_names():
        torch.library.define(name, f"(Tensor y, {_VIEWS[name]}, {_REST}) -> (Tensor, Tensor)")
    torch.library.impl(name, "default", reference)  # for devices that have no kernel
    torch.library.register_fake(name, fake)
