"""From the content of a file to checked samples, turned upright."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dip_fast.errors import Argument, UsageError
from dip_fast.pictures import formats
from dip_fast.pictures.decoded import Decoded
from dip_fast.pictures.picture import Extras

# A network may draw values some times the range beyond it, and a model file computes them in float32.
MAX_SAMPLE = float(np.finfo(np.float32).max) / 32

# EXIF's orientation tag says how the stored picture was turned; each entry turns it upright.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def upright(
    data: bytes, name: str, *, keep_metadata: bool = False, may_miss: bool = False, page: int | None = None
) -> tuple[formats.Format, Decoded, np.ndarray | None]:
    """Decode a file, check its samples, and turn them upright.

    Returns
    -------
    format_ : Format
    decoded : Decoded
        Its orientation is that of the stored picture.
    missing : ndarray or None
        Pixels with a sample that is NaN or infinite, bool ``(H, W)``, where there are such and may be.
    """
    if not data:
        raise UsageError("it is empty; get an intact copy")
    format_ = formats.recognised(data, name)
    format_.require_library()
    decoded = _decoded(format_, data, keep_metadata, page)
    formats.check_size(*decoded.samples.shape[:2])
    missing = _fill_missing(decoded) if may_miss else None
    _check_samples(decoded, may_miss=may_miss)
    turn = UPRIGHT.get(decoded.orientation, UPRIGHT[1])
    decoded.samples = np.ascontiguousarray(turn(decoded.samples))
    decoded.alpha = None if decoded.alpha is None else np.ascontiguousarray(turn(decoded.alpha))
    return format_, decoded, None if missing is None else np.ascontiguousarray(turn(missing))


def extras_of(decoded: Decoded, *, keep_metadata: bool) -> Extras:
    """Collect what goes along with the picture of an upright file into the file of its result."""
    return Extras(
        alpha=decoded.alpha,
        icc_profile=decoded.icc_profile,
        exif=_kept_exif(decoded) if keep_metadata else None,
        geometry=None if decoded.geometry is None else decoded.geometry.turned(decoded.orientation),
        jpeg=decoded.jpeg,
    )


def _decoded(format_: formats.Format, data: bytes, keep_metadata: bool, page: int | None) -> Decoded:
    """Decode a file, or one page of it."""
    if page is None:
        return format_.read(data, keep_metadata)
    if format_.read_page is None:
        raise UsageError("{}: a {} file has no pages; leave it out", Argument("page", page), format_.name)
    return format_.read_page(data, keep_metadata, page)


def _fill_missing(decoded: Decoded) -> np.ndarray | None:
    """Put the mean of the others in the place of samples that are NaN or infinite; find the pixels that have one."""
    finite = np.isfinite(decoded.samples)
    if finite.all() or not finite.any():  # where nothing is there at all, the picture is refused
        return None
    mean = decoded.samples[finite].mean(dtype=np.float64)
    decoded.samples = np.where(finite, decoded.samples, mean.astype(decoded.samples.dtype))
    return ~finite.all(axis=2)


def _check_samples(decoded: Decoded, *, may_miss: bool) -> None:
    """Refuse samples that no model file can draw, and turn short floats into float32."""
    samples, alpha = decoded.samples, decoded.alpha
    if samples.dtype.kind != "f":
        return
    whole = samples if alpha is None else np.dstack([samples, alpha])
    _check_finite(whole, may_miss=may_miss or np.isfinite(samples).all() or not np.isfinite(samples).any())
    if max(abs(float(whole.min())), abs(float(whole.max()))) > MAX_SAMPLE:
        raise UsageError("its samples are too large for 32-bit float; scale them down")
    if samples.dtype.itemsize < 4:
        decoded.notes.append(f"{8 * samples.dtype.itemsize}-bit float samples were converted to 32-bit float.")
        decoded.samples = samples.astype(np.float32)
        decoded.alpha = None if alpha is None else alpha.astype(np.float32)


def _check_finite(samples: np.ndarray, *, may_miss: bool) -> None:
    """Refuse samples that are NaN or infinite; where such may be missing in another run, say so."""
    bad = ~np.isfinite(samples)
    if bad.any():
        row, column, channel = np.unravel_index(int(bad.argmax()), bad.shape)
        text = (
            f"{int(bad.sum())} of its {bad.size} samples are NaN or infinite, "
            f"the first at row {row}, column {column}, channel {channel} (counted from 0); replace them with numbers"
        )
        hint = () if may_miss else (Argument("mask", "nan"),)
        raise UsageError(text + ", or fill them in with {}" * len(hint), *hint)


def _kept_exif(decoded: Decoded) -> bytes | None:
    """Return the EXIF block for the result, or None where there is none that can be kept."""
    if decoded.exif is None:
        return None
    from dip_fast.pictures import exif

    try:
        return exif.kept(decoded.exif)
    except Exception:  # Pillow parses it lazily and damage shows in many ways; the pixels are sound
        decoded.notes.append("The EXIF metadata is damaged and was left out.")
        return None
