"""Many images on one sheet, each with its label: first what is compared, then crops of it, then the iterates."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from dip_fast.runs.views import Views, eight_bits, reduced

_MARGIN = 8  # pixels around each tile and label
_LABEL = 24  # height of a label's line
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.5


def sheet_of(views: Views) -> np.ndarray:
    """Lay out what there is to look at in a run.

    The first row holds the input, the result, their difference, the classical method's picture and the reference; the
    next ones the same windows of each, pixel for pixel, below; the rest is iterates.
    """
    tiles = views.compared()
    columns = len(tiles)
    for window in views.windows:
        tiles += [(window.name, part) for _, part in views.compared(window.of)]
    tiles += [(f"step {step}", image) for step, image in views.iterates.items()]
    return contact_sheet([image for _, image in tiles], [label for label, _ in tiles], columns=columns)


def contact_sheet(
    images: Sequence[np.ndarray], labels: Sequence[str], *, columns: int = 4, tile: int = 256
) -> np.ndarray:
    """Lay images out in rows, each with its label below.

    Parameters
    ----------
    images : sequence of numpy.ndarray
        Images ``(H, W, C)`` with C 1 or 3, floats in [0, 1] or uint8; sizes may differ.
    labels : sequence of str
        One for each image; a long one is set smaller.
    columns : int
        Images in a row, at most.
    tile : int
        Side in pixels of the square that each image is fitted into: larger images are averaged down, smaller ones
        enlarged by the largest whole factor that fits, so that their pixels stay visible as they are.

    Returns
    -------
    numpy.ndarray
        uint8, ``(H, W, 3)``, RGB on white.

    Raises
    ------
    ValueError
        Where there are no images, or the labels are not as many.
    """
    if not images or len(images) != len(labels):
        raise ValueError(f"a sheet needs one label for each image, got {len(images)} images and {len(labels)} labels")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height, width = tile + _LABEL + _MARGIN, tile + _MARGIN
    sheet = np.full((rows * height + _MARGIN, columns * width + _MARGIN, 3), 255, np.uint8)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        top, left = _MARGIN + index // columns * height, _MARGIN + index % columns * width
        small = _fitted(image, tile)
        y, x = top + (tile - small.shape[0]) // 2, left + (tile - small.shape[1]) // 2
        sheet[y : y + small.shape[0], x : x + small.shape[1]] = small
        (text_width, _), _ = cv2.getTextSize(label, _FONT, _FONT_SCALE, 1)
        scale = _FONT_SCALE * min(1.0, tile / max(1, text_width))
        cv2.putText(sheet, label, (left, top + tile + _LABEL * 3 // 4), _FONT, scale, (0, 0, 0), 1, cv2.LINE_AA)
    return sheet


def _fitted(image: np.ndarray, tile: int) -> np.ndarray:
    """Scale to fit the tile; uint8 (h, w, 3)."""
    scale = tile / max(image.shape[:2])
    if scale >= 1:
        small = eight_bits(image).repeat(int(scale), axis=0).repeat(int(scale), axis=1)
    else:
        small = reduced(image, tile)
    return np.broadcast_to(small, (*small.shape[:2], 3))
