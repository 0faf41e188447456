"""A picture in tiles that overlap: where they lie, and how what became of each is blended.  Needs numpy alone.

Along one axis tile i reaches over tile i + 1 by n samples, of which the j-th is

    a + w_j (b - a),    w_j = sin^2(pi/2 (j + 1/2) / n)

of the sample a of the former and the sample b of the latter: the weights of the two, cos^2 and sin^2, sum to one, that
of a tile's outermost samples is nearly nothing, and what is the same in both tiles stays as it is, bit for bit.  Tiles
are blended along the rows, and then the strips along the columns: in one order, so that the bits repeat.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from dip_fast import large

OVERLAP = 128  # samples, or a quarter of a tile where that is less

Span = tuple[int, int]  # first sample, and the one behind the last


class Box(NamedTuple):
    """A rectangle of a picture.

    Attributes
    ----------
    top, left, height, width : int
        In pixels.
    """

    top: int
    left: int
    height: int
    width: int

    @property
    def place(self) -> tuple[slice, slice]:
        """The rows and the columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def scaled(self, by: int) -> Box:
        """Return the same rectangle of a picture that is so many times larger."""
        return Box(*(by * number for number in self))


class Grid(NamedTuple):
    """What the sides of tiles are multiples of.

    Attributes
    ----------
    multiple : int
        Of both sides.
    rows_from_end, columns_from_end : bool
        Whether the multiples are counted from the last row, or column, of the picture.
    """

    multiple: int = 1
    rows_from_end: bool = False
    columns_from_end: bool = False


class Tiling(NamedTuple):
    """A picture's tiles: each row of them has the same columns.

    Attributes
    ----------
    rows, columns : tuple of tuple of int
        First pixel of each tile, and the one behind its last.
    """

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture."""
        return self.rows[-1][1], self.columns[-1][1]

    @property
    def boxes(self) -> list[Box]:
        """The tiles, row by row."""
        return [Box(a, c, b - a, d - c) for a, b in self.rows for c, d in self.columns]

    def scaled(self, by: int) -> Tiling:
        """Return the tiles of a result that is so many times larger."""
        rows, columns = (tuple((by * a, by * b) for a, b in spans) for spans in (self.rows, self.columns))
        return Tiling(rows, columns)

    def blend(self, parts: Iterable[np.ndarray]) -> np.ndarray:
        """Blend what became of the tiles.

        Parameters
        ----------
        parts : iterable of ndarray
            float32 ``(H, W, C)``, in the order of `boxes`; each is read before the next one is asked for.

        Returns
        -------
        ndarray
            float32, of the whole.
        """
        each, whole, done = iter(parts), None, 0
        for top, bottom in self.rows:
            strip = _joined((next(each) for _ in self.columns), self.columns, axis=1)
            if whole is None:
                whole = large.empty((*self.size, strip.shape[2]))
            _add(whole, strip, (top, bottom), done, axis=0)
            large.rest()
            done = bottom
        assert whole is not None, "there is a tile"
        return whole


def lay(size: tuple[int, int], side: int, grid: Grid = Grid()) -> Tiling:  # noqa: B008  (it cannot be changed)
    """Lay tiles over a picture: as few as cover it, and about as large as each other.

    Parameters
    ----------
    size : tuple of int
        Height and width of the picture.
    side : int
        Of a tile, at most.
    grid : Grid
        What the tiles begin and end at, but for the edges of the picture.

    Raises
    ------
    ValueError
        If tiles of this side could not reach over each other, of which the grid's multiple is the reason.
    """
    rows, columns = (
        tuple(_spans(length, side, grid.multiple, from_end=from_end))
        for length, from_end in zip(size, grid[1:], strict=True)
    )
    return Tiling(rows, columns)


def _spans(length: int, side: int, multiple: int, *, from_end: bool) -> Iterator[Span]:
    """Divide one side."""
    overlap = multiple * max(1, min(OVERLAP, side // 4) // multiple)
    if side < 3 * overlap:
        raise ValueError(f"tiles that begin at multiples of {multiple} must have {3 * overlap} pixels a side at least")
    if length <= side:
        yield 0, length
        return
    inner = length - overlap
    count = -(-inner // (side // multiple * multiple - overlap))
    starts = [multiple * -(-n * inner // (count * multiple)) for n in range(count)]
    spans = list(zip(starts, [*(start + overlap for start in starts[1:]), length], strict=True))
    yield from ((length - b, length - a) for a, b in reversed(spans)) if from_end else spans


def weights(count: int) -> np.ndarray:
    """Compute what the latter of two tiles counts for in each of so many samples of their overlap, float32."""
    return np.square(np.sin((np.arange(count) + 0.5) * (np.pi / 2 / count))).astype(np.float32)


def _joined(parts: Iterable[np.ndarray], spans: tuple[Span, ...], axis: int) -> np.ndarray:
    """Blend parts along one axis."""
    whole, done = None, 0
    for part, span in zip(parts, spans, strict=True):
        if whole is None:
            shape = list(part.shape)
            shape[axis] = spans[-1][1]
            whole = np.empty(shape, np.float32)
        _add(whole, part, span, done, axis)
        done = span[1]
    assert whole is not None, "there is a part"
    return whole


def _add(whole: np.ndarray, part: np.ndarray, span: Span, done: int, axis: int) -> None:
    """Blend a part into what is there, which ends at `done`."""
    whole, part = np.moveaxis(whole, axis, 0), np.moveaxis(part, axis, 0)
    first, last = span
    if shared := max(done - first, 0):
        before = whole[first:done]
        before += weights(shared)[:, None, None] * (part[:shared] - before)
    whole[first + shared : last] = part[shared:]
