"""Conversions between the samples of a picture and values from 0 to 1.  Needs numpy alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dip_fast import large


def value_range(samples: np.ndarray) -> tuple[float, float]:
    """Return the sample values that stand for 0 and 1.

    Parameters
    ----------
    samples : numpy.ndarray
        Colour samples of any shape, without alpha: integers, truth values or finite floats.

    Returns
    -------
    low, high : float
        With ``low < high``.

    Raises
    ------
    TypeError
        For any other dtype.

    Notes
    -----
    The network draws values in [0, 1], so the range has to fit the picture, and it has to be the same for every crop
    and copy of it that uses its values in the ordinary way:

    - uint8 is (0, 255), and truth values are (0, 1).
    - other integers, of which none is negative, are (0, 2**k - 1) with the smallest k >= 8 that covers the maximum:
      12-bit camera data in a 16-bit file would otherwise fill a sixteenth of the range.
    - a float picture is (0, 1) where the samples lie in [0, 1] and reach 0.25 at least, the usual convention, which
      then keeps every sample as it is.
    - anything else is (minimum, maximum), or (minimum, minimum + 1) for a constant picture.
    """
    if samples.dtype == np.uint8:
        return 0.0, 255.0
    if samples.dtype == bool:
        return 0.0, 1.0
    if samples.dtype.kind not in "fiu":
        raise TypeError(f"samples must be integers, truth values or floats, got {samples.dtype}")
    if samples.dtype.kind in "iu" and samples.min() >= 0:
        return 0.0, float(2 ** max(8, int(samples.max()).bit_length()) - 1)
    low, high = float(samples.min()), float(samples.max())
    if samples.dtype.kind == "f" and low >= 0 and 0.25 <= high <= 1:
        return 0.0, 1.0
    if low == high:  # the spacing takes over where 1 is too little to change a float64
        return low, low + max(1.0, abs(float(np.spacing(low))))
    return low, high


def as_samples(samples: np.ndarray) -> np.ndarray:
    """Convert an array to samples of the machine's byte order, whose dtype `value_range` knows.

    Parameters
    ----------
    samples : ndarray
        Floats, truth values or integers; those from 0 to 65535 of any kind mean the same as in uint16.
    """
    dtype = samples.dtype
    if dtype.kind in "iu" and dtype != np.uint8 and samples.size:
        low, high = int(samples.min()), int(samples.max())
        if low >= 0 and high <= np.iinfo(np.uint16).max:
            return samples.astype(np.uint16)
    return samples.astype(dtype.newbyteorder("="), copy=False)


def to_unit(samples: np.ndarray, limits: tuple[Any, Any]) -> np.ndarray:
    """Turn samples into float32 values: 0 and 1 stand for the two limits.

    Parameters
    ----------
    samples : ndarray
        Of any shape.
    limits : tuple
        Two floats, or two arrays with one a channel, the last axis of the samples.
    """
    low, high = limits
    span = np.subtract(high, low)
    return _by_rows(lambda rows: ((rows.astype(np.float64) - low) / span).astype(np.float32), samples)


def from_unit(image: np.ndarray, limits: tuple[Any, Any], dtype: np.dtype) -> np.ndarray:
    """Turn values back into samples.

    Parameters
    ----------
    image : ndarray
        Floats of any shape; 0 and 1 stand for the two limits.
    limits : tuple
        The two limits, as in `to_unit`; where they are one, it is the value.
    dtype : dtype
        Integers are rounded to nearest and clipped to what the dtype holds; floats keep what lies outside the limits.

    Raises
    ------
    ValueError
        Where `image` holds NaN.
    """
    low, high = limits
    span = np.subtract(high, low)

    def of_rows(rows: np.ndarray) -> np.ndarray:
        return to_dtype(low + np.where(span > 0, np.asarray(rows, np.float64), 0.0) * span, dtype)

    return _by_rows(of_rows, image)


def to_dtype(samples: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Turn floats that are in the picture's range, such as a model file's output, into samples of a file.

    Parameters
    ----------
    samples : ndarray
        Floats of any shape.
    dtype : dtype
        Integers are rounded to nearest (`numpy.rint`) and clipped to what the dtype holds; truth values are True from
        1/2 on.

    Raises
    ------
    ValueError
        Where `samples` holds NaN.
    """
    return _by_rows(lambda rows: _rounded(rows, np.dtype(dtype)), samples)


def _by_rows(function: Callable[[np.ndarray], np.ndarray], samples: np.ndarray) -> np.ndarray:
    """Apply a function of single samples, to a part of a large picture at a time."""
    return large.mapped(function, samples) if samples.size > large.BAND and samples.ndim > 1 else function(samples)


def _rounded(samples: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if np.isnan(samples).any():
        raise ValueError("image must not hold NaN")
    if dtype.kind == "f":
        return np.clip(samples, np.finfo(dtype).min, np.finfo(dtype).max).astype(dtype)
    if dtype.kind == "b":
        return samples >= 0.5
    bounds = np.iinfo(dtype)
    most = float(bounds.max)
    if most > bounds.max:  # the largest of 64 bits is no float
        most = float(np.nextafter(most, 0))
    wide = samples.astype(np.float64) if dtype.itemsize > 2 else samples  # float32 does not hold the largest of 32 bits
    return np.clip(np.rint(wide), bounds.min, most).astype(dtype)
