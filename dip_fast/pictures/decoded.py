"""What a format's reader finds in a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dip_fast.errors import UsageError
from dip_fast.pictures.geometry import Geometry


@dataclass
class Decoded:
    """What a format's reader found in a file, before it is turned upright and scaled.

    Attributes
    ----------
    samples : ndarray
        ``(H, W, C)``: truth values, integers or floats, in the machine's byte order.
    alpha : ndarray, optional
        ``(H, W)``, in the samples' dtype.
    alpha_kind : {"unassalpha", "assocalpha", "unspecified"}
        The kind of alpha, in TIFF's words: plain, colours are premultiplied, or not stated.
    orientation : int
        EXIF's orientation, 1 to 8; 1 is upright.
    icc_profile : bytes, optional
    exif : PIL.Image.Exif, optional
        The file's EXIF data.
    notes : list of str
        One sentence for each conversion that was made.
    geometry : Geometry, optional
        The size and the place of the pixels of the stored picture, where the file holds them.
    jpeg : dict, optional
        As in `Extras`.
    colours : int, optional
        How many of the channels are colours, see `Kind.colours`.
    """

    samples: np.ndarray
    alpha: np.ndarray | None = None
    alpha_kind: str = "unassalpha"
    orientation: int = 1
    icc_profile: bytes | None = None
    exif: Any = None
    notes: list[str] = field(default_factory=list)
    geometry: Geometry | None = None
    jpeg: dict[str, Any] | None = None
    colours: int | None = None


def with_alpha(samples: np.ndarray, largest: int | None = None) -> Decoded:
    """Take the alpha apart from the samples of a format that has none but plain alpha.

    Parameters
    ----------
    samples : ndarray
        ``(H, W)``, or ``(H, W, C)`` where C may be 1 to 4; an even number of channels means that the last is alpha.
    largest : int, optional
        The integer that stands for white; another than 255 and 65535 is scaled to the one above it.
    """
    notes = []
    samples = samples.reshape(*samples.shape[:2], -1)
    if samples.shape[2] > 4:
        raise UsageError(f"it has {samples.shape[2]} channels; save it as gray or RGB, with one alpha at most")
    if largest is not None and largest not in (255, 65535):
        full, dtype = (255, np.uint8) if largest < 256 else (65535, np.uint16)
        samples = np.rint(samples.astype(np.float64) * (full / largest)).astype(dtype)
        notes.append(f"Samples from 0 to {largest} were scaled to {8 * np.dtype(dtype).itemsize} bits.")
    if samples.shape[2] % 2:
        return Decoded(samples, notes=notes)
    return Decoded(samples[..., :-1], samples[..., -1], notes=notes)
