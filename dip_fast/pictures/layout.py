"""The axes of a user's array: which hold the channels and which the frames.  Needs numpy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

SMALLEST_SIDE = 16


@dataclass(frozen=True)
class Layout:
    """Which axes of an array hold what; the rest are rows and columns.

    Attributes
    ----------
    channel_axis : int or None
        None where there is one channel, without an axis.
    frames_axis : int or None
        None where the array is one image.
    """

    channel_axis: int | None = None
    frames_axis: int | None = None

    def channels_last(self, samples: Any) -> np.ndarray:
        """Check an array's dtype and shape, and view it as ``(H, W, C)``, or frames as ``(N, H, W, C)``.

        Raises
        ------
        ValueError
            For another shape, frames of several sizes, or sides that are too short.
        TypeError
            For another dtype.
        """
        if self.frames_axis is not None and len(shapes := {np.shape(frame): None for frame in samples}) > 1:
            raise ValueError(f"image must have frames of one size, got {' and '.join(map(str, shapes))}")
        image = np.asarray(samples)
        if image.dtype.kind not in "biuf" or image.dtype.itemsize > 8:
            raise TypeError(
                f"image must hold integers, truth values or floats of 16, 32 or 64 bits, got {image.dtype}; convert it"
            )
        self._check_axes(image.shape)
        moved = np.moveaxis(image, *self._moves())
        channels_last = moved[..., None] if self.channel_axis is None else moved
        size = channels_last.shape[-3:-1]
        if min(size) < SMALLEST_SIDE:
            raise ValueError(f"image must be at least {SMALLEST_SIDE}x{SMALLEST_SIDE}, got {size}")
        if not channels_last.size:
            raise ValueError(f"image must hold samples, got none in {image.shape}")
        return channels_last

    def as_given(self, samples: np.ndarray) -> np.ndarray:
        """View samples of the shape that `channels_last` made with their axes where the user's array has them."""
        axes, places = self._moves()
        return np.moveaxis(samples[..., 0] if self.channel_axis is None else samples, places, axes)

    def _given(self) -> dict[str, int]:
        """List the axes that are given, by name."""
        axes = {"frames_axis": self.frames_axis, "channel_axis": self.channel_axis}
        return {name: axis for name, axis in axes.items() if axis is not None}

    def _moves(self) -> tuple[list[int], list[int]]:
        """List the axes that are given, and their places where the channels are last."""
        given = self._given()
        return [*given.values()], [0 if name == "frames_axis" else -1 for name in given]

    def _check_axes(self, shape: tuple[int, ...]) -> None:
        """Refuse a shape that has not these axes."""
        given = self._given()
        if len(shape) != 2 + len(given):
            wanted = ("(H, W)", "three-dimensional with ", "four-dimensional with ")[len(given)] + " and ".join(given)
            raise ValueError(f"image must be {wanted}, got {shape}; set channel_axis for a colour image")
        for name, axis in given.items():
            if not -len(shape) <= axis < len(shape):
                raise ValueError(f"{name} must be an axis of the image, which has {len(shape)}, got {axis}")
        if len({axis % len(shape) for axis in given.values()}) < len(given):
            raise ValueError(f"frames_axis and channel_axis must differ, got {' and '.join(map(str, given.values()))}")
