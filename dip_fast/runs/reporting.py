"""What a run leaves to look at: snapshots, and the history as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

import numpy as np

from dip_fast.pictures import raster


def shown(image: np.ndarray) -> np.ndarray:
    """Return an image that a screen can show: the mean of the channels where they are neither gray nor RGB."""
    return image if image.shape[2] in (1, 3) else image.mean(axis=2, keepdims=True)


def preview(image: np.ndarray) -> bytes:
    """Encode an image to look at, ``(H, W, C)`` in [0, 1] or uint8, as an 8-bit PNG file; odd channels are averaged."""
    image = shown(image)
    samples = image if image.dtype == np.uint8 else np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return raster.encode_png(samples)


def history_csv(history: Mapping[str, np.ndarray]) -> bytes:
    """Write the history as CSV, a row a step; a value that is not there is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(history)
    for row in zip(*history.values(), strict=True):
        step, *values = row
        writer.writerow([int(step), *("" if np.isnan(value) else repr(float(value)) for value in values)])
    return text.getvalue().encode()
