"""Masks: which pixels of a picture are known, by a file, the picture itself or an array.  Needs no torch."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from dip_fast.errors import Argument, UsageError
from dip_fast.pictures.reading import read_mask
from dip_fast.pictures.samples import to_unit, value_range
from dip_fast.tasks.task import Data

_COLOUR = re.compile("#[0-9a-fA-F]{6}")


def known(source: Path | str | np.ndarray, data: Data, *, white_is_known: bool = True) -> np.ndarray:
    """Find the known pixels.

    Parameters
    ----------
    source : Path, str or ndarray
        An array ``(H, W)``, True or one number other than 0 where the picture is known; ``alpha``, ``nan``, a colour
        such as ``#ff00ff``, or a file.
    data : Data
        The picture.
    white_is_known : bool
        What white means in a file.

    Returns
    -------
    ndarray
        bool, ``(H, W)``.

    Raises
    ------
    UsageError
    """
    height, width = data.image.shape[:2]
    if isinstance(source, np.ndarray):
        if source.shape != (height, width):
            raise UsageError(f"mask must be {(height, width)} as the image is, got {source.shape}")
        if source.dtype.kind not in "biuf":
            raise UsageError(f"mask must hold truth values or numbers, got {source.dtype}")
        if source.dtype.kind == "f" and not np.isfinite(source).all():
            raise UsageError("mask must be finite, got NaN or infinite values; pass True where the picture is known")
        marked = source != 0
        values = source[marked]
        if values.size and values.min() != values.max():  # grays: nobody knows where they are to be cut
            raise UsageError(
                "mask must hold True, or one number other than 0, where the picture is known, got numbers from {} to "
                "{}; cut it, as mask >= 128",
                *(source.min(), source.max()),
            )
        return marked
    text, picture = str(source), data.picture
    says_itself = text in ("nan", "alpha") or _COLOUR.fullmatch(text)
    if says_itself and not white_is_known:
        raise UsageError(
            "{} says what white means in a file, and {} is none; leave it out",
            *(Argument("mask_white", "hole"), Argument("mask", text)),
        )
    if text == "nan":
        if picture is None:
            return np.asarray(np.isfinite(data.image).all(axis=2))
        return np.ones((height, width), bool) if picture.missing is None else ~picture.missing
    if text == "alpha":
        alpha = None if picture is None else picture.extras.alpha
        if alpha is None:
            raise UsageError("{}: the picture has no alpha; name a file instead", Argument("mask", text))
        return np.asarray(alpha >= _opaque(alpha))
    if _COLOUR.fullmatch(text):
        colour = np.array([*bytes.fromhex(text[1:])], np.float32) / 255
        image = data.image
        if image.shape[2] not in (1, 3):
            raise UsageError(
                "{}: the picture has {} channels; name a file instead", Argument("mask", text), image.shape[2]
            )
        if picture is not None:  # the samples: what was painted over may have been set aside, and the range be narrower
            samples, dtype = picture.samples, np.dtype(picture.kind.dtype)
            ends = (0.0, float(np.iinfo(dtype).max)) if dtype.kind in "iu" else value_range(samples)
            image = to_unit(samples, ends)
        return np.asarray((np.abs(image - colour) >= 0.5 / 255).any(axis=2))
    return read_mask(Path(source), (height, width), white_is_known=white_is_known, notes=data.notes)


def opaque_but(alpha: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Keep an alpha where ``kept`` is True, and make the rest opaque."""
    return np.where(kept, alpha, _opaque(alpha)).astype(alpha.dtype)


def _opaque(alpha: np.ndarray) -> float:
    """Return the value of an alpha that hides all behind it."""
    return 1.0 if alpha.dtype.kind == "f" else float(np.iinfo(alpha.dtype).max)
