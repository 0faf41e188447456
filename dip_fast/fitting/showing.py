"""What a result shows of itself in a notebook: a thumbnail, and its picture beside its history."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dip_fast.errors import DipFastError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

THUMBNAIL = 256  # pixels of its longer side
LABELS = {
    "loss": "loss",
    "variance": "variance of the iterates",
    "psnr": "PSNR of the iterate, dB",
    "estimated_psnr": "estimated PSNR, dB",
}


def thumbnail(image: np.ndarray) -> bytes | None:
    """Encode a small PNG file of a gray or colour image ``(H, W, C)`` in [0, 1]; None of other channels."""
    from PIL import Image  # here, since only notebooks ask

    channels = image.shape[2]
    if channels not in (1, 3):
        return None
    samples = (255 * np.nan_to_num(image).clip(0, 1)).round().astype(np.uint8)
    small = Image.fromarray(samples[..., 0] if channels == 1 else samples)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "PNG")
    return file.getvalue()


def page(line: str, picture: bytes | None) -> str:
    """Write HTML of a line under a picture."""
    shown = "" if picture is None else f'<img src="data:image/png;base64,{base64.b64encode(picture).decode()}"><br>'
    return f"{shown}<code>{html.escape(line)}</code>"


def plot(images: Mapping[str, np.ndarray], history: Mapping[str, np.ndarray], best_step: int) -> np.ndarray:
    """Plot images, each in [0, 1] with its channels last, beside what the history holds over the steps.

    Returns
    -------
    ndarray of Axes
        Of a new figure of matplotlib.pyplot.

    Raises
    ------
    DipFastError
        Where matplotlib is missing.
    """
    try:
        from matplotlib import pyplot  # here, since it is slow to import
    except ImportError as error:
        raise DipFastError("plot() needs matplotlib, which is not installed; pip install matplotlib") from error

    drawn = curves(history)
    panels = {title: image for name, image in images.items() for title, image in _panels(name, image)}
    count = len(panels) + len(drawn)
    _, axes = pyplot.subplots(1, count, figsize=(3.2 * count, 3), layout="constrained", squeeze=False)
    for axis, (title, image) in zip(axes[0], panels.items(), strict=False):
        axis.imshow(image, cmap="gray", vmin=0, vmax=1)
        axis.set_title(title)
        axis.axis("off")
    for axis, name in zip(axes[0, len(panels) :], drawn, strict=True):
        draw_curve(axis, name, history, best_step)
        axis.set_title(LABELS[name])
        axis.set_xlabel("step")
    return np.asarray(axes[0])


def _panels(name: str, image: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """List what is shown of an image: itself, or each channel where it is neither gray nor colour."""
    if image.shape[2] == 3:
        return [(name, np.clip(image, 0, 1))]
    channels = np.moveaxis(image, 2, 0)
    return [(name if len(channels) == 1 else f"{name}, channel {i}", plane) for i, plane in enumerate(channels)]


def curves(history: Mapping[str, np.ndarray]) -> list[str]:
    """List what a history holds: the loss, and what else has values."""
    return [name for name in LABELS if name in history and (name == "loss" or np.isfinite(history[name]).any())]


def draw_curve(axis: Axes, name: str, history: Mapping[str, Any], best_step: int) -> None:
    """Draw a column of a history over the steps, with a line at the step of the answer."""
    axis.plot(history["step"], history[name], linewidth=1)
    axis.grid(alpha=0.3)
    if name in ("loss", "variance") and np.any(history[name] > 0):
        axis.set_yscale("log")
    axis.axvline(best_step, color="black", linewidth=0.8, linestyle="--")
