"""A part of a picture, or a smaller copy of it, with all that was read beside it: for whoever cannot wait."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from dip_fast.errors import Argument, UsageError
from dip_fast.pictures import Picture
from dip_fast.pictures.formats import MIN_SIDE

CENTRE = 256  # side of the square that "center" stands for
_REGION = re.compile(r"(\d{1,7}),(\d{1,7}),(\d{1,7}),(\d{1,7})")


@dataclass(frozen=True)
class Part:
    """What is taken of a picture before it is restored.

    Attributes
    ----------
    region : str, optional
        ``"left,top,width,height"`` in pixels, or ``"center"``.
    max_size : int, optional
        The longer side at most: a larger picture is reduced.
    """

    region: str | None = None
    max_size: int | None = None

    def check(self) -> None:
        """Refuse what is a part of no picture.

        Raises
        ------
        UsageError
        """
        if self.region not in (None, "center"):
            self._numbers()
        if self.max_size is not None and self.max_size < MIN_SIDE:
            raise UsageError("{} must be at least {}", Argument("max_size", self.max_size), MIN_SIDE)

    def facts(self) -> dict[str, Any]:
        """Return what the record of a run says of it."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of the part of a picture of this height and width.

        Raises
        ------
        UsageError
            If there is no such part.
        """
        rows, columns = self._box(height, width)
        return self._reduced(rows.stop - rows.start, columns.stop - columns.start)

    def of(self, picture: Picture) -> Picture:
        """Return the part of a picture as a picture of its own.

        Raises
        ------
        UsageError
            As `size`.
        """
        if self == Part():
            return picture
        rows, columns = self._box(*picture.size)
        cropped = picture.cropped(rows, columns)
        height, width = self._reduced(*cropped.size)
        if cropped.size == (height, width):
            return cropped
        geometry, alpha = cropped.extras.geometry, picture.extras.alpha
        if geometry is not None:
            geometry = geometry.scaled(width / cropped.size[1], height / cropped.size[0])
        return replace(
            cropped,
            kind=replace(picture.kind, height=height, width=width),
            image=self.array(picture.image, picture.size),
            extras=replace(
                cropped.extras,
                alpha=None if alpha is None else self.array(alpha, picture.size),
                geometry=geometry,
                aside=None,  # what is reduced has no samples as they were
            ),
            missing=None if picture.missing is None else ~self.array(~picture.missing, picture.size),
        )

    def array(self, array: np.ndarray, size: tuple[int, int], by: int = 1) -> np.ndarray:
        """Return the part of an array that lies over a picture of this size; any other array as it is.

        What is reduced is the mean of its pixels; a mask is True where all of them are.  An array may be so many times
        larger than the picture, as a result is.
        """
        if self == Part() or array.shape[:2] != (by * size[0], by * size[1]):
            return array
        rows, columns = (slice(by * side.start, by * side.stop) for side in self._box(*size))
        part = np.ascontiguousarray(array[rows, columns])
        height, width = (by * side for side in self.size(*size))
        if part.shape[:2] == (height, width):
            return part
        values = part.astype(np.float32 if array.dtype == bool else array.dtype)
        reduced = cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA).reshape(
            height, width, *part.shape[2:]
        )
        return reduced >= 1 - 1e-5 if array.dtype == bool else reduced

    def _box(self, height: int, width: int) -> tuple[slice, slice]:
        """Find the rows and the columns of the region."""
        if self.region is None:
            return slice(0, height), slice(0, width)
        if self.region == "center":
            high, wide = min(CENTRE, height), min(CENTRE, width)
            left, top = (width - wide) // 2, (height - high) // 2
        else:
            left, top, wide, high = self._numbers()
        if left + wide > width or top + high > height:
            raise UsageError(
                "{} reaches over the edge of the picture of {}x{} pixels; name a smaller one",
                *(Argument("preview", self.region), width, height),
            )
        return slice(top, top + high), slice(left, left + wide)

    def _numbers(self) -> tuple[int, int, int, int]:
        """Read left, top, width and height of the region."""
        numbers = _REGION.fullmatch((self.region or "").replace(" ", ""))
        if numbers is None:
            raise UsageError(
                "{}: name left, top, width and height in pixels, as 100,50,256,256, or center",
                Argument("preview", self.region),
            )
        left, top, wide, high = (int(number) for number in numbers.groups())
        if min(wide, high) < MIN_SIDE:
            raise UsageError("{} must have at least {}x{} pixels", Argument("preview", self.region), MIN_SIDE, MIN_SIDE)
        return left, top, wide, high

    def _reduced(self, height: int, width: int) -> tuple[int, int]:
        longest = max(height, width)
        if self.max_size is None or longest <= self.max_size:
            return height, width
        sides = tuple(max(1, round(side * self.max_size / longest)) for side in (height, width))
        if min(sides) < MIN_SIDE:
            raise UsageError(
                "{} leaves {}x{} pixels, and a picture must have at least {}x{}; give more",
                *(Argument("max_size", self.max_size), sides[1], sides[0], MIN_SIDE, MIN_SIDE),
            )
        return sides[0], sides[1]
