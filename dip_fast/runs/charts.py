"""Charts as paths of SVG: curves over the steps, and histograms.  All words stand beside them, in HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 600, 160  # in units of the chart's own
MAX_POINTS = 400
NAMES = {
    "loss": ("loss", ""),
    "variance": ("variance of the iterates", ""),
    "psnr": ("PSNR of the iterate", " dB"),
    "estimated_psnr": ("estimated PSNR", " dB"),
}
LOGARITHMIC = ("loss", "variance")


@dataclass(frozen=True)
class Curve:
    """A figure of the fit over its steps.

    Attributes
    ----------
    name : str
        What it is, in words.
    path : str
        Its line.
    chosen : float
        Where the step is that the answer is of.
    first, last : int
        Steps at the left and the right edge.
    lowest, highest : str
        Its least and its greatest value.
    logarithmic : bool
        Whether its height is.
    """

    name: str
    path: str
    chosen: float
    first: int
    last: int
    lowest: str
    highest: str
    logarithmic: bool


def curves(history: Mapping[str, np.ndarray], best_step: int) -> list[Curve]:
    """Draw what the history holds over the steps."""
    drawn = (_curve(name, history["step"], history[name], best_step) for name in NAMES if name in history)
    return [curve for curve in drawn if curve is not None]


def _curve(name: str, steps: np.ndarray, values: np.ndarray, best_step: int) -> Curve | None:
    """Draw one figure; None where it has no values."""
    logarithmic = name in LOGARITHMIC and bool(np.any(values > 0))
    there = np.isfinite(values) & (values > 0 if logarithmic else True)
    steps, values = steps[there], values[there]
    if not len(steps):
        return None
    heights = np.log(values) if logarithmic else values
    if len(steps) > MAX_POINTS:
        few = np.linspace(0, len(steps) - 1, MAX_POINTS).round().astype(int)
        x, heights = _scaled(steps, WIDTH)[few], heights[few]
    else:
        x = _scaled(steps, WIDTH)
    y = HEIGHT - _scaled(heights, HEIGHT)
    words, unit = NAMES[name]
    digits = ".3g" if logarithmic else ".2f"
    chosen = WIDTH * (best_step - steps[0]) / max(1, steps[-1] - steps[0])
    return Curve(
        name=words,
        path=_line(x, y),
        chosen=round(float(np.clip(chosen, 0, WIDTH)), 1),
        first=int(steps[0]),
        last=int(steps[-1]),
        lowest=f"{values.min():{digits}}{unit}",
        highest=f"{values.max():{digits}}{unit}",
        logarithmic=logarithmic,
    )


@dataclass(frozen=True)
class Histogram:
    """Two histograms of a channel in one chart.

    Attributes
    ----------
    name : str
        The channel.
    before, after : str
        The area of the input and the line of the result.
    """

    name: str
    before: str
    after: str


def histograms(shares: np.ndarray) -> list[Histogram]:
    """Draw histograms ``(2, C, bins)``, of the input and the result; square roots, to show what is rare."""
    names = ("gray",) if shares.shape[1] == 1 else ("red", "green", "blue")
    x = np.linspace(0, WIDTH, shares.shape[2])
    drawn = []
    for channel, name in enumerate(names):
        heights = np.sqrt(shares[:, channel])
        before, after = HEIGHT - HEIGHT * heights / max(float(heights.max()), 1e-9)
        drawn.append(Histogram(name, f"{_line(x, before)}L{WIDTH} {HEIGHT}L0 {HEIGHT}Z", _line(x, after)))
    return drawn


def _scaled(values: np.ndarray, size: float) -> np.ndarray:
    """Scale values to lie between 0 and a size."""
    low, high = float(values.min()), float(values.max())
    return np.full(len(values), size / 2) if high <= low else size * (values - low) / (high - low)


def _line(x: np.ndarray, y: np.ndarray) -> str:
    """Write a line through points."""
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))
