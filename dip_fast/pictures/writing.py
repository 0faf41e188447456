"""Pictures out: an image, or its samples, becomes the content of a file."""

from __future__ import annotations

import numpy as np

from dip_fast.errors import UsageError
from dip_fast.pictures import formats
from dip_fast.pictures.kind import Kind
from dip_fast.pictures.picture import Extras


def encode_image(image: np.ndarray, kind: Kind, extras: Extras | None = None, *, suffix: str | None = None) -> bytes:
    """Encode an image as a file of a kind.

    Parameters
    ----------
    image : ndarray
        Floats, ``(H, W, C)``, in [0, 1].
    kind, extras, suffix
        As for `encode_samples`.

    Returns
    -------
    bytes
        The file's content, compressed without loss, but for JPEG.

    Raises
    ------
    UsageError, ValueError
        As `encode_samples`.
    """
    samples = kind.to_samples(image)
    return encode_samples(samples if extras is None else extras.put_back(samples), kind, extras, suffix=suffix)


def encode_samples(
    samples: np.ndarray, kind: Kind, extras: Extras | None = None, *, suffix: str | None = None
) -> bytes:
    """Encode samples as a file of a kind.

    Parameters
    ----------
    samples : ndarray
        ``(H, W, C)``, of the size, the channels and the dtype that `kind` names.
    kind : Kind
        The kind of the result.  It may differ in size and channels from that of the picture that was read.
    extras : Extras, optional
        Alpha (where ``kind.alpha`` says so), ICC profile and EXIF data that go into the file.
    suffix : str, optional
        That of a format in `FORMATS` that results are written in; ``kind.suffix`` when left out.

    Returns
    -------
    bytes
        The file's content, compressed without loss, but for JPEG.

    Raises
    ------
    UsageError
        For another suffix, or where the format cannot hold the picture: PNG has neither float samples nor
        premultiplied alpha.
    ValueError
        If the samples or the alpha are not as `kind` says.
    """
    extras = Extras() if extras is None else extras
    format_ = check_writable(kind, kind.suffix if suffix is None else suffix)
    assert format_.write is not None, "a format of results writes"
    wanted = (*kind.size, kind.channels)
    if samples.shape != wanted or samples.dtype != kind.dtype:
        raise ValueError(
            f"samples must be {wanted} of {kind.dtype} as their kind says, got {samples.shape} of {samples.dtype}"
        )
    check_alpha(kind, extras.alpha)
    return format_.write(samples, kind, extras)


def check_writable(kind: Kind, suffix: str) -> formats.Format:
    """Find the format of a suffix, and check that it can hold pictures of a kind.

    Raises
    ------
    UsageError
        As `encode_samples`, and where the format's library is missing.
    """
    format_ = formats.writer(suffix.lower())
    if format_ is None:
        places = formats.either(formats.written_suffixes())
        raise UsageError(f'results are not written as "{suffix}": name the file {places}')
    if not format_.holds(kind):
        places = formats.either(formats.written_suffixes(kind) or [".tif"])
        raise UsageError(f"{format_.name} cannot hold {_lacking(kind, format_)}: name the result {places}")
    format_.require_library()
    return format_


def _lacking(kind: Kind, format_: formats.Format) -> str:
    """Name what a format cannot hold of a kind."""
    if kind.dtype not in format_.dtypes:
        return f"{kind.dtype} samples"
    if not format_.holds_channels(kind.channels, is_rgb=kind.is_rgb):
        return "colour" if kind.channels == 3 and kind.is_rgb else f"{kind.channels} channels that are no RGB"
    return "premultiplied alpha" if kind.alpha == "assocalpha" and format_.alpha else "alpha"


def check_alpha(kind: Kind, alpha: np.ndarray | None) -> None:
    """Check that an alpha fits a kind: there where it names one, of its size and dtype.

    Raises
    ------
    ValueError
        If it does not.
    """
    if alpha is None and kind.alpha is None:
        return
    if alpha is None or kind.alpha is None:
        held = "no" if alpha is None else "an"
        raise ValueError(f"kind.alpha is {kind.alpha!r} but extras hold {held} alpha: name and pass both, or neither")
    if alpha.shape != kind.size or alpha.dtype != kind.dtype:
        raise ValueError(
            f"alpha must be {kind.size} of {kind.dtype} as the result is, got {alpha.shape} of {alpha.dtype}: "
            "resize it, or leave it out of both kind and extras"
        )
