"""Kernels of blurs and of reductions in size: by a description, from a file, or as an array.  Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dip_fast.errors import Argument, UsageError
from dip_fast.pictures.files import read_regular

MAX_BYTES = 2**24
MAX_BLUR = 200.0  # pixels: a kernel that describes more is wider than most pictures


def _cubic(x: np.ndarray) -> np.ndarray:
    """Interpolate as R. Keys, doi:10.1109/TASSP.1981.1163711, with a = -1/2."""
    x = np.abs(x)
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    """Interpolate by a sinc in a window of three lobes."""
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


def _box(x: np.ndarray) -> np.ndarray:
    """Average."""
    return np.where(np.abs(x) <= 0.5, 1.0, 0.0)


REDUCTIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "bicubic": (_cubic, 2),
    "lanczos": (_lanczos, 3),
    "box": (_box, 0.5),
}


def reduction(name: str, scale: int) -> np.ndarray:
    """Make the kernel with which programs reduce a picture: the interpolating function, widened by the scale.

    Parameters
    ----------
    name : {"bicubic", "lanczos", "box"}
    scale : int
        How many times the sides become smaller.

    Returns
    -------
    ndarray
        float32, square, of the sum 1.
    """
    function, support = REDUCTIONS[name]
    taps = math.ceil(2 * support * scale)
    taps -= (taps - scale) % 2  # the middle is that of a block of pixels; what this leaves out is 0
    weights = function((np.arange(taps) - (taps - 1) / 2) / scale)
    return _normalised(np.outer(weights, weights))


def gaussian(deviation: float, scale: int = 1) -> np.ndarray:
    """Make a Gaussian kernel, of four standard deviations on each side of the middle of a block of pixels."""
    reach = max(1, round(4 * deviation))
    taps = 2 * reach + 1 + (scale - 1) % 2
    weights = np.exp(-0.5 * ((np.arange(taps) - (taps - 1) / 2) / deviation) ** 2)
    return _normalised(np.outer(weights, weights))


def motion(length: float, degrees: float, scale: int = 1) -> np.ndarray:
    """Make the kernel of a straight move at even speed: points along a line, each shared by the four pixels around.

    The line has its middle in that of a block of ``scale x scale`` pixels.
    """
    reach = math.ceil(length / 2)
    taps = 2 * reach + 3 + (scale - 1) % 2
    middle = (taps - 1) / 2
    kernel = np.zeros((taps, taps))
    along = (np.arange(64 * reach) + 0.5) / (64 * reach) - 0.5
    rows = middle - length * along * math.sin(math.radians(degrees))
    columns = middle + length * along * math.cos(math.radians(degrees))
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    for down in (0, 1):
        for right in (0, 1):
            share = (1 - np.abs(rows - top - down)) * (1 - np.abs(columns - left - right))
            np.add.at(kernel, (top + down, left + right), share)
    return _normalised(kernel)


def blur(source: Path | str | np.ndarray, scale: int = 1, others: str = "") -> np.ndarray:
    """Make the kernel of a blur, float32 of the sum 1.

    Parameters
    ----------
    source : Path, str or ndarray
        ``gaussian:DEVIATION``, ``motion:LENGTH,DEGREES``, a file, or the kernel ``(h, w)``.
    scale : int
        How many times smaller the picture was made thereafter: a pixel of it stands for a block of so many.
    others : str
        What else the argument takes, for a message.

    Raises
    ------
    UsageError
    """
    name, colon, text = str(source).partition(":") if not isinstance(source, np.ndarray) else ("", "", "")
    count = {"gaussian": 1, "motion": 2}.get(name) if colon else None
    if count is None:
        return _given(source, f"{others}gaussian:1.6, motion:15,30")
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    # The first of them is a width.
    if len(numbers) != count or not all(map(math.isfinite, numbers)) or not 0 < numbers[0] <= MAX_BLUR:
        raise UsageError(
            "{} must be gaussian:DEVIATION or motion:LENGTH,DEGREES, of more than 0 and at most {:g} pixels, such as "
            "gaussian:1.6 or motion:15,30; got {}",
            *(Argument("kernel"), MAX_BLUR, source),
        )
    return gaussian(numbers[0], scale) if name == "gaussian" else motion(numbers[0], numbers[1], scale)


def of_reduction(source: Path | str | np.ndarray, scale: int) -> np.ndarray:
    """Make the kernel of a reduction in size, float32 of the sum 1: one of `REDUCTIONS`, or all that a blur can be."""
    if not isinstance(source, np.ndarray) and str(source) in REDUCTIONS:
        return reduction(str(source), scale)
    return blur(source, scale, "".join(f"{name}, " for name in REDUCTIONS))


def _given(source: Path | str | np.ndarray, words: str) -> np.ndarray:
    """Take a kernel from an array or a file, and check it."""
    if isinstance(source, np.ndarray):
        values, what = source, ""
    else:
        values, what = _from_file(Path(source), words), f" in {source}"
    if values.ndim != 2 or not values.size or values.dtype.kind not in "iufb":
        got = f"{values.shape} of {values.dtype}{what}"
        raise UsageError("{} must be numbers (h, w), got {}", Argument("kernel"), got)
    values = values.astype(np.float64)
    if not np.isfinite(values).all() or values.sum() <= 1e-6 * np.abs(values).sum():
        raise UsageError("{} must hold finite numbers with a sum above 0{}", Argument("kernel"), what)
    return _normalised(values)


def _from_file(path: Path, words: str) -> np.ndarray:
    """Read a kernel's file; one that is coloured, by the mean of its channels."""
    try:
        content = read_regular(path, MAX_BYTES)
    except UsageError as error:
        raise UsageError(f"cannot read the kernel {path}: {error}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            "{} must be {} or a file; cannot read {}: {}", Argument("kernel"), words, path, reason
        ) from error
    if content is None:
        raise UsageError(f"the kernel {path} is longer than {MAX_BYTES} bytes; no kernel is")
    try:
        return _decoded(content)
    except ModuleNotFoundError:  # the fault of the installation, and not of the file
        raise
    except Exception as error:  # whatever a decoder raises on damaged data
        raise UsageError(
            "the kernel {} is neither a picture nor an .npy file nor a table of numbers; save it as one of these", path
        ) from error


def _decoded(content: bytes) -> np.ndarray:
    import io

    import cv2

    if content.startswith(b"\x93NUMPY"):
        return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
    if picture is not None:
        return picture if picture.ndim == 2 else picture.mean(axis=2)
    return np.loadtxt(io.StringIO(content.decode()), ndmin=2, delimiter="," if b"," in content else None)


def _normalised(kernel: np.ndarray) -> np.ndarray:
    return (kernel / kernel.sum()).astype(np.float32)


def check_size(kernel: np.ndarray, image: np.ndarray, scale: int = 1) -> None:
    """Refuse a kernel that is larger than the picture.

    Parameters
    ----------
    kernel : ndarray
    image : ndarray
        The picture, ``(H, W, C)``, and ...
    scale : int
        ... how many times larger the result is.

    Raises
    ------
    UsageError
    """
    height, width = (scale * side for side in image.shape[:2])
    if kernel.shape[0] > height or kernel.shape[1] > width:
        raise UsageError(
            "{} must not be larger than the result, {}x{} pixels, got {}x{}; give a narrower one, or cut "
            "off what is nearly 0",
            *(Argument("kernel"), width, height, *kernel.shape[::-1]),
        )
