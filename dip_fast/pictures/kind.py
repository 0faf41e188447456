"""The kind of a picture: what its file is, apart from the pixels.  Needs numpy alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dip_fast.pictures import formats
from dip_fast.pictures.ranges import Limits, of_result, of_samples
from dip_fast.pictures.samples import from_unit, to_dtype, to_unit

KINDS_OF_ALPHA = ("unassalpha", "assocalpha", "unspecified")
DTYPES = ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
IN_MODELS = ("uint8", "uint16", "float32")  # dtypes that samples in model files' graphs have; the others are float32


@dataclass(frozen=True)
class Kind:
    """What a picture's file is, apart from its pixels.

    A result may have another size or other channels than the picture that was read: its kind is
    ``dataclasses.replace(picture.kind, width=..., height=...)``.

    Attributes
    ----------
    name : str
        The picture's file name without its folder; ``"stdin"`` for bytes.
    width, height, channels : int
        The size in pixels; 1 channel for gray, 3 for RGB, without alpha.
    dtype : {"uint8", "uint16", "float32"}
        The type of a sample.
    value_range : tuple of float
        The samples that 0 and 1 of an image stand for.
    alpha : {"unassalpha", "assocalpha", "unspecified"}, optional
        The kind of alpha that goes along untouched, in TIFF's words: plain, colours are premultiplied, or not stated.
        None where there is no alpha.
    suffix : str
        The suffix of the file that a result is written to: ``".tif"`` for TIFF input, ``".png"`` for other formats of
        this package.
    orientation : int
        EXIF's orientation; 1, upright, always.
    channel_ranges : tuple of tuple of float, optional
        What 0 and 1 stand for in each channel, within `value_range`, where channels differ: those of very different
        brightness.  Both are one for a channel that is constant.
    colours : int, optional
        How many of the channels, the first ones, are colours: 3 or 1.  By default 3 where there are 3 channels.
    """

    # In this order they stand in model files.
    name: str
    width: int
    height: int
    channels: int
    dtype: str
    value_range: tuple[float, float]
    alpha: str | None = None
    suffix: str = ".png"
    orientation: int = 1
    channel_ranges: tuple[tuple[float, float], ...] | None = None
    colours: int | None = None

    @property
    def is_rgb(self) -> bool:
        """Whether the first three channels are colours."""
        return (self.colours or self.channels) == 3

    @property
    def is_float(self) -> bool:
        """Whether samples are floats."""
        return self.dtype.startswith("float")

    @property
    def is_constant(self) -> bool:
        """Whether each channel has one value."""
        return self.channel_ranges is not None and all(low == high for low, high in self.channel_ranges)

    @property
    def limits(self) -> Limits:
        """The samples that 0 and 1 stand for: two floats, or two arrays with a value a channel."""
        return of_result(self.value_range, self.channel_ranges)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    @property
    def bits(self) -> int:
        """Bits of a sample."""
        return 1 if self.dtype == "bool" else 8 * np.dtype(self.dtype).itemsize

    def to_unit(self, samples: np.ndarray) -> np.ndarray:
        """Turn samples into a float32 image, in which 0 and 1 stand for the ends of the range."""
        return to_unit(samples, of_samples(self.value_range, self.channel_ranges))

    def to_samples(self, image: np.ndarray) -> np.ndarray:
        """Turn an image into samples of the file.

        Parameters
        ----------
        image : ndarray
            Floats of any shape, channels last; 0 and 1 stand for the ends of `value_range`, or of `channel_ranges`.

        Returns
        -------
        ndarray
            The image's shape, in `dtype`.  Integers are rounded to nearest and clipped to what the dtype holds; floats
            keep what lies outside the value range.

        Raises
        ------
        ValueError
            If `image` holds NaN.

        Notes
        -----
        An untouched image gives back identical uint8 and uint16 samples: the float32 rounding of `to_unit` is at most
        2**-24 of the range, under a hundredth of one step.  Float samples come back identical when the value range is
        (0, 1), and otherwise within a few float32 roundings of the range.
        """
        return from_unit(image, self.limits, np.dtype(self.dtype))

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """Turn floats that are in `value_range` already into samples, as `to_samples` does for those in [0, 1]."""
        return to_dtype(values, np.dtype(self.dtype))

    def facts(self) -> dict[str, Any]:
        """Return the kind as JSON holds it in a model file."""
        return {**asdict(self), "bit_depth": self.bits}

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Kind:
        """Return the kind that JSON from anywhere describes.

        Parameters
        ----------
        facts : dict
            What `facts` returned, or anything at all.

        Raises
        ------
        ValueError
            If a value is not one that `facts` can return, or no registered format writes such files.
        """
        low, high = facts["value_range"]
        names = ("name", "width", "height", "channels", "dtype", "alpha", "suffix", "orientation")
        ranges = facts.get("channel_ranges")
        if ranges is not None:
            ranges = tuple((float(first), float(last)) for first, last in ranges)
        kind = cls(
            **{name: facts[name] for name in names},
            value_range=(float(low), float(high)),
            channel_ranges=ranges,
            colours=facts.get("colours"),
        )
        format_ = formats.writer(kind.suffix)
        fits = (
            isinstance(kind.name, str)
            and all(type(side) is int and 0 < side < 2**20 for side in kind.size)
            and type(kind.channels) is int
            and 0 < kind.channels <= formats.MAX_CHANNELS
            and kind.dtype in DTYPES
            and (kind.alpha is None or kind.alpha in KINDS_OF_ALPHA)
            and format_ is not None
            and kind.suffix == format_.suffixes[0]
            and kind.dtype in format_.dtypes
            and kind.orientation == 1
            and math.isfinite(high - low)
            and low < high
            and (ranges is None or len(ranges) == kind.channels)
            and all(low <= first <= last <= high for first, last in ranges or ())
            and kind.colours in (None, 1, 3)
            and (kind.colours or 1) <= kind.channels
        )
        if not fits:
            raise ValueError("the description of the picture is damaged")
        return kind
