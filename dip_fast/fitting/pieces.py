"""Large pictures in pieces, for what would take several times their memory at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from dip_fast import large

# Pixels of a picture that is still drawn at once: a step on all of it takes a second and a gigabyte a megapixel.
LARGEST_WHOLE = 2**20
SIDE = 1024  # of a piece without what is around it


class Piece(NamedTuple):
    """A piece of a picture.

    Attributes
    ----------
    seen : tuple
        Index of the piece with what is around it, in the picture, ``(..., rows, columns)``.
    inner : tuple
        Index of the piece itself in that.
    place : tuple
        Index of the piece itself in the picture.
    """

    seen: tuple
    inner: tuple
    place: tuple


def pieces(size: tuple[int, int], around: int) -> Iterator[Piece]:
    """Divide a picture of this height and width; a picture that is drawn at once is one piece.

    Parameters
    ----------
    size : tuple of int
    around : int
        Pixels around a piece that it depends on.
    """
    side = max(size) if size[0] * size[1] <= LARGEST_WHOLE else SIDE
    for top, left in itertools.product(range(0, size[0], side), range(0, size[1], side)):
        ends = min(top + side, size[0]), min(left + side, size[1])
        first = max(top - around, 0), max(left - around, 0)
        last = min(ends[0] + around, size[0]), min(ends[1] + around, size[1])
        yield Piece(
            (..., slice(first[0], last[0]), slice(first[1], last[1])),
            (..., slice(top - first[0], ends[0] - first[0]), slice(left - first[1], ends[1] - first[1])),
            (..., slice(top, ends[0]), slice(left, ends[1])),
        )
        large.rest()
