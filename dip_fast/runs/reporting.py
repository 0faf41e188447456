"""What a run leaves to look at: snapshots, and the history as a table and as a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

import numpy as np

from dip_fast.fitting import showing
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


def history_plot(history: Mapping[str, np.ndarray], best_step: int) -> bytes:
    """Draw what the history holds over the steps, as a PNG file: loss, stopping statistic, PSNR."""
    from matplotlib.figure import Figure  # here: nothing before the end of a run needs it

    shown = showing.curves(history)
    height = 1 + 2 * len(shown)  # inches
    figure = Figure(figsize=(8, height))
    # A layout that matplotlib computes takes as long as all else of the plot.
    figure.subplots_adjust(left=0.11, right=0.98, bottom=0.5 / height, top=1 - 0.4 / height, hspace=0.08)
    axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axis, name in zip(axes, shown, strict=True):
        showing.draw_curve(axis, name, history, best_step)
        axis.set_ylabel(showing.LABELS[name])
    axes[0].set_title(f"answer: averaged network of step {best_step}", fontsize="medium")
    axes[-1].set_xlabel("step")
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    return data.getvalue()
