"""Pictures in: one file becomes a `Picture`.

A file is read whole or refused: nothing is read in part, nothing is repaired in silence, and every refusal is one
`UsageError` of one line.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dip_fast.errors import UsageError
from dip_fast.pictures import formats
from dip_fast.pictures.aside import hidden_by, set_aside
from dip_fast.pictures.files import one_line, read_regular
from dip_fast.pictures.foreign import is_address
from dip_fast.pictures.formats import MAX_PIXELS
from dip_fast.pictures.kind import Kind
from dip_fast.pictures.picture import Picture
from dip_fast.pictures.ranges import Range, filled, find
from dip_fast.pictures.upright import extras_of, upright

# Decoders report oddities through logging, which prints to stderr where nobody listens; what matters is checked here.
for _name in ("tifffile", "imagecodecs", "PIL"):
    logging.getLogger(_name).addHandler(logging.NullHandler())

MAX_BYTES = 32 * MAX_PIXELS  # four float64 samples a pixel; a longer file is refused before it fills the memory
_TOO_LONG = f"it is longer than any picture of {MAX_PIXELS} pixels; cut out the part to restore"
_CHUNK = 2**20


def read_picture(
    source: str | os.PathLike[str] | bytes,
    *,
    name: str | None = None,
    keep_metadata: bool = False,
    missing: bool = False,
    aside: Collection[str] = (),
    page: int | None = None,
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
    aside : collection of str
        What is set aside: ``"hidden"`` colours, which an alpha of 0 hides, and ``"outliers"``, samples so far outside
        the range of the others that these would be left less than an eighth of it (`dip_fast.pictures.ranges.find`).
        The image has an estimate in their place, and `Extras.aside` the samples.
    page : int, optional
        Which page of a file that has several, counted from 1.
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
        `MAX_PIXELS`, CMYK, animated, of several pages where none is chosen, of more than `MAX_CHANNELS` channels, holds
        NaN or infinite samples that may not be missing, or samples that 32-bit floats cannot tell apart.
    """
    if isinstance(source, bytes):
        label = name = name or "stdin"
    else:
        label = name or os.fspath(source)
        name = name or Path(source).name
    with naming(label), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what is checked here: size, damaged EXIF
        if content is None:
            content = source if isinstance(source, bytes) else _file_content(Path(source))
        return _picture(content, one_line(name), keep_metadata, missing, aside, page)


def read_content(path: str | os.PathLike[str]) -> bytes:
    """Read the content of a picture's file.

    Raises
    ------
    UsageError
        If there is none, or it is no regular file, cannot be read, or is longer than any picture.
    """
    with naming(os.fspath(path)):
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
    with naming(name), warnings.catch_warnings():
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
def naming(label: str) -> Iterator[None]:
    """Raise whatever is wrong with a file as one line that names it."""
    try:
        yield
    except UsageError as error:
        # The message as it is, with the arguments that it names.
        template, parts = (error.template, error.parts) if error.parts else ("{}", (one_line(str(error)),))
        raise UsageError(f"cannot read {{}}: {template}", one_line(label), *parts) from error.__cause__
    except ModuleNotFoundError:  # the fault of the installation, and not of the file
        raise
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
    source: str | os.PathLike[str] | bytes,
    size: tuple[int, int],
    *,
    white_is_known: bool = True,
    name: str | None = None,
    notes: list[str] | None = None,
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
    name : str, optional
        As for `read_picture`.
    notes : list of str, optional
        Gets a line where the mask looks like a photograph.

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
    mask = read_picture(source, name=name)
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
    gray = mask.image.mean(axis=2)
    if notes is not None and _is_shaded(gray):
        notes.append(
            f"The mask {one_line(mask.name)} has many grays, as a photograph has: where it is "
            f"{'lighter' if white_is_known else 'darker'} than half of its range, the picture is taken for known; give "
            "a black and white one if that is not meant."
        )
    known = (gray >= 0.5) == white_is_known
    if not known.any():
        low, high = mask.kind.value_range
        word, colour = ("at least", "white") if white_is_known else ("below", "black")
        raise UsageError(
            f"the mask {mask.name} leaves nothing known: known pixels must be {colour}, "
            f"{word} {low + (high - low) / 2:g} in its range of {low:g} to {high:g}"
        )
    return known


def _is_shaded(gray: np.ndarray) -> bool:
    """Whether a quarter of the pixels are neither nearly black nor nearly white, and of more than a few grays.

    The blurred edge of a mask is less, and that of an editor's selection has few.
    """
    between = gray[(gray > 0.1) & (gray < 0.9)]
    return 4 * between.size > gray.size and np.unique((255 * between).astype(np.uint8)).size > 16


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


def _picture(
    data: bytes, name: str, keep_metadata: bool, may_miss: bool, aside: Collection[str], page: int | None
) -> Picture:
    format_, decoded, missing = upright(data, name, keep_metadata=keep_metadata, may_miss=may_miss, page=page)
    samples, alpha = decoded.samples, decoded.alpha
    hidden = hidden_by(alpha, decoded) if "hidden" in aside else None
    found = find(samples, hidden, outliers="outliers" in aside)
    _check_range(found, samples.dtype)
    height, width, channels = samples.shape
    kind = Kind(
        name,
        width,
        height,
        channels,
        samples.dtype.name,
        found.whole,
        alpha=None if alpha is None else decoded.alpha_kind,
        suffix=result_suffix(format_, samples.dtype.name, channels),
        channel_ranges=found.channels,
        colours=decoded.colours,
    )
    extras = extras_of(decoded, keep_metadata=keep_metadata)
    image = kind.to_unit(samples)
    off = set_aside(hidden, found, decoded)
    if off is not None:
        image = filled(image, off)
        extras = replace(extras, aside=(off, np.where(off, samples, np.zeros((), samples.dtype))))
    return Picture(
        kind,
        image,
        extras,
        tuple(decoded.notes),
        missing=missing,
        jpeg=data if format_ is formats.FORMATS["jpeg"] else None,
    )


def result_suffix(format_: formats.Format, dtype: str, channels: int) -> str:
    """Choose the suffix of the result: that of the format, or of TIFF where that cannot hold the samples."""
    target = formats.writer(format_.result_suffix)
    holds = target is not None and dtype in target.dtypes and target.holds_channels(channels, is_rgb=channels == 3)
    return format_.result_suffix if holds else ".tif"


def _check_range(found: Range, dtype: np.dtype) -> None:
    """Refuse samples of a wide dtype that differ by less than what 32-bit floats, in which models draw, tell apart."""
    constant = found.channels is not None and all(first == last for first, last in found.channels)
    if dtype.itemsize < 4 or dtype == np.float32 or constant:
        return
    low, high = found.whole
    if float(np.spacing(np.float32(max(abs(low), abs(high))))) > (high - low) * 2.0**-12:
        raise UsageError(
            f"its samples, from {low:.9g} to {high:.9g}, are too close to each other for 32-bit float; subtract "
            f"{low:.9g} or scale them"
        )
