"""The range of real pictures: which samples are no part of the scene, and what 0 and 1 of the network stand for.

One hot pixel at 65535 over a dark frame, or one lamp in a linear picture, would leave the rest a hundredth of what the
network draws.  Such outliers are set aside: the range is that of the others, an estimate takes their place while the
network is fitted, and the file of the result has them as they were.  Needs numpy alone; where something is set aside,
OpenCV.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from dip_fast import large
from dip_fast.pictures.samples import value_range

Limits = tuple[Any, Any]  # two floats, or two arrays with a value a channel

# Outliers are set aside where they would leave the rest less than this part of the range: with more, nothing is gained.
LEAST_PART = 1 / 8
# A channel with less than this part of the range of all has one of its own.  Noise of one deviation in all channels has
# several in ranges of their own, which the model of the noise does not know, so this is for very different ones.
LEAST_PART_OF_CHANNELS = 1 / 16
# Shares at either end that may be outliers.  On a background without structure few bright samples are what was to be
# seen (stars, cells); within a scene a patch may be larger.
SHARE, SHARE_IN_SCENE = 0.02, 0.04
STRUCTURE = 6.0  # deviations of the noise between the quantiles; without structure there are 3.5
REACH, REACH_OF_NOISE = 2.0, 8.0  # of outliers beyond the others: times their spread, and deviations of the noise
SAMPLES = 2**20  # are enough for a quantile


@dataclass(frozen=True, eq=False)
class Range:
    """What samples stand for in an image from 0 to 1.

    Attributes
    ----------
    whole : tuple of float
        The samples that 0 and 1 stand for.
    channels : tuple of tuple of float, optional
        The same for each channel, within `whole`, where they differ.  Both are one for a channel that is constant.
    outliers : ndarray, optional
        bool, of the samples' shape: those far outside the range; None where there are none.
    """

    whole: tuple[float, float]
    channels: tuple[tuple[float, float], ...] | None = None
    outliers: np.ndarray | None = None

    @property
    def limits(self) -> Limits:
        """The two limits that `to_unit` takes."""
        return of_samples(self.whole, self.channels)

    @property
    def limits_of_result(self) -> Limits:
        """The two limits that `from_unit` takes."""
        return of_result(self.whole, self.channels)


def of_result(whole: tuple[float, float], channels: tuple[tuple[float, float], ...] | None) -> Limits:
    """Return limits for a result as two floats, or where channels have their own as two arrays, which may be one."""
    if channels is None:
        return whole
    low, high = np.array(channels, np.float64).T
    return low, high


def of_samples(whole: tuple[float, float], channels: tuple[tuple[float, float], ...] | None) -> Limits:
    """Return limits for samples: as `of_result` does, but a constant channel has its value in the whole range."""
    return of_result(whole, channels and tuple(whole if low == high else (low, high) for low, high in channels))


def find(samples: np.ndarray, hidden: np.ndarray | None = None, *, outliers: bool = False) -> Range:
    """Find the range of samples.

    Parameters
    ----------
    samples : ndarray
        ``(..., H, W, C)``, integers or finite floats.
    hidden : ndarray, optional
        bool, ``(..., H, W)``, not True everywhere: pixels that do not count.
    outliers : bool
        Whether samples may be left out of the range.

    Notes
    -----
    A channel's outliers lie beyond two quantiles of its samples, by twice the distance of the two and by eight
    deviations of the noise at least.  No median is taken before: it would take thin lines, as of text, for hot pixels.
    The others' range is that of `samples.value_range`; but integers of more than 8 bits that fill less than an eighth
    of it have their own, from the least to the largest.  Samples of 8 bits have 0 and 255 always, the unit in which
    their noise is known.
    """
    eight_bits = samples.dtype.itemsize == 1
    seen = np.ones(samples.shape[:-1], bool) if hidden is None else ~hidden
    found: np.ndarray | None = None
    ranges = []
    for c in range(samples.shape[-1]):
        channel = samples[..., c]
        low, high = _ends(channel if hidden is None else channel[seen])
        if outliers and not eight_bits and low < high:
            least, most = _cuts(channel, seen, low, high)
            outside = seen & ((channel < least) | (channel > most))
            rest = seen & ~outside
            if outside.any() and rest.any():
                inner = _ends(channel[rest])
                if inner[1] - inner[0] < LEAST_PART * (high - low):
                    found = np.zeros(samples.shape, bool) if found is None else found
                    found[..., c] = outside
                    low, high = inner
        ranges.append((low, high))
    ends = min(low for low, _ in ranges), max(high for _, high in ranges)
    whole = value_range(np.array(ends, samples.dtype))
    integers = samples.dtype.kind in "iu" and not eight_bits
    if integers and 0 < ends[1] - ends[0] < LEAST_PART * (whole[1] - whole[0]):
        whole = ends
    spans = [high - low for low, high in ranges]
    own = not eight_bits and any(0 < span < LEAST_PART_OF_CHANNELS * (whole[1] - whole[0]) for span in spans)
    if not own and all(spans):
        return Range(whole, None, found)
    own &= len(ranges) > 1
    channels = tuple(each if own or each[0] == each[1] else whole for each in ranges)
    return Range(whole, None if set(channels) == {whole} else channels, found)


def filled(image: np.ndarray, aside: np.ndarray) -> np.ndarray:
    """Put an estimate of what lies around them in the place of samples, channel by channel.

    Parameters
    ----------
    image : ndarray
        float32, ``(..., H, W, C)``.
    aside : ndarray
        bool, of the image's shape: where the estimate goes.
    """
    out = image.copy()
    for index in np.ndindex(*image.shape[:-3], image.shape[-1]):
        place = (*index[:-1], slice(None), slice(None), index[-1])
        if aside[place].any() and not aside[place].all():
            out[place] = _fill(image[place], ~aside[place])
    return out


def _ends(values: np.ndarray) -> tuple[float, float]:
    ends = [(values[part].min(), values[part].max()) for part in large.bands(values.shape)]
    return float(min(low for low, _ in ends)), float(max(high for _, high in ends))


def _cuts(channel: np.ndarray, seen: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Find the values beyond which samples of a channel, of one image or of several, are outliers.

    `low` and `high` are the least and the largest of those that are seen.
    """
    if every := channel.size // (4 * SAMPLES):  # of a large picture, some pairs of rows
        rows = np.arange(channel.shape[-2] // 2 * 2).reshape(-1, 2)[::every].ravel()
        fewer = seen[..., rows, :]
        channel, seen = (channel[..., rows, :], fewer) if fewer.any() else (channel, seen)
    values = (channel.astype(np.float64) - low) / (high - low)
    height, width = (side // 2 * 2 for side in values.shape[-2:])
    a, b, c, d = (values[..., i:height:2, j:width:2] for i in (0, 1) for j in (0, 1))
    deviation = float(np.median(np.abs(_some((a - b - c + d) / 2)))) / 0.6745
    values = _some(values[seen])
    least, most = np.quantile(values, (SHARE_IN_SCENE, 1 - SHARE_IN_SCENE))
    if most - least <= STRUCTURE * deviation:
        least, most = np.quantile(values, (SHARE, 1 - SHARE))
    reach = max(REACH * float(most - least), REACH_OF_NOISE * deviation)
    return low + (float(least) - reach) * (high - low), low + (float(most) + reach) * (high - low)


def _some(values: np.ndarray) -> np.ndarray:
    """Choose enough of many values for a quantile, evenly."""
    return values.ravel()[:: max(1, values.size // SAMPLES)]


def _fill(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fill in what is not known of ``(H, W)``, with the mean of what is known of four, of sixteen pixels and so on."""
    import cv2

    if known.all():
        return values
    height, width = values.shape
    pad = ((0, height % 2), (0, width % 2))
    weight = known.astype(np.float32)
    total, count = (
        np.pad(array, pad).reshape(math.ceil(height / 2), 2, math.ceil(width / 2), 2).sum(axis=(1, 3))
        for array in (np.where(known, values, 0), weight)
    )
    coarse = _fill((total / np.maximum(count, 1)).astype(np.float32), count > 0)
    sides = 2 * coarse.shape[1], 2 * coarse.shape[0]
    enlarged = cv2.resize(coarse, sides, interpolation=cv2.INTER_LINEAR).reshape(sides[::-1])[:height, :width]
    return np.where(known, values, enlarged).astype(np.float32)
