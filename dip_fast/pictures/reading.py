"""Pictures in: one file becomes a `Picture`.

A file is read whole or refused: nothing is read in part, nothing is repaired in silence, and every refusal is one
`UsageError` of one line.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dip_fast.errors import UsageError
from dip_fast.pictures import formats
from dip_fast.pictures.files import one_line, read_regular
from dip_fast.pictures.foreign import is_address
from dip_fast.pictures.formats import MAX_PIXELS
from dip_fast.pictures.kind import Kind
from dip_fast.pictures.picture import Extras, Picture
from dip_fast.pictures.samples import value_range

# Decoders report oddities through logging, which prints to stderr where nobody listens; what matters is checked here.
for _name in ("tifffile", "imagecodecs", "PIL"):
    logging.getLogger(_name).addHandler(logging.NullHandler())

MAX_BYTES = 32 * MAX_PIXELS  # four float64 samples a pixel; a longer file is refused before it fills the memory
# A network may draw values some times the range beyond it, and a model file computes them in float32.
MAX_SAMPLE = float(np.finfo(np.float32).max) / 32
_TOO_LONG = f"it is longer than any picture of {MAX_PIXELS} pixels; cut out the part to restore"
_CHUNK = 2**20

# EXIF's orientation tag says how the stored picture was turned; each entry turns it upright.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def read_picture(
    source: str | os.PathLike[str] | bytes,
    *,
    name: str | None = None,
    keep_metadata: bool = False,
    missing: bool = False,
    content: bytes | None = None,
) -> Picture:
    """Read one picture.

    Parameters
    ----------
    source : str, os.PathLike or bytes
        A file of one of the formats in `dip_fast.pictures.FORMATS`, or its content.
    name : str, optional
        The name in messages and in the result; the file's name, or ``"stdin"`` for bytes, when left out.
    keep_metadata : bool
        Keep the EXIF data (not its thumbnail) for the result; the ICC profile is always kept.
    missing : bool
        Accept samples that are NaN or infinite, and mark them as missing.
    content : bytes, optional
        The content of the file that `source` names, where it was read before.

    Returns
    -------
    Picture
        Turned upright as its EXIF orientation asks.

    Raises
    ------
    UsageError
        In one line, where the file is missing, unreadable, damaged or cut short, smaller than 16x16 or larger than
        `MAX_PIXELS`, CMYK, animated or of several pages, of more than four channels, holds NaN or infinite samples that
        may not be missing, or samples that neither 16-bit integers nor 32-bit floats can hold.
    """
    if isinstance(source, bytes):
        label = name = name or "stdin"
    else:
        label = name or os.fspath(source)
        name = name or Path(source).name
    with _named(label), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what is checked here: size, damaged EXIF
        if content is None:
            content = source if isinstance(source, bytes) else _file_content(Path(source))
        return _picture(content, one_line(name), keep_metadata, missing)


def read_content(path: str | os.PathLike[str]) -> bytes:
    """Read the content of a picture's file.

    Raises
    ------
    UsageError
        If there is none, or it is no regular file, cannot be read, or is longer than any picture.
    """
    with _named(os.fspath(path)):
        return _file_content(Path(path))


def check_header(content: bytes, name: str) -> tuple[int, int, int] | None:
    """Check the format and the size of a picture before it is decoded.

    Parameters
    ----------
    content : bytes
        Of its file.
    name : str
        For messages.

    Returns
    -------
    tuple of int or None
        Height, width and channels; None where that shows only once it is decoded.

    Raises
    ------
    UsageError
        If it is of no format that can be read here, or too small or too large.
    """
    with _named(name), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not content:
            raise UsageError("it is empty; get an intact copy")
        format_ = formats.recognised(content, name)
        format_.require_library()
        if format_.measure is None:
            return None
        size = format_.measure(content)
        formats.check_size(*size[:2])
        return size


@contextlib.contextmanager
def _named(label: str) -> Iterator[None]:
    """Raise whatever is wrong with a file as one line that names it."""
    try:
        yield
    except UsageError as error:
        raise UsageError(one_line(f"cannot read {label}: {error}")) from error.__cause__
    except Exception as error:  # whatever a decoder raises on damaged data; there are too many kinds to name
        text = f"cannot read {label}: it is damaged or cut short ({error or type(error).__name__}); get an intact copy"
        raise UsageError(one_line(text)) from error


def read_stream(stream: BinaryIO) -> bytes:
    """Read a picture's content from a stream that may have no end.

    Parameters
    ----------
    stream : binary file
        Such as standard input.

    Returns
    -------
    bytes
        All of it; or its beginning, where no format recognises that, for `read_picture` to refuse.

    Raises
    ------
    UsageError
        If it is longer than any picture.
    """
    data = bytearray(stream.read(_CHUNK))
    start = bytes(data)
    if any(format_.sniff(start) for format_ in formats.FORMATS.values()):
        while chunk := stream.read(_CHUNK):
            data += chunk
            if len(data) > MAX_BYTES:
                raise UsageError(f"cannot read stdin: {_TOO_LONG}")
    return bytes(data)


def read_mask(
    source: str | os.PathLike[str] | bytes, size: tuple[int, int], *, white_is_known: bool = True
) -> np.ndarray:
    """Read a mask: white is known, black is to be filled in; or a layer, on which something is painted over.

    Parameters
    ----------
    source : str, os.PathLike or bytes
        As for `read_picture`.
    size : tuple of int
        Height and width that the mask must have.
    white_is_known : bool
        Otherwise white is to be filled in, and black is known.

    Returns
    -------
    numpy.ndarray
        bool, ``(H, W)``, True where the picture is known: where the mean of the channels reaches half of the value
        range, or is below it.  Of a mask that is partly transparent, where it is wholly so: any colour covers.

    Raises
    ------
    UsageError
        Where the file cannot be read, differs in size or leaves nothing known.
    """
    mask = read_picture(source)
    if mask.size != tuple(size):
        raise UsageError(
            f"the mask {mask.name} is {_by(mask.size)} pixels but the picture is {_by(size)}: "
            "draw it on a copy of the picture"
        )
    alpha = mask.extras.alpha
    if alpha is not None and alpha.min() != alpha.max():
        known = alpha == 0
        if not known.any():
            raise UsageError(f"the mask {mask.name} leaves nothing known: no pixel of it is wholly transparent")
        return known
    known = (mask.image.mean(axis=2) >= 0.5) == white_is_known
    if not known.any():
        low, high = mask.kind.value_range
        word, colour = ("at least", "white") if white_is_known else ("below", "black")
        raise UsageError(
            f"the mask {mask.name} leaves nothing known: known pixels must be {colour}, "
            f"{word} {low + (high - low) / 2:g} in its range of {low:g} to {high:g}"
        )
    return known


def _by(size: tuple[int, int]) -> str:
    """Width x height, the order in which image editors show a (height, width)."""
    return f"{size[1]}x{size[0]}"


def _file_content(path: Path) -> bytes:
    try:
        data = read_regular(path, MAX_BYTES)
    except UsageError:
        raise
    except FileNotFoundError as error:
        if is_address(os.fspath(path)):
            raise UsageError(
                "it is an address, and nothing is downloaded; save the picture and name its file"
            ) from error
        raise UsageError("there is no such file; check the path") from error
    except IsADirectoryError as error:
        raise UsageError("it is a folder; name one picture file") from error
    except PermissionError as error:
        raise UsageError("permission denied; make the file readable for this user") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise UsageError(f"{getattr(error, 'strerror', None) or error}; check the path and the drive") from error
    if data is None:
        raise UsageError(_TOO_LONG)
    return data


def _picture(data: bytes, name: str, keep_metadata: bool, may_miss: bool) -> Picture:
    if not data:
        raise UsageError("it is empty; get an intact copy")
    format_ = formats.recognised(data, name)
    format_.require_library()
    decoded = format_.read(data, keep_metadata)
    formats.check_size(*decoded.samples.shape[:2])
    missing = _fill_missing(decoded) if may_miss else None
    samples, alpha = _storable(decoded)
    turn = _UPRIGHT.get(decoded.orientation, _UPRIGHT[1])
    samples = np.ascontiguousarray(turn(samples))
    height, width, channels = samples.shape
    kind = Kind(
        name,
        width,
        height,
        channels,
        samples.dtype.name,
        value_range(samples),
        alpha=None if alpha is None else decoded.alpha_kind,
        suffix=_result_suffix(format_, samples.dtype.name),
    )
    extras = Extras(
        alpha=None if alpha is None else np.ascontiguousarray(turn(alpha)),
        icc_profile=decoded.icc_profile,
        exif=_kept_exif(decoded) if keep_metadata else None,
        geometry=None if decoded.geometry is None else decoded.geometry.turned(decoded.orientation),
        jpeg=decoded.jpeg,
    )
    return Picture(
        kind,
        kind.to_unit(samples),
        extras,
        tuple(decoded.notes),
        missing=None if missing is None else np.ascontiguousarray(turn(missing)),
        jpeg=data if format_ is formats.FORMATS["jpeg"] else None,
    )


def _result_suffix(format_: formats.Format, dtype: str) -> str:
    """Choose the suffix of the result: that of the format, or of TIFF where that cannot hold the samples."""
    target = formats.writer(format_.result_suffix)
    return format_.result_suffix if target is not None and dtype in target.dtypes else ".tif"


def _fill_missing(decoded: formats.Decoded) -> np.ndarray | None:
    """Put the mean of the others in the place of samples that are NaN or infinite; find the pixels that have one."""
    finite = np.isfinite(decoded.samples)
    if finite.all() or not finite.any():  # where nothing is there at all, the picture is refused
        return None
    mean = decoded.samples[finite].mean(dtype=np.float64)
    decoded.samples = np.where(finite, decoded.samples, mean.astype(decoded.samples.dtype))
    return ~finite.all(axis=2)


def _storable(decoded: formats.Decoded) -> tuple[np.ndarray, np.ndarray | None]:
    """Return samples and alpha in a dtype that results are written in: any float becomes float32."""
    samples, alpha = decoded.samples, decoded.alpha
    if samples.dtype.kind != "f":
        return samples, alpha
    whole = samples if alpha is None else np.dstack([samples, alpha])
    _check_finite(whole)
    if max(abs(float(whole.min())), abs(float(whole.max()))) > MAX_SAMPLE:
        raise UsageError("its samples are too large for 32-bit float; scale them down")
    if samples.dtype == np.float32:
        return samples, alpha
    decoded.notes.append(f"{8 * samples.dtype.itemsize}-bit float samples were converted to 32-bit float.")
    return samples.astype(np.float32), None if alpha is None else alpha.astype(np.float32)


def _check_finite(samples: np.ndarray) -> None:
    bad = ~np.isfinite(samples)
    if bad.any():
        row, column, channel = np.unravel_index(int(bad.argmax()), bad.shape)
        raise UsageError(
            f"{int(bad.sum())} of its {bad.size} samples are NaN or infinite, "
            f"the first at row {row}, column {column}, channel {channel} (counted from 0); replace them with numbers"
        )


def _kept_exif(decoded: formats.Decoded) -> bytes | None:
    """Return the EXIF block for the result, or None where there is none that can be kept."""
    if decoded.exif is None:
        return None
    from dip_fast.pictures import exif

    try:
        return exif.kept(decoded.exif)
    except Exception:  # Pillow parses it lazily and damage shows in many ways; the pixels are sound
        decoded.notes.append("The EXIF metadata is damaged and was left out.")
        return None
