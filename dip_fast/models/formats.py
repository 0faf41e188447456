"""What all model files share: the formats, what is written beside the program, and how two pictures are compared.

Needs numpy alone.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import zlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dip_fast.pictures.samples import to_dtype

SCHEMA = 2  # the latest that is read; a file is of the first that can hold its program, `Program.schema`


@dataclass(frozen=True)
class Format:
    """A kind of model file.

    Attributes
    ----------
    suffix : str
    device : str
        Where it can be drawn.
    replayed_by : str
    runs_code : bool
        Whether opening such a file may run code of its writer's.
    """

    suffix: str
    device: str
    replayed_by: str
    runs_code: bool


FORMATS = {
    "onnx": Format(".onnx", "cpu, cuda", "onnxruntime alone, any ONNX engine, dip-fast replay", False),
    "torchscript": Format(".pt", "cpu", "libtorch (C++) or PyTorch, dip-fast replay --trust", True),
    "pt2": Format(".pt2", "cpu", "PyTorch (torch.export.load), dip-fast replay --trust", True),
}

# Between engines, which add in another order.  As found: docs/notes/export.md.
FLOAT_TOLERANCE = 2e-5  # of the range
FRACTION_TOLERANCE = 0.005  # of the 8-bit values that may be a level apart
KINDS_OF_ALPHA = ("unassalpha", "assocalpha", "unspecified")


@dataclass(frozen=True)
class Kind:
    """What a picture's file is, apart from its pixels.

    Attributes
    ----------
    name : str
        The picture's file name.
    width, height, channels : int
        Channels without alpha.
    dtype : {"uint8", "uint16", "float32"}
    value_range : tuple of float
    alpha : str, optional
        What kind of alpha goes along, untouched: one of `KINDS_OF_ALPHA`.
    suffix : {".png", ".tif"}
    orientation : int
        1: upright, always.
    """

    name: str
    width: int
    height: int
    channels: int
    dtype: str
    value_range: tuple[float, float]
    alpha: str | None = None
    suffix: str = ".png"
    orientation: int = 1

    @property
    def bits(self) -> int:
        """Bits of a sample."""
        return 8 * np.dtype(self.dtype).itemsize

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "bit_depth": self.bits}

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Kind:
        """From JSON; raises a ValueError where something is none of what it should be."""
        low, high = facts["value_range"]
        kind = cls(
            **{
                name: facts[name]
                for name in ("name", "width", "height", "channels", "dtype", "alpha", "suffix", "orientation")
            },
            value_range=(float(low), float(high)),
        )
        sides = (kind.width, kind.height)
        fits = (
            isinstance(kind.name, str)
            and all(type(side) is int and 0 < side < 2**20 for side in sides)
            and kind.channels in (1, 3)
            and kind.dtype in ("uint8", "uint16", "float32")
            and (kind.alpha is None or kind.alpha in KINDS_OF_ALPHA)
            and kind.suffix in (".png", ".tif")
            and (kind.suffix == ".tif" or kind.dtype != "float32")
            and kind.orientation == 1
            and math.isfinite(high - low)
            and low < high
        )
        if not fits:
            raise ValueError("the description of the picture is damaged")
        return kind


def tolerance(kind: Kind) -> dict[str, Any]:
    """How far another engine, or another machine, may be off.

    A float output that is off by 2e-5 of the range can move a sample to the next level, but not farther, in 8 bits, and
    seldom; in 16 bits two levels far, and often; float samples are the float output.
    """
    low, high = kind.value_range
    levels = None if kind.dtype == "float32" else math.ceil(FLOAT_TOLERANCE * (high - low))
    return {
        "float": FLOAT_TOLERANCE,
        "levels": levels,
        "fraction": FRACTION_TOLERANCE if kind.dtype == "uint8" else 1.0,
    }


@dataclass(frozen=True)
class Difference:
    """How one drawn picture differs from another.

    Attributes
    ----------
    same : bool
        Whether the samples agree byte for byte.
    within : bool
        Whether they are within the tolerance.
    largest : float
        Largest difference of two samples, in samples' units: levels of an integer picture.
    samples, pixels : int
        How many samples and how many pixels differ.
    fraction : float
        The former, of all.
    worst : tuple of int, optional
        Row, column and channel, from 0, of the largest difference.
    box : tuple of int, optional
        First and last row, first and last column of what differs.
    """

    same: bool
    within: bool
    largest: float
    samples: int
    pixels: int
    fraction: float
    worst: tuple[int, int, int] | None
    box: tuple[int, int, int, int] | None

    def text(self) -> str:
        """Say it in words."""
        if self.same or self.worst is None or self.box is None:
            return "no sample differs"
        row, column, channel = self.worst
        top, bottom, left, right = self.box
        return (
            f"{self.pixels} pixels ({self.fraction:.3%} of the values) differ, by {self.largest:g} at most "
            f"(row {row}, column {column}, channel {channel}), all in rows {top}-{bottom}, columns {left}-{right}"
        )


def compare(output: np.ndarray, expected: np.ndarray, kind: Kind, allowed: dict[str, Any]) -> Difference:
    """Compare a float output with the samples that were drawn from another one.

    Parameters
    ----------
    output : ndarray
        float32, ``(H, W, C)``, in the picture's range.
    expected : ndarray
        Samples, of the picture's dtype.
    kind : Kind
    allowed : dict
        As `tolerance` gives it.

    Notes
    -----
    The other float output, ``e``, is not at hand; but it was rounded to ``expected``, so it lies within half a level
    of it, and ``|output - e| <= t`` implies ``|output - expected| <= t + 1/2``.  That is asked for beside the bounds
    on levels.
    """
    samples = to_dtype(output, np.dtype(kind.dtype))
    low, high = kind.value_range
    # In float64 no difference of samples is rounded, or wraps around.
    distance = np.abs(samples.astype(np.float64) - expected)
    differs = samples != expected
    half = 0.5 if allowed["levels"] is not None else 0.0
    clipped = output.astype(np.float64) if not half else np.clip(output, 0, np.iinfo(kind.dtype).max).astype(float)
    # One rounding of the float output itself, of float32, is not held against it.
    rounding = float(np.spacing(np.float32(max(abs(low), abs(high)))))
    near = bool((np.abs(clipped - expected) <= half + allowed["float"] * (high - low) + rounding).all())
    levels = allowed["levels"]
    fraction = float(differs.mean())
    within = near and (levels is None or (distance.max() <= levels and fraction <= allowed["fraction"]))
    worst = box = None
    if differs.any():
        row, column, channel = (int(i) for i in np.unravel_index(int(distance.argmax()), distance.shape))
        worst = (row, column, channel)
        rows, columns = np.nonzero(differs.any(axis=2))
        box = (int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max()))
    return Difference(
        same=not differs.any(),
        within=within,
        largest=float(distance.max()),
        samples=int(differs.sum()),
        pixels=int(differs.any(axis=2).sum()),
        fraction=fraction,
        worst=worst,
        box=box,
    )


def digest(*arrays: np.ndarray) -> str:
    """SHA-256 of the arrays' bytes, one after the other, little-endian, last axis fastest."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())
    return found.hexdigest()


def pack(array: np.ndarray) -> str:
    """Compress samples ``(H, W, ...)`` without loss: differences along the rows, byte by byte, zlib, base64."""
    whole = np.ascontiguousarray(array)
    numbers = whole.view(f"u{whole.dtype.itemsize}")
    differences = np.diff(numbers, axis=1, prepend=numbers[:, :1] * 0)  # wraps around, as does its inverse
    planes = differences.astype(differences.dtype.newbyteorder("<")).view(np.uint8).reshape(-1, whole.dtype.itemsize)
    return base64.b64encode(zlib.compress(planes.T.tobytes())).decode()


def unpack(text: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Undo `pack`; no more is ever decompressed than the shape says.

    Raises
    ------
    ValueError
        If the text holds anything else.
    """
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    try:
        stream = zlib.decompressobj()
        data = stream.decompress(base64.b64decode(text, validate=True), size)
        more = stream.decompress(stream.unconsumed_tail, 1)  # 0 would mean: all
    except (binascii.Error, zlib.error, UnicodeEncodeError) as error:
        raise ValueError("packed samples are damaged") from error
    if len(data) != size or more or not stream.eof:
        raise ValueError("packed samples are not as many as they should be")
    planes = np.frombuffer(data, np.uint8).reshape(kind.itemsize, -1)
    numbers = np.ascontiguousarray(planes.T).view(f"<u{kind.itemsize}").astype(f"u{kind.itemsize}").reshape(shape)
    return np.cumsum(numbers, axis=1, dtype=numbers.dtype).view(kind)
