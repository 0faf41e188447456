"""The size and the place of pixels as TIFF files hold them: in tags, in the texts of ImageJ and OME, as GeoTIFF."""

from __future__ import annotations

from typing import Any

import numpy as np
import tifffile

from dip_fast.pictures import tiff_texts
from dip_fast.pictures.geometry import Geometry

DESCRIPTION = 270
_RESOLUTION, _UNIT = (282, 283), 296
_UNITS = {1: "none", 2: "inch", 3: "cm"}
_PIXEL_SCALE, _TIE_POINTS, _TRANSFORMATION = 33550, 33922, 34264
# With GDAL's text of the value that stands for no data.
_GEO = {_PIXEL_SCALE: "d", _TIE_POINTS: "d", _TRANSFORMATION: "d", 34735: "H", 34736: "d", 34737: "s", 42113: "s"}


def of(page: tifffile.TiffPage, first: tifffile.TiffPage) -> Geometry | None:
    """Find the geometry of a page; None where it has none.

    Parameters
    ----------
    page : TiffPage
    first : TiffPage
        That of the file, which alone has the text of ImageJ or OME.
    """
    tags = page.tags
    text = tiff_texts.of_page(first.description, page.index) if first.is_imagej or first.is_ome else ""
    measured = first.tags if text and _resolution(tags) is None else tags
    resolution, unit = _resolution(measured), _UNITS.get(measured.valueof(_UNIT, 2), "none")
    found = Geometry.with_resolution(resolution, unit)
    if found is None and resolution is not None and text:  # square pixels, in the unit that the text names
        found = Geometry(resolution)
    geo = tuple((code, kind, _values(tags.valueof(code), kind)) for code, kind in _GEO.items() if code in tags)
    if found is None and not text and not geo:
        return None
    base = found or Geometry()
    return Geometry(base.resolution, base.unit, text, geo)


def _resolution(tags: tifffile.TiffTags) -> tuple[float, float] | None:
    """Read the two fractions; None where one is missing or nonsense."""
    try:
        across, down = (tags.valueof(code)[0] / tags.valueof(code)[1] for code in _RESOLUTION)
    except (TypeError, ZeroDivisionError):
        return None
    return (across, down) if across > 0 and down > 0 else None


def _values(value: Any, kind: str) -> tuple[float | str, ...]:
    if kind == "s":
        return (str(value),)
    convert = float if kind == "d" else int
    return tuple(convert(number) for number in np.atleast_1d(value))


def options(geometry: Geometry | None, samples: np.ndarray) -> dict[str, Any]:
    """Return the arguments of `tifffile.imwrite` that put a geometry into the file of a result.

    Parameters
    ----------
    geometry : Geometry, optional
    samples : ndarray
        ``(H, W)`` or ``(H, W, C)``, as they are written.
    """
    found: dict[str, Any] = {}
    if geometry is None:
        return found
    if geometry.actual is not None:
        found["resolution"] = geometry.actual
        found["resolutionunit"] = next(code for code, unit in _UNITS.items() if unit == geometry.unit)
    if geometry.text.startswith("ImageJ="):
        found["description"] = geometry.text.encode("ascii", "backslashreplace")
    elif (text := tiff_texts.of_result(geometry.text, samples, geometry.scale)) is not None:
        found["description"] = text.encode()
    found["extratags"] = [_tag(code, kind, _moved(code, values, geometry)) for code, kind, values in geometry.tags]
    return found


def _tag(code: int, kind: str, values: tuple[float | str, ...]) -> tuple[int, str, int, Any, bool]:
    if kind == "s":
        return code, "s", 0, str(values[0]), True
    return code, kind, len(values), values if len(values) > 1 else values[0], True


def _moved(code: int, values: tuple[Any, ...], geometry: Geometry) -> tuple[Any, ...]:
    """Adapt a tag of GeoTIFF to a picture that has more pixels, or is a part."""
    (across, down), (left, top) = geometry.scale, geometry.origin
    if code == _PIXEL_SCALE:
        return (values[0] / across, values[1] / down, *values[2:])
    if code == _TIE_POINTS:  # pixel x, y, z and the place of that in the world, for each point
        points = np.array(values).reshape(-1, 6)
        points[:, :2] = (points[:, :2] - (left, top)) * (across, down)
        return tuple(points.ravel().tolist())
    if code == _TRANSFORMATION:
        matrix = np.array(values).reshape(4, 4)
        step = np.diag([1 / across, 1 / down, 1.0, 1.0])
        step[:2, 3] = left, top
        return tuple((matrix @ step).ravel().tolist())
    return values
