"""Arrays of large pictures: in files without a name, of which memory holds what is being worked on.

A picture of 100 megapixels takes 1.2 GB as float32, and a run has a dozen such arrays.  Where a folder is set, `empty`
puts those of `LEAST` bytes and more into files that nobody else sees, and the system removes with the process.  They
are arrays like any other.  What works on a picture goes over it band by band, or tile by tile, and calls `rest` in
between: what was touched leaves the process then, and the system writes it to the disk when it needs the memory.

Needs numpy alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 2**24  # bytes of an array in a file: smaller ones are no burden
BAND = 2**21  # samples that are worked on at a time
_folder: Path | None = None
_files: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


@contextlib.contextmanager
def arrays_in(folder: Path) -> Iterator[None]:
    """Put large arrays into a folder, or the nearest one above it that is there."""
    global _folder
    before = _folder
    _folder = None
    with contextlib.suppress(OSError):  # a name that is too long, of which what writes there will say so
        _folder = next((place for place in (folder, *folder.absolute().parents) if place.is_dir()), None)
    try:
        yield
    finally:
        _folder = before


def empty(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """Make an array whose values are still to be set; one in a file is zero."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if _folder is None or size < LEAST:
        return np.empty(shape, dtype)
    try:
        with tempfile.TemporaryFile(dir=_folder) as file:
            # All of it is reserved now: a full disk would end the process when it writes into the array.
            os.posix_fallocate(file.fileno(), 0, size)
            mapped = mmap.mmap(file.fileno(), size)
    except OSError:  # no room there, or none of this kind; memory may have it
        return np.empty(shape, dtype)
    _files.add(mapped)
    return np.ndarray(shape, dtype, mapped)


def zeros(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """Make an array of zeros."""
    made = empty(shape, dtype)
    if not is_in_file(made):
        made[...] = 0
    return made


def is_in_file(array: np.ndarray) -> bool:
    """Whether all of the array's own memory is a file's."""
    return isinstance(array.base, mmap.mmap)


def tensor(shape: tuple[int, ...], like: Tensor, *, dtype: Any = np.float32, zero: bool = False) -> Tensor:
    """Make a tensor on the device of another one, whose values are still to be set, or zero."""
    import torch  # here, since pictures do without it

    make = zeros if zero else empty
    if like.device.type == "cpu":
        return torch.from_numpy(make(shape, dtype))
    return torch.from_numpy(np.zeros((), dtype)).to(like.device).expand(shape).clone()


def joined(pictures: Sequence[Tensor]) -> Tensor:
    """Concatenate pictures ``(1, C, H, W)`` to ``(N, C, H, W)``; one is itself."""
    if len(pictures) == 1:
        return pictures[0]
    made = tensor((len(pictures), *pictures[0].shape[1:]), pictures[0], dtype=pictures[0][:0].cpu().numpy().dtype)
    for n, picture in enumerate(pictures):
        for rows in bands(picture.shape, 2):
            made[n, :, rows] = picture[0, :, rows]
    return made


def rest() -> None:
    """Let go of what memory holds of the arrays in files; nothing is lost."""
    for mapped in list(_files):
        mapped.madvise(mmap.MADV_DONTNEED)


def give_back() -> None:
    """Let go of the arrays in files, and of what the C library keeps of memory that was freed."""
    rest()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # systems without it keep less
        ctypes.CDLL(None).malloc_trim(0)


def bands(shape: tuple[int, ...], axis: int = 0) -> Iterator[slice]:
    """Divide one axis of an array, by default its rows, into parts of about `BAND` samples."""
    each = max(1, BAND * shape[axis] // max(math.prod(shape), 1))
    for first in range(0, shape[axis], each):
        yield slice(first, min(first + each, shape[axis]))
        rest()


def parts(array: np.ndarray) -> Iterator[np.ndarray]:
    """Go through an array in the order of its samples, in parts of about `BAND`."""
    if array.ndim > 1 and array[:1].size > BAND:
        for part in array:
            yield from parts(part)
    else:
        for place in bands(array.shape):
            yield array[place]


def mapped_tensor(function: Callable[..., Tensor], *pictures: Tensor) -> Tensor:
    """Apply a function of single samples to pictures ``(N, C, H, W)`` of one height and width, band by band."""
    most = max((tuple(picture.shape) for picture in pictures), key=math.prod)
    made: Tensor | None = None
    for rows in bands(most, 2):
        part = function(*(picture[:, :, rows] for picture in pictures))
        if part.shape[2] == most[2]:
            return part
        if made is None:
            made = tensor((*part.shape[:2], *most[2:]), part, dtype=part[:0].cpu().numpy().dtype)
        made[:, :, rows] = part
    assert made is not None, "there are rows"
    return made


def part(picture: Tensor, place: tuple[Any, ...]) -> Tensor:
    """Take rows and columns ``(..., rows, columns)`` of a picture; of a large one, a copy.

    The system maps the pages around one that is read, in all as good as whole rows, which may be long.
    """
    seen = picture[place]
    if picture.nbytes < LEAST or picture.device.type != "cpu":
        return seen
    made = seen.new_empty(seen.shape)
    for rows in bands(tuple(seen.shape), seen.dim() - 2):
        made[..., rows, :] = seen[..., rows, :]
    return made


def mapped(function: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
    """Apply a function to arrays of the same rows, whose result has these rows and depends on nothing beyond each."""
    made: np.ndarray | None = None
    for rows in bands(max((array.shape for array in arrays), key=math.prod)):
        part = function(*(array[rows] for array in arrays))
        if made is None:
            if len(part) == len(arrays[0]):
                return part
            made = empty((len(arrays[0]), *part.shape[1:]), part.dtype)
        made[rows] = part
    assert made is not None, "there are rows"
    return made
