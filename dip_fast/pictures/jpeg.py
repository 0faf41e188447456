"""How a JPEG file was coded: for each coefficient, the box that its code stands for.

Decoders give samples and no codes.  But the decoded samples are those of the codes up to rounding, so that their DCT,
divided by the table and rounded, gives the codes back.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from dip_fast.errors import UsageError
from dip_fast.pictures.formats import MAX_PIXELS, ORIENTATION_TAG
from dip_fast.pictures.tiling import Box, Grid

BLOCK = 8
DCT = np.cos((2 * np.arange(BLOCK)[None] + 1) * np.arange(BLOCK)[:, None] * np.pi / (2 * BLOCK)) / 2
DCT[0] = BLOCK**-0.5
ROUNDS = 12  # each leaves at most half of what is missing from colour that a decoder has smoothed
MARGIN = 64  # pixels: more than ROUNDS samples of reduced colour, and blocks of it
# EXIF's orientations: rows and columns are exchanged; the first row, or column, of the upright picture was the last.
TRANSPOSED, FROM_LAST_ROW, FROM_LAST_COLUMN = (5, 6, 7, 8), (3, 4, 7, 8), (2, 3, 6, 7)
TRANSFORMED = 1  # Adobe's number for brightness and colour difference; 0 is for R, G and B


@dataclass(frozen=True, eq=False)
class Boxes:
    """The boxes of one component.

    Attributes
    ----------
    low, high : ndarray
        float32, ``(rows, 8, columns, 8)``: ends of the boxes of the coefficients of blocks of 8x8 samples in [0, 1], by
        an orthonormal DCT.
    reduction : tuple of int
        How many rows and columns of the picture share a sample.
    """

    low: np.ndarray
    high: np.ndarray
    reduction: tuple[int, int]


@dataclass(frozen=True)
class Coding:
    """What a JPEG file knows of its picture.

    Attributes
    ----------
    components : tuple of Boxes
        Of gray; or of brightness, and of the differences of blue and of red from it, without an offset.
    orientation : int
        EXIF's: how the stored picture is turned to be upright.
    """

    components: tuple[Boxes, ...]
    orientation: int


def read_coding(data: bytes, box: Box | None = None, whole: tuple[int, int] | None = None) -> Coding:
    """Find the codes of a JPEG file that was read before.

    Parameters
    ----------
    data : bytes
    box : Box, optional
        What is wanted of the upright picture, which lies on its `grid`; all of it by default.
    whole : tuple of int, optional
        With a box, height and width of the upright picture.

    Raises
    ------
    UsageError
        If it is none, or holds R, G and B as they are, which few programs write.
    """
    file, layers, orientation = _opened(data)
    tables = {name: np.array(table, np.float64).reshape(BLOCK, BLOCK) for name, table in file.quantization.items()}
    if len(layers) == 3:
        file.draft("YCbCr", file.size)
    planes = np.asarray(file).reshape(file.height, file.width, -1)
    wanted = [slice(0, file.height), slice(0, file.width)]
    if box is not None and whole is not None:
        wanted = _stored(box, whole, orientation)
    # With what a decoder's smoothing of reduced colour has brought into the part.
    seen = [
        slice(max(side.start - MARGIN, 0), min(side.stop + MARGIN, length))
        for side, length in zip(wanted, planes.shape[:2], strict=True)
    ]
    planes = planes[tuple(seen)]
    across, down = (max(entry[i] for entry in layers) for i in (1, 2))
    components = []
    for i, (_, own_across, own_down, table) in enumerate(layers):
        by = down // own_down, across // own_across
        shift = 128.0 if len(layers) == 1 or i == 0 else 0.0  # brightness from 0, differences around it
        found = _boxes(planes[..., i].astype(np.float64) - 128, tables[table], by, shift)
        rows, columns = (
            slice((side.start - around.start) // (BLOCK * factor), -(-(side.stop - around.start) // (BLOCK * factor)))
            for side, around, factor in zip(wanted, seen, by, strict=True)
        )
        components.append(Boxes(found.low[rows, :, columns], found.high[rows, :, columns], by))
    return Coding(tuple(components), orientation)


def grid(data: bytes) -> Grid:
    """Find at which rows and columns of the upright picture blocks begin, those of reduced colour among them.

    Raises
    ------
    UsageError
        As `read_coding`.
    """
    _, layers, orientation = _opened(data)
    multiple = BLOCK * max(max(entry[i] for entry in layers) // min(entry[i] for entry in layers) for i in (1, 2))
    return Grid(multiple, orientation in FROM_LAST_ROW, orientation in FROM_LAST_COLUMN)


def _opened(data: bytes) -> tuple[Any, Any, int]:
    """Open a file: with id, samples across, samples down and table of its components, and its orientation."""
    try:
        file: Any = Image.open(io.BytesIO(data), formats=("JPEG",))
    except (OSError, Image.DecompressionBombError) as error:
        raise UsageError("it is no JPEG file, or has more than {} pixels; give an intact one", MAX_PIXELS) from error
    layers = file.layer
    plain = file.info.get("adobe_transform", TRANSFORMED) != TRANSFORMED or [entry[0] for entry in layers] == [*b"RGB"]
    if len(layers) not in (1, 3) or (len(layers) == 3 and plain):
        raise UsageError("its components are not brightness and colour; save it as an ordinary JPEG file")
    orientation = file.getexif().get(ORIENTATION_TAG, 1)
    return file, layers, orientation if orientation in range(1, 9) else 1


def _stored(box: Box, whole: tuple[int, int], orientation: int) -> list[slice]:
    """Find the rows and the columns of the stored picture that a part of the upright one comes from."""
    found = []
    for side, length, from_last in zip(box.place, whole, (FROM_LAST_ROW, FROM_LAST_COLUMN), strict=True):
        is_turned = orientation in from_last
        found.append(slice(length - side.stop, length - side.start) if is_turned else side)
    return found[::-1] if orientation in TRANSPOSED else found


def _boxes(plane: np.ndarray, table: np.ndarray, by: tuple[int, int], shift: float) -> Boxes:
    """Find the boxes of a component from its decoded samples, less 128, at the size of the picture."""
    unsure = (plane <= -128) | (plane >= 127)  # clipped: the codes say more than the samples
    unsure, samples = _reduced(unsure.astype(np.float64), *by) > 0, _native(plane, *by)
    height, width = samples.shape
    unsure, samples = _whole(unsure, BLOCK, BLOCK), _whole(samples, BLOCK, BLOCK)
    unsure[height:], unsure[:, width:] = True, True  # what an encoder put beyond the edges is a guess
    rows, columns = samples.shape[0] // BLOCK, samples.shape[1] // BLOCK
    blocks = samples.reshape(rows, BLOCK, columns, BLOCK)
    steps = table[None, :, None, :]
    codes = np.rint(np.einsum("ua,racb,vb->rucv", DCT, blocks, DCT, optimize=True) / steps)
    reach = np.where(unsure.reshape(blocks.shape).any((1, 3), keepdims=True), 1.0, 0.5)
    offset = np.zeros((1, BLOCK, 1, BLOCK))
    offset[0, 0, 0, 0] = BLOCK * shift
    low, high = ((codes + sign * reach) * steps + offset for sign in (-1, 1))
    return Boxes((low / 255).astype(np.float32), (high / 255).astype(np.float32), by)


def _native(plane: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Undo a decoder's enlargement of a component.

    Where 2 samples share one, libjpeg gives them 3/4 of the nearest and 1/4 of the next: their mean is the component
    smoothed by (1, 6, 1) / 8, which an iteration undoes.  Other factors are enlarged by repetition.
    """
    means = _reduced(plane, rows, columns)
    axes = [axis for axis, factor in enumerate((rows, columns)) if factor == 2]
    found = means
    for _ in range(ROUNDS if axes else 0):
        smoothed = found
        for axis in axes:
            wide = np.pad(smoothed, [(int(i == axis),) * 2 for i in (0, 1)], mode="edge")
            first, last = np.delete(wide, [-1, -2], axis), np.delete(wide, [0, 1], axis)
            smoothed = 0.75 * smoothed + 0.125 * (first + last)
        found = found + means - smoothed
    return found


def _reduced(plane: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Average rectangles of samples."""
    plane = _whole(plane, rows, columns)
    return plane.reshape(plane.shape[0] // rows, rows, plane.shape[1] // columns, columns).mean((1, 3))


def _whole(plane: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Repeat the last row and the last column up to multiples of some numbers."""
    return np.pad(plane, ((0, -plane.shape[0] % rows), (0, -plane.shape[1] % columns)), mode="edge")
