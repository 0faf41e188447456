"""The size and the place of a picture's pixels in the world, which go along into the result.  Needs numpy alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

UNITS = ("none", "inch", "cm")
_PER_METRE = {"inch": 1 / 0.0254, "cm": 100.0}
_LONGEST = 2**24  # characters of a text; OME-XML of a large file has some millions


@dataclass(frozen=True)
class Geometry:
    """The size and the place of the pixels of a picture.

    Attributes
    ----------
    resolution : tuple of float, optional
        Pixels a unit, across and down.
    unit : {"none", "inch", "cm"}
        None is for a ratio alone, or a unit that the text names.
    text : str
        The description of ImageJ or the OME-XML of a TIFF file, reduced to one page, or the header of a FITS file, as
        it was read: they hold the size of a pixel in their own ways.
    tags : tuple of tuple
        The tags of GeoTIFF, each as code, type and values.
    scale : tuple of float
        How many times more pixels, across and down, the picture has than the one that all of these describe.
    origin : tuple of float
        Where its first pixel lies in that one, across and down.
    """

    resolution: tuple[float, float] | None = None
    unit: str = "none"
    text: str = ""
    tags: tuple[tuple[int, str, tuple[float | str, ...]], ...] = ()
    scale: tuple[float, float] = (1.0, 1.0)
    origin: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def with_resolution(cls, resolution: Sequence[float] | None, unit: str) -> Geometry | None:
        """Return the geometry of a file that names pixels a unit; None where it names none, or nonsense."""
        try:
            across, down = (float(number) for number in resolution or ())
        except (TypeError, ValueError, ZeroDivisionError):
            return None
        is_sound = all(math.isfinite(number) and number > 0 for number in (across, down))
        says_nothing = unit == "none" and across == down
        return cls((across, down), unit) if is_sound and not says_nothing else None

    def turned(self, orientation: int) -> Geometry:
        """Return the geometry of the stored picture once it is turned upright, as EXIF's orientation asks."""
        if orientation not in range(2, 9):
            return self
        # A place in the world is that of the stored rows and columns, and does not hold for others.
        upright = replace(self, tags=())
        if orientation < 5 or self.resolution is None:
            return upright
        return replace(upright, resolution=self.resolution[::-1])

    def scaled(self, across: float, down: float) -> Geometry:
        """Return the geometry of a picture of so many times the pixels, across and down."""
        return replace(self, scale=(self.scale[0] * across, self.scale[1] * down))

    def cropped(self, left: float, top: float) -> Geometry:
        """Return the geometry of a part, whose first pixel lies at these places."""
        (x, y), (across, down) = self.origin, self.scale
        return replace(self, origin=(x + left / across, y + top / down))

    @property
    def actual(self) -> tuple[float, float] | None:
        """Pixels a unit of the picture itself, across and down."""
        if self.resolution is None:
            return None
        return self.resolution[0] * self.scale[0], self.resolution[1] * self.scale[1]

    def per_metre(self) -> tuple[float, float] | None:
        """Pixels a metre, across and down; None where the unit is not known."""
        if self.actual is None or self.unit not in _PER_METRE:
            return None
        return self.actual[0] * _PER_METRE[self.unit], self.actual[1] * _PER_METRE[self.unit]

    def is_oblong(self) -> bool:
        """Whether pixels are not square."""
        return self.actual is not None and not math.isclose(*self.actual, rel_tol=1e-6)

    def facts(self) -> dict[str, Any]:
        """Return the geometry as JSON holds it in a model file."""
        return asdict(self)

    @classmethod
    def of(cls, facts: Any) -> Geometry:
        """Return the geometry that JSON from anywhere describes.

        Raises
        ------
        ValueError, TypeError, KeyError
            If it is nothing that `facts` can return.
        """
        tags = tuple((int(code), str(kind), tuple(values)) for code, kind, values in facts["tags"])
        resolution = facts["resolution"]
        found = cls(
            None if resolution is None else _pair(resolution),
            facts["unit"],
            facts["text"],
            tags,
            _pair(facts["scale"]),
            _pair(facts["origin"]),
        )
        lengths = {"d": float, "H": int, "s": str}
        fits = (
            found.unit in UNITS
            and isinstance(found.text, str)
            and len(found.text) <= _LONGEST
            and all(number > 0 for number in (*found.scale, *(found.resolution or ())))
            and all(
                0 < code < 2**16 and kind in lengths and all(type(value) is lengths[kind] for value in values)
                for code, kind, values in tags
            )
        )
        if not fits:
            raise ValueError("the geometry of the picture is damaged")
        return found


def _pair(numbers: Any) -> tuple[float, float]:
    across, down = (float(number) for number in numbers)
    if not math.isfinite(across) or not math.isfinite(down):
        raise ValueError("the geometry of the picture is damaged")
    return across, down
