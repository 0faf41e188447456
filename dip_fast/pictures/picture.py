"""Pictures in and out: one file becomes a `Picture`, and a restored image becomes a file of the same kind.

A file is read whole or refused: nothing partial, nothing repaired in silence, and every refusal is one `UsageError` of
one line.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dip_fast.errors import DipFastError, UsageError
from dip_fast.pictures import codecs as _codecs
from dip_fast.pictures.codecs import MAX_PIXELS
from dip_fast.pictures.samples import from_unit, to_unit, value_range

_MAX_BYTES = 32 * MAX_PIXELS  # four float64 samples a pixel; a longer file is refused before it fills the memory

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


@dataclass(frozen=True, eq=False)
class Picture:
    """A file's content with what is needed to write it back as it came.

    Attributes
    ----------
    name : str
        File name without its folder; ``"stdin"`` for bytes.
    image : numpy.ndarray
        float32, ``(H, W, C)`` with C 1 or 3, upright, scaled so that `value_range` maps to [0, 1].
    dtype : numpy.dtype
        Of the samples: uint8, uint16 or float32.
    value_range : tuple of float
        The sample values that 0 and 1 of `image` stand for.
    alpha : numpy.ndarray or None
        ``(H, W)`` in `dtype`, upright, its values untouched.
    icc_profile : bytes or None
        As found in the file.
    exif : bytes or None
        A TIFF-structured EXIF block, only when metadata is kept: orientation 1, no thumbnail.
    suffix : str
        Of the file that a result is written to: ``".tif"`` for TIFF input, ``".png"`` otherwise.
    notes : tuple of str
        What was converted, one sentence each.
    alpha_kind : str
        How TIFF calls the alpha: ``"unassalpha"`` (plain), ``"assocalpha"`` (colours are premultiplied) or
        ``"unspecified"``.
    """

    name: str
    image: np.ndarray
    dtype: np.dtype
    value_range: tuple[float, float]
    alpha: np.ndarray | None
    icc_profile: bytes | None
    exif: bytes | None
    suffix: str
    notes: tuple[str, ...]
    alpha_kind: str = "unassalpha"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def channels(self) -> int:
        """1 for gray, 3 for RGB."""
        return self.image.shape[2]


def read_picture(
    source: str | os.PathLike[str] | bytes, *, name: str | None = None, keep_metadata: bool = False
) -> Picture:
    """Read one picture.

    Parameters
    ----------
    source : str, os.PathLike or bytes
        A PNG, JPEG, TIFF, BMP or WebP file, or its content.
    name : str, optional
        What to call it in messages and in the result; its file name, or ``"stdin"`` for bytes, when left out.
    keep_metadata : bool
        Keep the EXIF data (not its thumbnail) for the result; the ICC profile is always kept.

    Returns
    -------
    Picture
        Turned upright as its EXIF orientation asks.

    Raises
    ------
    UsageError
        In one line, where the file is missing, unreadable, damaged or cut short, smaller than 16x16 or larger than
        `MAX_PIXELS`, CMYK, animated or of several pages, of more than four channels, holds NaN or infinite samples,
        or samples that neither 16-bit integers nor 32-bit floats can hold.
    """
    if isinstance(source, bytes):
        label = name = name or "stdin"
    else:
        label = name or os.fspath(source)
        name = name or Path(source).name
    try:
        data = source if isinstance(source, bytes) else _file_content(Path(source))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what is checked here: size, damaged EXIF
            return _picture(data, _printable(name), keep_metadata)
    except UsageError as error:
        raise UsageError(_printable(f"cannot read {label}: {error}")) from error.__cause__
    except Exception as error:  # whatever a decoder raises on damaged data; there are too many kinds to name
        text = f"cannot read {label}: it is damaged or cut short ({error or type(error).__name__}); get an intact copy"
        raise UsageError(_printable(text)) from error


def read_mask(source: str | os.PathLike[str] | bytes, size: tuple[int, int]) -> np.ndarray:
    """Read a mask: white is known, black is to be filled in.

    Parameters
    ----------
    source : str, os.PathLike or bytes
        As for `read_picture`.
    size : tuple of int
        Height and width that the mask must have.

    Returns
    -------
    numpy.ndarray
        bool, ``(H, W)``; True where the mean of the channels reaches half of the value range.

    Raises
    ------
    UsageError
        Where the file cannot be read, differs in size, is partly transparent or leaves nothing known.
    """
    mask = read_picture(source)
    if mask.size != tuple(size):
        raise UsageError(
            f"the mask {mask.name} is {_by(mask.size)} pixels but the picture is {_by(size)}: "
            "draw it on a copy of the picture"
        )
    if mask.alpha is not None and mask.alpha.min() != mask.alpha.max():
        raise UsageError(f"the mask {mask.name} is partly transparent, which leaves open what is known: flatten it")
    known = mask.image.mean(axis=2) >= 0.5
    if not known.any():
        low, high = mask.value_range
        raise UsageError(
            f"the mask {mask.name} leaves nothing known: known pixels must be white, "
            f"at least {low + (high - low) / 2:g} in its range of {low:g} to {high:g}"
        )
    return known


def to_samples(image: np.ndarray, picture: Picture) -> np.ndarray:
    """Turn an image back into samples of the picture's file.

    Parameters
    ----------
    image : numpy.ndarray
        Float, 0 and 1 standing for the ends of ``picture.value_range``.
    picture : Picture
        Gives the dtype and the value range.

    Returns
    -------
    numpy.ndarray
        Of the image's shape, in ``picture.dtype``.  Integers are rounded to nearest and clipped to what the dtype
        holds; floats keep what lies outside the value range.

    Raises
    ------
    ValueError
        Where `image` holds NaN.

    Notes
    -----
    An untouched image gives back identical uint8 and uint16 samples: the float32 rounding of `Picture.image` is at
    most 2**-24 of the range, under a hundredth of one step.  Float samples come back identical when the value range
    is (0, 1), and otherwise within a few float32 roundings of the range.
    """
    return from_unit(image, picture.value_range, picture.dtype)


def encode_picture(image: np.ndarray, picture: Picture, *, suffix: str | None = None) -> bytes:
    """Encode an image as a file of the picture's bit depth and kind.

    Parameters
    ----------
    image : numpy.ndarray
        Float, ``(H, W, C)`` with the picture's channels, in [0, 1].  H and W may differ from the picture's where it
        has no alpha.
    picture : Picture
        Gives bit depth, value range, alpha, ICC profile and kept EXIF data.
    suffix : str, optional
        ``".png"``, ``".tif"`` or ``".tiff"``; ``picture.suffix`` when left out.

    Returns
    -------
    bytes
        The file's content, losslessly compressed.

    Raises
    ------
    UsageError
        For another suffix, or where PNG cannot hold the picture: float samples or premultiplied alpha.
    ValueError
        Where the image's channels, or its size beside an alpha, are not the picture's.
    """
    return encode_samples(to_samples(image, picture), picture, suffix=suffix)


def encode_samples(samples: np.ndarray, picture: Picture, *, suffix: str | None = None) -> bytes:
    """Encode samples as `encode_picture` does an image.

    Parameters
    ----------
    samples : numpy.ndarray
        ``(H, W, C)``, of the picture's dtype and channels.
    picture : Picture
        Gives alpha, ICC profile and kept EXIF data.
    suffix : str, optional
        As for `encode_picture`.

    Raises
    ------
    UsageError, ValueError
        As `encode_picture`.
    """
    suffix = (picture.suffix if suffix is None else suffix).lower()
    if suffix not in (".png", ".tif", ".tiff"):
        raise UsageError(f'results are not written as "{suffix}": name the file .png or .tif')
    if samples.ndim != 3 or samples.shape[2] != picture.channels:
        raise ValueError(f"image must be (H, W, {picture.channels}), got {samples.shape}")
    if picture.alpha is not None:
        if picture.alpha.shape != samples.shape[:2]:
            raise ValueError(f"image must be {picture.alpha.shape} as its alpha is, got {samples.shape[:2]}")
        samples = np.dstack([samples, picture.alpha])
    if suffix != ".png":
        return _codecs.encode_tiff(
            samples, None if picture.alpha is None else picture.alpha_kind, picture.icc_profile, picture.exif
        )
    if picture.dtype.kind == "f":
        raise UsageError("PNG cannot hold float samples: name the result .tif")
    if picture.alpha is not None and picture.alpha_kind == "assocalpha":
        raise UsageError("PNG cannot hold premultiplied alpha: name the result .tif")
    return _codecs.encode_png(samples, picture.icc_profile, picture.exif)


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that a crash leaves either the old content or the new one, never a part.

    Parameters
    ----------
    path : str or os.PathLike
        A regular file or a free name in an existing folder; a symbolic link is followed.
    data : bytes
        The whole content.

    Raises
    ------
    DipFastError
        Where the system refuses; nothing is left behind.
    """
    target = Path(os.path.realpath(path))
    # A short name of its own: a suffix on a name of the longest length allowed would be too long.
    temporary = target.with_name(f".dip-fast-{secrets.token_hex(8)}.tmp")
    try:
        if target.exists() and not target.is_file():
            raise OSError("it is not a regular file")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        text = f"cannot write {os.fspath(path)}: {error.strerror or error}; choose another place or make room there"
        raise DipFastError(_printable(text)) from error
    # The new name lives in the folder.  Some network file systems have no fsync for folders; the file is there anyway.
    with contextlib.suppress(OSError):
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _printable(text: str) -> str:
    """One line that any terminal takes: no line breaks, no undecodable bytes of a file name."""
    return " ".join(text.split()).encode("utf-8", "replace").decode("utf-8")


def _by(size: tuple[int, int]) -> str:
    """Width x height, the order in which image editors show a (height, width)."""
    return f"{size[1]}x{size[0]}"


def _file_content(path: Path) -> bytes:
    try:
        if path.stat().st_size <= _MAX_BYTES:
            return path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError("there is no such file; check the path") from error
    except IsADirectoryError as error:
        raise UsageError("it is a folder; name one picture file") from error
    except PermissionError as error:
        raise UsageError("permission denied; make the file readable for this user") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise UsageError(f"{getattr(error, 'strerror', None) or error}; check the path and the drive") from error
    raise UsageError(f"it is longer than any picture of {MAX_PIXELS} pixels; cut out the part to restore")


def _picture(data: bytes, name: str, keep_metadata: bool) -> Picture:
    if not data:
        raise UsageError("it is empty; get an intact copy")
    decoded = _codecs.decode(data, keep_metadata=keep_metadata)
    samples, alpha, notes = decoded.samples, decoded.alpha, decoded.notes
    if samples.dtype.kind == "f":
        _check_finite(samples if alpha is None else np.dstack([samples, alpha]))
    if samples.dtype.kind == "f" and samples.dtype != np.float32:
        notes.append(f"{8 * samples.dtype.itemsize}-bit float samples were converted to 32-bit float.")
        with np.errstate(over="ignore"):
            samples, alpha = samples.astype(np.float32), None if alpha is None else alpha.astype(np.float32)
        if not np.isfinite(samples).all():
            raise UsageError("its samples are too large for 32-bit float; scale them down")
    turn = _UPRIGHT.get(decoded.orientation, _UPRIGHT[1])
    samples = np.ascontiguousarray(turn(samples))
    limits = value_range(samples)
    exif = None
    if keep_metadata and decoded.exif is not None:
        try:
            exif = _codecs.kept_exif(decoded.exif)
        except Exception:  # Pillow parses it lazily and damage shows in many ways; the pixels are sound
            notes.append("The EXIF metadata is damaged and was left out.")
    return Picture(
        name=name,
        image=to_unit(samples, limits),
        dtype=samples.dtype,
        value_range=limits,
        alpha=None if alpha is None else np.ascontiguousarray(turn(alpha)),
        icc_profile=decoded.icc_profile,
        exif=exif,
        suffix=decoded.suffix,
        notes=tuple(notes),
        alpha_kind=decoded.alpha_kind,
    )


def _check_finite(samples: np.ndarray) -> None:
    bad = ~np.isfinite(samples)
    if bad.any():
        row, column, channel = np.unravel_index(int(bad.argmax()), bad.shape)
        raise UsageError(
            f"{int(bad.sum())} of its {bad.size} samples are NaN or infinite, "
            f"the first at row {row}, column {column}, channel {channel} (counted from 0); replace them with numbers"
        )
