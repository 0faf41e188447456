"""JPEG: what is known of a picture are the boxes that its quantised DCT coefficients stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dip_fast.fitting.degradations import Degradation
from dip_fast.fitting.reductions import total

BLOCK = 8
# JFIF: Y, Cb, Cr of R, G, B; an offset of Cb and Cr moves what is compared on both sides, so there is none.
YCBCR = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))


# How the total variation weighs against the squared distance to the boxes, both a mean over samples in [0, 1].  144x144
# of House at half size, quality 10, `quick` with 400 steps, one seed, 27.43 dB as decoded: 26.9 without (500 steps),
# 28.1 with 1e-5, 28.6 with 1e-4, 28.1 with 2e-4 and 4e-4, 27.6 with 1e-3; the squared distance to the decoded picture
# in place of both: 28.0, and falling.
SMOOTHNESS = 1e-4


class Component(NamedTuple):
    """The boxes of a component, such as the brightness.

    Attributes
    ----------
    low, high : Tensor
        Ends of the boxes, ``(rows, 8, columns, 8)``, blocks of coefficients of an orthonormal DCT of samples in [0, 1].
    reduction : tuple of int
        How many rows and columns of the picture share a sample of it.
    """

    low: Tensor
    high: Tensor
    reduction: tuple[int, int]


def dct(plane: Tensor) -> Tensor:
    """Transform each block of 8x8 samples: ``(8 rows, 8 columns)`` to ``(rows, 8, columns, 8)``, an orthonormal DCT.

    A side that is no multiple of 8 is continued by its last row or column, as encoders do.
    """
    matrix = _matrix(plane)
    plane = _continued(plane, BLOCK, BLOCK)
    rows, columns = plane.shape[0] // BLOCK, plane.shape[1] // BLOCK
    blocks = plane.reshape(rows, BLOCK, columns, BLOCK)
    return torch.einsum("ua,racb,vb->rucv", matrix, blocks, matrix)


class Quantised(Degradation):
    """JPEG compression: each coefficient of the picture lies in the box that its code stands for.

    The data term is the squared distance from the coefficients of x to these boxes, ``|| D x - P(D x) ||^2`` with the
    projection P onto the boxes, and a little of the total variation of x.  The distance is 0 for all pictures that an
    encoder would have turned into this file, the original among them.  Boxes of strong compression are wide, and a
    network alone fills them with too much contrast: the variation prefers the quiet ones.

    Parameters
    ----------
    target : Tensor
        The decoded picture, ``(1, C, H, W)`` with C 1 or 3, range [0, 1].
    components : sequence of Component
        One for each channel: brightness, and the two of the colour.
    orientation : int
        EXIF's: how the file's picture was turned to be upright.
    smoothness : float
        Weight of the total variation, a mean over the pixels, beside the squared distance, a mean over coefficients.
    """

    has_patches = True

    def __init__(
        self,
        target: Tensor,
        components: Sequence[Component],
        orientation: int = 1,
        smoothness: float = SMOOTHNESS,
    ) -> None:
        super().__init__(target)
        self.smoothness = smoothness
        if len(components) != self.channels:
            raise ValueError(f"components must be {self.channels}, one for each channel, got {len(components)}")
        self.orientation = orientation
        self.colours = torch.tensor(YCBCR)
        self.reductions = [component.reduction for component in components]
        self.codes = sum(component.low.numel() for component in components)
        for i, component in enumerate(components):  # as attributes of their own they move to the device
            setattr(self, f"low_{i}", component.low)
            setattr(self, f"high_{i}", component.high)

    def coefficients(self, x: Tensor) -> list[Tensor]:
        """Transform a picture, ``(1, C, H, W)``, as the file's encoder did, up to rounding."""
        planes = turned_back(x[0], self.orientation)
        if self.channels == 3:
            planes = torch.einsum("dc,chw->dhw", self.colours, planes)
        return [dct(reduced(plane, *by)) for plane, by in zip(planes, self.reductions, strict=True)]

    def data_term(self, x: Tensor) -> Tensor:
        """Add the mean squared distance to the boxes and the weighted total variation, a scalar."""
        return self.distance(x) / self.codes + self.smoothness * total_variation(x)

    def distance(self, x: Tensor) -> Tensor:
        """Sum the squared distances of the coefficients to their boxes, a scalar."""
        distances = []
        for i, found in enumerate(self.coefficients(x)):
            nearest = torch.minimum(torch.maximum(found, getattr(self, f"low_{i}")), getattr(self, f"high_{i}"))
            distances.append(total((found - nearest).square()))
        return torch.stack(distances).sum()


def total_variation(x: Tensor) -> Tensor:
    """Average the lengths of the gradients, each over all channels at once, so that these have their edges together."""
    inner = x[..., :-1, :-1]
    squares = (x[..., 1:, :-1] - inner).square() + (x[..., :-1, 1:] - inner).square()
    lengths = (squares.sum(1) + 1e-6).sqrt()  # with a derivative where nothing changes
    return total(lengths) / lengths.numel()


def reduced(plane: Tensor, rows: int, columns: int) -> Tensor:
    """Average rectangles of samples, as encoders reduce colour; the last row or column is repeated."""
    if (rows, columns) == (1, 1):
        return plane
    plane = _continued(plane, rows, columns)
    return plane.reshape(plane.shape[0] // rows, rows, plane.shape[1] // columns, columns).mean((1, 3))


def turned_back(x: Tensor, orientation: int) -> Tensor:
    """Turn upright planes, ``(..., H, W)``, to how they are stored in a file of an EXIF orientation."""
    if orientation in (5, 6, 7, 8):
        x = x.transpose(-1, -2)
    flipped = {2: (-1,), 3: (-1, -2), 4: (-2,), 6: (-2,), 7: (-1, -2), 8: (-1,)}.get(orientation, ())
    return x.flip(flipped) if flipped else x


def _continued(plane: Tensor, rows: int, columns: int) -> Tensor:
    """Repeat the last row and the last column up to multiples of some numbers.

    Not by `torch.nn.functional.pad`, whose gradients a GPU adds up in any order.
    """
    if below := -plane.shape[0] % rows:
        plane = torch.cat([plane, plane[-1:].expand(below, -1)])
    if beside := -plane.shape[1] % columns:
        plane = torch.cat([plane, plane[:, -1:].expand(-1, beside)], dim=1)
    return plane


def _matrix(like: Tensor) -> Tensor:
    """Make the orthonormal matrix of the DCT of 8 samples."""
    place = torch.arange(BLOCK, device=like.device, dtype=like.dtype)
    matrix = torch.cos((2 * place[None] + 1) * place[:, None] * (torch.pi / (2 * BLOCK))) / 2
    matrix[0] = 8**-0.5
    return matrix
