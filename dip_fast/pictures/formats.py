"""The formats of picture files: how each is recognised, and the functions that read and write it.

Importing this module loads no decoder: a format's library is imported when a file of that format is read or written.
A plugin adds a format of its own with ``FORMATS.register("pgm", Format("PGM", (".pgm",), ...))``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dip_fast.errors import UsageError
from dip_fast.lazily import lazily
from dip_fast.registry import Registry

if TYPE_CHECKING:
    from dip_fast.pictures.kind import Kind
    from dip_fast.pictures.picture import Extras

# With fewer pixels there is no image statistic left that a network could pick up before the noise.
MIN_SIDE = 16
# One float32 feature map of 128 channels takes 512 bytes a pixel, so this many pixels would take 64 GiB for one layer:
# a larger header is a mistake or a decompression bomb.  It stays under the 179 million at which Pillow itself refuses.
MAX_PIXELS = 2**27

MAX_CHANNELS = 256  # of a picture: a step's memory grows with them, and more are a mistake, or axes in another order

ORIENTATION_TAG = 274  # of EXIF, and of TIFF, whose directory EXIF's is


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
    colours: int | None = None


@dataclass(frozen=True)
class Format:
    """A format of picture files.

    Attributes
    ----------
    name : str
        The name that messages show.
    suffixes : tuple of str
        Suffixes of file names, in lower case with their dot, the usual one first.
    sniff : callable
        ``sniff(data) -> bool`` recognises a file by how it begins.
    read : callable
        ``read(data, keep_metadata) -> Decoded`` decodes a file.  It calls `check_size` before it decodes any pixel,
        raises a `UsageError` for what it refuses, and may raise anything for a damaged file.
    result_suffix : str
        The suffix of the file that a picture restored from this format is written to.
    write : callable, optional
        ``write(samples, kind, extras) -> bytes`` encodes a file without loss.  None where results are never written
        in this format.
    dtypes : tuple of str
        The dtypes of the samples that `write` can encode.
    read_page : callable, optional
        ``read_page(data, keep_metadata, page) -> Decoded`` decodes one page, counted from 1; None where files have one.
    """

    name: str
    suffixes: tuple[str, ...]
    sniff: Callable[[bytes], bool]
    read: Callable[[bytes, bool], Decoded]
    result_suffix: str
    write: Callable[[np.ndarray, Kind, Extras], bytes] | None = None
    dtypes: tuple[str, ...] = ()
    read_page: Callable[[bytes, bool, int], Decoded] | None = None


def _begins_with(*marks: bytes) -> Callable[[bytes], bool]:
    return lambda data: data.startswith(marks)


_read_with_pillow = lazily("dip_fast.pictures.raster:read")

FORMATS: Registry[Format] = Registry(
    "picture format",
    {
        "png": Format(
            "PNG",
            (".png",),
            sniff=_begins_with(b"\x89PNG\r\n\x1a\n"),
            read=_read_with_pillow,
            result_suffix=".png",
            write=lazily("dip_fast.pictures.raster:write_png"),
            dtypes=("uint8", "uint16"),
        ),
        "jpeg": Format(
            "JPEG",
            (".jpg", ".jpeg"),
            sniff=_begins_with(b"\xff\xd8\xff"),
            read=_read_with_pillow,
            result_suffix=".png",
        ),
        "tiff": Format(
            "TIFF",
            (".tif", ".tiff"),
            sniff=_begins_with(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),  # in either byte order; + is BigTIFF
            read=lazily("dip_fast.pictures.tiff:read"),
            result_suffix=".tif",
            write=lazily("dip_fast.pictures.tiff:write"),
            dtypes=("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"),
            read_page=lazily("dip_fast.pictures.tiff:read"),
        ),
        "bmp": Format(
            "BMP",
            (".bmp",),
            sniff=_begins_with(b"BM"),
            read=_read_with_pillow,
            result_suffix=".png",
        ),
        "webp": Format(
            "WebP",
            (".webp",),
            sniff=lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP",
            read=_read_with_pillow,
            result_suffix=".png",
        ),
    },
)


def recognised(data: bytes) -> Format:
    """Return the format of a file's content: the first that recognises it.

    Raises
    ------
    UsageError
        If none does; it names those that there are.
    """
    for format_ in FORMATS.values():
        if format_.sniff(data):
            return format_
    names = either(format_.name for format_ in FORMATS.values())
    raise UsageError(f"it is not a {names} picture, or its header is damaged; convert it to one of these")


def writer(suffix: str) -> Format | None:
    """Return the format in which results of a suffix are written, or None."""
    return next((found for found in FORMATS.values() if found.write is not None and suffix in found.suffixes), None)


def written_suffixes(dtype: str | None = None) -> list[str]:
    """List the usual suffixes of the formats in which results are written: all, or those that can hold a dtype."""
    return [
        format_.suffixes[0]
        for format_ in FORMATS.values()
        if format_.write is not None and (dtype is None or dtype in format_.dtypes)
    ]


def check_size(height: int, width: int) -> None:
    """Check that a picture is neither too small to restore nor larger than any memory.

    Raises
    ------
    UsageError
        If it is.
    """
    if height * width > MAX_PIXELS:
        raise UsageError(f"it is {width}x{height} pixels, more than {MAX_PIXELS}; cut out the part to restore")
    if min(height, width) < MIN_SIDE:
        raise UsageError(f"it is {width}x{height} pixels; a picture must have at least {MIN_SIDE}x{MIN_SIDE}")


def gray_where_possible(rgb: np.ndarray, icc_profile: bytes | None) -> np.ndarray:
    """Drop to one channel, without loss, where a palette held grays only; an RGB profile would not fit a gray file."""
    is_gray = icc_profile is None and (rgb == rgb[..., :1]).all()
    return rgb[..., :1] if is_gray else rgb


def either(words: Any) -> str:
    """Join words as a choice: ``a, b or c``."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else str(last)
