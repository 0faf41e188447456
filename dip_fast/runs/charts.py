"""Charts as paths of SVG: curves over the steps, and histograms.  In a report all words stand beside them, in HTML."""

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
MARGIN, ROW = 20, 40  # around the charts of a picture of their own, and the height of the words under each


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


def plot(history: Mapping[str, np.ndarray], best_step: int) -> bytes:
    """Draw what the history holds over the steps, curves under each other, as an SVG file with their words."""
    rows: list[str] = []
    for number, curve in enumerate(curves(history, best_step)):
        scale = ", on a logarithmic scale" if curve.logarithmic else ""
        words = f"{curve.name}: {curve.lowest} to {curve.highest}{scale}; steps {curve.first} to {curve.last}"
        rows.append(
            f'<g transform="translate({MARGIN} {MARGIN + number * (HEIGHT + ROW)})">'
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#bbb"/>'
            f'<path d="{curve.path}" fill="none" stroke="#1f6fb4" stroke-width="1.5"/>'
            f'<path d="M{curve.chosen} 0V{HEIGHT}" stroke="#000" stroke-dasharray="6 4"/>'
            f'<text y="{HEIGHT + 20}">{words}</text></g>'
        )
    width, height = WIDTH + 2 * MARGIN, 2 * MARGIN + len(rows) * (HEIGHT + ROW) + 10
    last = f'<text x="{MARGIN}" y="{height - 14}">The dashed line marks step {best_step}, the answer.</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="14"><rect width="100%" height="100%" fill="#fff"/>{"".join(rows)}{last}</svg>\n'
    ).encode()


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
