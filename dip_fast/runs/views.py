"""What there is to look at in a run: pictures of one size beside each other, and where in them to look closely."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from dip_fast import large
from dip_fast.pictures import raster
from dip_fast.pictures.files import read_regular
from dip_fast.runs.reporting import shown
from dip_fast.tasks import Baseline

WINDOW = 192  # pixels: side of what is shown pixel for pixel
BINS = 128  # of a histogram
MAX_GAIN = 16  # of a difference
MAX_ITERATES = 14  # snapshots that are shown, chosen evenly
ITERATE = 480  # pixels of their longer side
MAX_SNAPSHOT_PIXELS = 2**25  # that are read: a PNG file of 12 megapixels takes a quarter of a second
MAX_SNAPSHOT_BYTES = 2**30
FLAT = (0.05, 0.95)  # mean of a window whose grain shows: there is none in what is black or burnt out


@dataclass(frozen=True, eq=False)
class View:
    """One of the pictures that are compared.

    Attributes
    ----------
    name : str
        What it is, in words.
    image : ndarray
        Floats in [0, 1], ``(H, W, C)`` with C 1 or 3, of the result's size; of other channels it is the mean.
    """

    name: str
    image: np.ndarray


@dataclass(frozen=True)
class Window:
    """A square of the pictures that is worth a close look.

    Attributes
    ----------
    name : str
        Why.
    top, left, side : int
        Where, in pixels of the result.
    """

    name: str
    top: int
    left: int
    side: int

    def of(self, image: np.ndarray) -> np.ndarray:
        """Cut the window out of an image."""
        return image[self.top : self.top + self.side, self.left : self.left + self.side]


@dataclass(frozen=True, eq=False)
class Views:
    """All that there is to look at.

    Attributes
    ----------
    before, result : View
        The input, or what takes its place where it has another size, and the result.
    others : list of View
        The picture of the classical method and the reference, where there are any.
    gain : int
        How many times the difference is drawn.
    windows : list of Window
        The most changed, the most detailed and the flattest.
    histograms : ndarray
        Shares of the samples, ``(2, C, BINS)``: of the input and of the result.
    unknown : ndarray or None
        Where nothing of the picture is known, bool ``(H, W)``.
    iterates : dict of int to ndarray
        Snapshots by their steps, reduced, uint8.
    """

    before: View
    result: View
    others: list[View]
    gain: int
    windows: list[Window]
    histograms: np.ndarray
    unknown: np.ndarray | None
    iterates: dict[int, np.ndarray]

    @property
    def shown(self) -> list[View]:
        """The pictures but for the difference."""
        return [self.before, self.result, *self.others]

    def difference(self, before: np.ndarray, result: np.ndarray) -> np.ndarray:
        """Draw the difference of two images, or of the same part of both: gray where there is none."""
        return large.mapped(lambda a, b: np.clip(0.5 + self.gain * (_unit(b) - _unit(a)), 0, 1), before, result)

    def compared(self, part: Callable[[np.ndarray], np.ndarray] = np.asarray) -> list[tuple[str, np.ndarray]]:
        """List what is to stand beside each other, or the same part of each, with names: the difference comes third."""
        before, result, *others = ((view.name, part(view.image)) for view in self.shown)
        name = "difference" if self.gain == 1 else f"difference, {self.gain} times"
        return [before, result, (name, self.difference(before[1], result[1])), *others]


def collect(
    image: np.ndarray,
    result: np.ndarray,
    *,
    baseline: Baseline | None = None,
    reference: np.ndarray | None = None,
    known: np.ndarray | None = None,
    snapshots: Mapping[int, Path] | None = None,
) -> Views:
    """Collect what there is to look at.

    Parameters
    ----------
    image, result : ndarray
        The picture and what was made of it, floats ``(H, W, C)``; their sizes may differ.
    baseline : Baseline, optional
        What a classical method makes of the picture.
    reference : ndarray, optional
        The ground truth.
    known : ndarray, optional
        Which pixels hold anything of the picture, bool ``(H, W)``.
    snapshots : mapping of int to Path, optional
        Files of the snapshots by their steps.
    """
    image, result, size = shown(image), shown(result), result.shape[:2]
    others = [] if baseline is None else [View(baseline.name, shown(baseline.image))]
    if reference is not None:
        others.append(View("reference", shown(reference)))
    others = [view for view in others if view.image.shape[:2] == size]
    if image.shape[:2] == size:
        before = View("input", image)
    elif others and baseline is not None and others[0].name == baseline.name:
        before = others.pop(0)
    else:
        enlarged = cv2.resize(image, size[::-1], interpolation=cv2.INTER_NEAREST).reshape(*size, -1)
        before = View("input, pixels repeated", enlarged)
    return Views(
        before=before,
        result=View("result", result),
        others=others,
        gain=_gain(before.image, result),
        windows=_windows(before.image, result),
        histograms=np.stack([_histogram(picture, result.shape[2]) for picture in (image, result)]),
        unknown=None if known is None or known.shape != size else ~known,
        iterates=_iterates(snapshots or {}, size[0] * size[1]),
    )


def reduced(image: np.ndarray, side: int) -> np.ndarray:
    """Average an image down until its longer side is no longer than this, in pixels; uint8 ``(h, w, C)``."""
    large.rest()
    if (scale := side / max(image.shape[:2])) < 1:
        size, image = image.shape[:2], _coarse(image, int(max(image.shape[:2]) / (2 * side)))
        height, width = (max(1, round(length * scale)) for length in size)
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, -1)
    return eight_bits(image)


def _coarse(image: np.ndarray, by: int) -> np.ndarray:
    """Average the pixels of a large image by squares, but for a rest at the end; any other is returned as it is."""
    if image.nbytes < large.LEAST or by < 2:
        return image
    width, strips = image.shape[1] // by, []
    for rows in large.bands((image.shape[0] // by, by * image[0].size)):
        strip = image[by * rows.start : by * rows.stop, : by * width]
        strips.append(cv2.resize(strip, (width, len(strip) // by), interpolation=cv2.INTER_AREA))
    return np.concatenate(strips).reshape(-1, width, image.shape[2])


def eight_bits(image: np.ndarray) -> np.ndarray:
    """Round an image, floats in [0, 1], to uint8."""
    if image.dtype == np.uint8:
        return image
    image = np.ascontiguousarray(image, np.float32)
    # In one pass this scales, rounds and clips; NaN becomes black.
    return np.asarray(cv2.addWeighted(image, 255, image, 0, 0, dtype=cv2.CV_8U)).reshape(image.shape)


def _unit(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) / 255 if image.dtype == np.uint8 else image


def _windows(before: np.ndarray, result: np.ndarray) -> list[Window]:
    """Choose the windows; where two wishes meet in one place, it is shown once."""
    side = max(8, min(WINDOW // 2, min(result.shape[:2]) // 6))  # a sixth, so that they lie apart
    change, detail, brightness = (_of_four(cells) for cells in _survey(before, result, side))
    shows_grain = (brightness > FLAT[0]) & (brightness < FLAT[1])
    flatness = np.where(shows_grain, -detail, -np.inf) if shows_grain.any() else -detail
    names: dict[tuple[int, int], str] = {}
    for name, wish in (("most changed", change), ("most detailed", detail), ("flattest", flatness)):
        row, column = divmod(int(np.argmax(wish)), wish.shape[1])
        names[row, column] = f"{names[row, column]}, {name}" if (row, column) in names else name
    return [Window(name, row * side, column * side, 2 * side) for (row, column), name in names.items()]


def _of_four(cells: np.ndarray) -> np.ndarray:
    """Average the four cells of each window."""
    cells = np.nan_to_num(cells)
    return np.asarray(cells[1:, 1:] + cells[1:, :-1] + cells[:-1, 1:] + cells[:-1, :-1]) / 4


def _survey(before: np.ndarray, result: np.ndarray, cell: int) -> np.ndarray:
    """Measure cells of a side in pixels: change, detail and brightness, a band of rows after the other.

    The bands keep it within the caches, and out of the memory that a large picture leaves.
    """
    columns = result.shape[1] // cell
    rows = []
    for top in range(0, result.shape[0] - cell + 1, cell):
        gray, gray_before = (_gray(image[top : top + cell, : columns * cell]) for image in (result, before))
        detail = np.zeros_like(gray)
        detail[:, 1:] += cv2.absdiff(gray[:, 1:], gray[:, :-1])
        detail[1:] += cv2.absdiff(gray[1:], gray[:-1])
        kinds = (cv2.absdiff(gray, gray_before), detail, gray)
        rows.append([cv2.resize(kind, (columns, 1), interpolation=cv2.INTER_AREA)[0] for kind in kinds])
        large.rest()
    return np.stack(rows, axis=1)


def _gray(image: np.ndarray) -> np.ndarray:
    channels = image.shape[2]
    image = np.ascontiguousarray(image, np.float32)
    return image[..., 0] if channels == 1 else np.asarray(cv2.transform(image, np.full((1, channels), 1 / channels)))


def _histogram(image: np.ndarray, channels: int) -> np.ndarray:
    """Count samples, a band of rows after the other; shares, ``(channels, BINS)``."""
    counts = np.zeros((image.shape[2], 256))
    for rows in large.bands(image.shape):
        band = eight_bits(image[rows])
        for channel in range(image.shape[2]):
            counts[channel] += cv2.calcHist([band], [channel], None, [256], [0, 256]).ravel()
    shares = counts.reshape(image.shape[2], BINS, -1).sum(axis=2) / (image.shape[0] * image.shape[1])
    return np.broadcast_to(shares, (channels, BINS)) if image.shape[2] == 1 else shares[:channels]


def _gain(before: np.ndarray, result: np.ndarray) -> int:
    """Choose how many times the difference is drawn: a power of two for which one sample in a hundred is cut."""
    stride = max(1, max(result.shape[:2]) // 512)
    sampled = []
    for row in range(0, len(result), stride):
        sampled.append(np.abs(result[row, ::stride] - before[row, ::stride]))
        large.rest()
    size = float(np.quantile(np.nan_to_num(sampled), 0.99))
    return int(2 ** np.clip(np.floor(np.log2(0.5 / max(size, 1e-6))), 0, np.log2(MAX_GAIN)))


def _iterates(snapshots: Mapping[int, Path], pixels: int) -> dict[int, np.ndarray]:
    """Read some of the snapshots, chosen evenly: fewer of a large picture."""
    steps, most = list(snapshots), min(MAX_ITERATES, max(2, MAX_SNAPSHOT_PIXELS // pixels))
    if len(steps) > most:
        steps = [steps[i] for i in np.linspace(0, len(steps) - 1, most).round().astype(int)]
    shown = {}
    for step in steps:
        with contextlib.suppress(Exception):  # it was not written whole, or the user has put something in its place
            data = read_regular(snapshots[step], MAX_SNAPSHOT_BYTES)
            shown[step] = reduced(raster.decode_png(data or b""), ITERATE)
    return shown
