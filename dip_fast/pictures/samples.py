"""Conversions between the samples of a picture and values from 0 to 1.  Needs numpy alone."""

from __future__ import annotations

import numpy as np


def value_range(samples: np.ndarray) -> tuple[float, float]:
    """Return the sample values that stand for 0 and 1.

    Parameters
    ----------
    samples : numpy.ndarray
        Colour samples of any shape, without alpha: uint8, uint16 or finite floats.

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

    - uint8 is (0, 255).
    - uint16 is (0, 2**k - 1) with the smallest k >= 8 that covers the maximum: 12-bit camera data in a 16-bit file
      would otherwise fill a sixteenth of the range.
    - a float picture is (0, 1) where the samples lie in [0, 1] and reach 0.25 at least, the usual convention, which
      then keeps every sample as it is; otherwise it is (minimum, maximum), or (minimum, minimum + 1) for a constant
      picture.
    """
    if samples.dtype == np.uint8:
        return 0.0, 255.0
    if samples.dtype == np.uint16:
        return 0.0, float(2 ** max(8, int(samples.max()).bit_length()) - 1)
    if samples.dtype.kind != "f":
        raise TypeError(f"samples must be uint8, uint16 or floats, got {samples.dtype}")
    low, high = float(samples.min()), float(samples.max())
    if low >= 0 and 0.25 <= high <= 1:
        return 0.0, 1.0
    if low == high:  # the spacing takes over where 1 is too little to change a float64
        return low, low + max(1.0, abs(float(np.spacing(low))))
    return low, high


def as_samples(samples: np.ndarray) -> np.ndarray:
    """Convert an array to samples of the machine's byte order, whose dtype `value_range` knows.

    Parameters
    ----------
    samples : ndarray
        Floats; or integers of any kind from 0 to 65535, which mean the same as in uint16.

    Raises
    ------
    TypeError
        For integers out of that range, whose meaning is open.
    """
    dtype = samples.dtype
    if dtype.kind == "f" or dtype == np.uint8:
        return samples.astype(dtype.newbyteorder("="), copy=False)
    low, high = (int(samples.min()), int(samples.max())) if samples.size else (0, 0)
    if low < 0 or high > np.iinfo(np.uint16).max:
        raise TypeError(
            f"image must hold integers from 0 to 65535, got {dtype} from {low} to {high}; convert it to floats, as "
            "with image.astype(float)"
        )
    return samples.astype(np.uint16)


def to_unit(samples: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Turn samples into float32 values: 0 and 1 stand for the two limits."""
    low, high = limits
    return ((samples.astype(np.float64) - low) / (high - low)).astype(np.float32)


def from_unit(image: np.ndarray, limits: tuple[float, float], dtype: np.dtype) -> np.ndarray:
    """Turn values back into samples.

    Parameters
    ----------
    image : ndarray
        Floats of any shape; 0 and 1 stand for the two limits.
    limits : tuple of float
        The two limits that `value_range` returned.
    dtype : dtype
        Integers are rounded to nearest and clipped to what the dtype holds; floats keep what lies outside the limits.

    Raises
    ------
    ValueError
        Where `image` holds NaN.
    """
    low, high = limits
    return to_dtype(low + np.asarray(image, np.float64) * (high - low), dtype)


def to_dtype(samples: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Turn floats that are in the picture's range, such as a model file's output, into samples of a file.

    Parameters
    ----------
    samples : ndarray
        Floats of any shape.
    dtype : dtype
        Integers are rounded to nearest (`numpy.rint`) and clipped to what the dtype holds.

    Raises
    ------
    ValueError
        Where `samples` holds NaN.
    """
    if np.isnan(samples).any():
        raise ValueError("image must not hold NaN")
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return np.clip(samples, np.finfo(dtype).min, np.finfo(dtype).max).astype(dtype)
    return np.clip(np.rint(samples), 0, np.iinfo(dtype).max).astype(dtype)
