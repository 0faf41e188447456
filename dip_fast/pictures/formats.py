"""The formats of picture files: how each is recognised, and the functions that read and write it.

Importing this module loads no decoder: a format's library is imported when a file of that format is read or written.
A plugin adds a format of its own with ``FORMATS.register("ff", Format("farbfeld", (".ff",), ...))``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from dip_fast.errors import UsageError
from dip_fast.lazily import lazily
from dip_fast.pictures.foreign import advice
from dip_fast.pictures.format import Format, Library
from dip_fast.pictures.raw_structure import is_camera_raw
from dip_fast.registry import Registry

if TYPE_CHECKING:
    from dip_fast.pictures.kind import Kind

# With fewer pixels there is no image statistic left that a network could pick up before the noise.
MIN_SIDE = 16
# One float32 feature map of 128 channels takes 512 bytes a pixel, so this many pixels would take 64 GiB for one layer:
# a larger header is a mistake or a decompression bomb.  It stays under the 179 million at which Pillow itself refuses.
MAX_PIXELS = 2**27

MAX_CHANNELS = 256  # of a picture: a step's memory grows with them, and more are a mistake, or axes in another order

ORIENTATION_TAG = 274  # of EXIF, and of TIFF, whose directory EXIF's is


def _begins_with(*marks: bytes) -> Callable[[bytes], bool]:
    return lambda data: data.startswith(marks)


_read_with_pillow = lazily("dip_fast.pictures.raster:read")
_measure_with_pillow = lazily("dip_fast.pictures.raster:measure")
_ALL_DTYPES = ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
_ISO_MEDIA = b"ftyp"  # at the fifth byte; the brand that follows says what it holds


def _has_brand(*brands: bytes) -> Callable[[bytes], bool]:
    return lambda data: data[4:8] == _ISO_MEDIA and data[8:12] in brands


FORMATS: Registry[Format] = Registry(
    "picture format",
    {
        "png": Format(
            "PNG",
            (".png",),
            sniff=_begins_with(b"\x89PNG\r\n\x1a\n"),
            read=_read_with_pillow,
            measure=_measure_with_pillow,
            result_suffix=".png",
            write=lazily("dip_fast.pictures.raster:write_png"),
            dtypes=("uint8", "uint16"),
            alpha=("unassalpha", "unspecified"),
        ),
        "jpeg": Format(
            "JPEG",
            (".jpg", ".jpeg"),
            sniff=_begins_with(b"\xff\xd8\xff"),
            read=_read_with_pillow,
            measure=_measure_with_pillow,
            result_suffix=".png",
            write=lazily("dip_fast.pictures.raster:write_jpeg"),  # where a user names such a file
            dtypes=("uint8",),
            alpha=(),
        ),
        "raw": Format(  # before TIFF, whose structure most of them have
            "camera raw",
            (".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw", ".3fr", ".iiq"),
            sniff=lazily("dip_fast.pictures.raw_structure:is_camera_raw"),
            read=lazily("dip_fast.pictures.camera_raw:read"),
            result_suffix=".tif",
            library=Library("rawpy", "raw", "develop it to a 16-bit TIFF file first"),
        ),
        "tiff": Format(
            "TIFF",
            (".tif", ".tiff"),
            sniff=_begins_with(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),  # in either byte order; + is BigTIFF
            read=lazily("dip_fast.pictures.tiff:read"),
            measure=lazily("dip_fast.pictures.tiff:measure"),
            result_suffix=".tif",
            write=lazily("dip_fast.pictures.tiff:write"),
            dtypes=_ALL_DTYPES,
            read_page=lazily("dip_fast.pictures.tiff:read"),
            any_channels=True,
        ),
        "bmp": Format(
            "BMP",
            (".bmp",),
            sniff=_begins_with(b"BM"),
            read=_read_with_pillow,
            measure=_measure_with_pillow,
            result_suffix=".png",
        ),
        "webp": Format(
            "WebP",
            (".webp",),
            sniff=lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP",
            read=_read_with_pillow,
            measure=_measure_with_pillow,
            result_suffix=".png",
        ),
        "gif": Format(
            "GIF",
            (".gif",),
            sniff=_begins_with(b"GIF87a", b"GIF89a"),
            read=_read_with_pillow,
            measure=_measure_with_pillow,
            result_suffix=".png",
        ),
        "avif": Format(
            "AVIF",
            (".avif",),
            sniff=_has_brand(b"avif", b"avis"),
            read=_read_with_pillow,
            measure=_measure_with_pillow,
            result_suffix=".png",
        ),
        "jxl": Format(
            "JPEG XL",
            (".jxl",),
            sniff=_begins_with(b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"),
            read=lazily("dip_fast.pictures.jpeg_xl:read"),
            result_suffix=".png",
        ),
        "jp2": Format(
            "JPEG 2000",
            (".jp2", ".j2k", ".jpx"),
            sniff=_begins_with(b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n"),
            read=lazily("dip_fast.pictures.jpeg_2000:read"),
            result_suffix=".png",
        ),
        "pnm": Format(
            "PNM",
            (".pnm", ".pgm", ".ppm", ".pbm", ".pam"),
            sniff=lambda data: data[:1] == b"P" and data[1:2] in b"1234567" and data[2:3].isspace(),
            read=lazily("dip_fast.pictures.netpbm:read"),
            result_suffix=".pnm",
            write=lazily("dip_fast.pictures.netpbm:write"),
            dtypes=("uint8", "uint16"),
            alpha=("unassalpha", "unspecified"),
        ),
        "pfm": Format(
            "PFM",
            (".pfm",),
            sniff=lambda data: data[:2] in (b"Pf", b"PF") and data[2:3].isspace(),
            read=lazily("dip_fast.pictures.netpbm:read_floats"),
            result_suffix=".pfm",
            write=lazily("dip_fast.pictures.netpbm:write_floats"),
            dtypes=("float32",),
            alpha=(),
        ),
        "npy": Format(
            "NumPy",
            (".npy",),
            sniff=_begins_with(b"\x93NUMPY"),
            read=lazily("dip_fast.pictures.arrays:read"),
            measure=lazily("dip_fast.pictures.arrays:measure"),
            result_suffix=".npy",
            write=lazily("dip_fast.pictures.arrays:write"),
            dtypes=_ALL_DTYPES,
            any_channels=True,
            alpha=(),
        ),
        "npz": Format(
            "NumPy archive",
            (".npz",),
            sniff=lambda data: data[:4] == b"PK\3\4" and b".npy" in data[30:300],
            read=lazily("dip_fast.pictures.arrays:read"),
            measure=lazily("dip_fast.pictures.arrays:measure"),
            result_suffix=".npy",
            write=lazily("dip_fast.pictures.arrays:write_archive"),
            dtypes=_ALL_DTYPES,
            any_channels=True,
            alpha=(),
        ),
        "fits": Format(
            "FITS",
            (".fits", ".fit", ".fts"),
            sniff=_begins_with(b"SIMPLE  ="),
            read=lazily("dip_fast.pictures.fits:read"),
            measure=lazily("dip_fast.pictures.fits:measure"),
            result_suffix=".fits",
            write=lazily("dip_fast.pictures.fits:write"),
            dtypes=("uint8", "uint16", "float32", "float64"),
            alpha=(),
            library=Library("astropy", "astro", "save it as 32-bit float TIFF"),
        ),
        "heif": Format(
            "HEIF",
            (".heic", ".heif"),
            sniff=_has_brand(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
            read=lazily("dip_fast.pictures.heif:read"),
            result_suffix=".png",
            library=Library("pillow_heif", "heif", "save it as JPEG or PNG"),
        ),
        "exr": Format(
            "OpenEXR",
            (".exr",),
            sniff=_begins_with(b"\x76\x2f\x31\x01"),
            read=lazily("dip_fast.pictures.open_exr:read"),
            result_suffix=".exr",
            write=lazily("dip_fast.pictures.open_exr:write"),
            dtypes=("float32",),
            alpha=("assocalpha",),
            library=Library("OpenEXR", "exr", "save it as 32-bit float TIFF"),
        ),
        "mrc": Format(
            "MRC",
            (".mrc",),
            sniff=lambda data: data[208:212] == b"MAP ",
            read=lazily("dip_fast.pictures.mrc:read"),
            result_suffix=".mrc",
            write=lazily("dip_fast.pictures.mrc:write"),
            dtypes=("uint16", "float32"),
            gray_only=True,
            alpha=(),
            library=Library("mrcfile", "mrc", "save it as 32-bit float TIFF"),
        ),
    },
)


def recognised(data: bytes, name: str = "") -> Format:
    """Return the format of a file's content: the first that recognises it.

    Parameters
    ----------
    data : bytes
        The file's content.
    name : str
        The file's name.  TIFF by its structure is camera raw where it has such a name and a camera wrote it.

    Raises
    ------
    UsageError
        If none does: with what the file is, where that is known, and otherwise with the formats that there are.
    """
    for format_ in FORMATS.values():
        if format_.sniff(data):
            raw, is_named_raw = FORMATS["raw"], PurePath(name).suffix.lower() in FORMATS["raw"].suffixes
            return raw if format_ is FORMATS["tiff"] and is_named_raw and is_camera_raw(data, named=True) else format_
    if (text := advice(data)) is not None:
        raise UsageError(text)
    names = either(format_.name for format_ in FORMATS.values())
    raise UsageError(f"it is not a {names} picture, or its header is damaged; convert it to one of these")


def writer(suffix: str) -> Format | None:
    """Return the format in which results of a suffix are written, or None."""
    return next((found for found in FORMATS.values() if found.write is not None and suffix in found.suffixes), None)


def written_suffixes(kind: Kind | None = None) -> list[str]:
    """List the usual suffixes of the formats in which results are written: all, or those that can hold a kind."""
    return [
        format_.suffixes[0]
        for format_ in FORMATS.values()
        if format_.write is not None and (kind is None or format_.holds(kind))
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
