"""NumPy's own files, read without pickle: no file of them can run code."""

from __future__ import annotations

import io
import zipfile

import numpy as np

from dip_fast.errors import UsageError
from dip_fast.pictures.decoded import Decoded
from dip_fast.pictures.formats import MAX_PIXELS, check_size
from dip_fast.pictures.kind import Kind
from dip_fast.pictures.picture import Extras
from dip_fast.pictures.samples import as_samples

_LARGEST_EXACT = 2**53  # of the integers that float64 holds


def read(data: bytes, keep_metadata: bool) -> Decoded:
    """Decode an .npy file, or an .npz file of one array.

    Parameters
    ----------
    data : bytes
        The file's content.
    keep_metadata : bool
        Unused: the format has no metadata.
    """
    if not data.startswith(b"PK"):
        return _picture(_load(data))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [entry.filename for entry in archive.infolist()]
        if len(names) != 1 or not names[0].endswith(".npy"):
            shown = ", ".join(name.removesuffix(".npy") for name in names[:5])
            raise UsageError(f"it holds {len(names)} arrays ({shown}); save one of them as .npy")
        with archive.open(names[0]) as member:  # no more is decompressed than a picture may have
            _check(member.read(2**14))
        if archive.infolist()[0].file_size > 32 * MAX_PIXELS:
            raise UsageError("its array is larger than any picture; cut out the part to restore")
        return _picture(_load(archive.read(names[0])))


def measure(data: bytes) -> tuple[int, int, int]:
    """Read the height, the width and the channels of an array without reading it."""
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open(archive.namelist()[0]) as member:
            data = member.read(2**14)
    shape, _ = _check(data[: 2**14])
    if len(shape) == 2:
        return shape[0], shape[1], 1
    first, second, third = shape
    return (first, second, third) if third in (1, 3) else (second, third, first)


def _check(data: bytes) -> tuple[tuple[int, ...], np.dtype]:
    """Read an array's shape and dtype from its header, and refuse what is no picture."""
    header = io.BytesIO(data)
    version = np.lib.format.read_magic(header)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(header)
    if dtype.hasobject or dtype.kind not in "buif" or dtype.itemsize > 8:
        raise UsageError(f"its array holds {dtype}; save it as integers or floats")
    if len(shape) not in (2, 3) or (len(shape) == 3 and not {shape[0], shape[2]} & {1, 3}):
        raise UsageError(f"its array has the shape {shape}; save it as (height, width) or (height, width, 3)")
    first = len(shape) == 3 and shape[2] not in (1, 3)
    check_size(*shape[first : 2 + first])
    return shape, dtype


def _load(data: bytes) -> np.ndarray:
    _check(data)
    file = io.BytesIO(data)
    array = np.load(file, allow_pickle=False)
    if file.read(1):
        raise UsageError("it holds more than one array; save one as a file of its own")
    return np.asarray(array)


def _picture(array: np.ndarray) -> Decoded:
    """Make an array a picture: the channels last, integers that are no samples of a picture as floats."""
    notes = []
    if array.ndim == 2:
        array = array[..., None]
    elif array.shape[2] not in (1, 3):
        notes.append(f"The first of the axes {array.shape} was taken for the channels; the result has them last.")
        array = np.moveaxis(array, 0, 2)
    if array.dtype == bool:
        notes.append("1-bit samples were converted to 8-bit.")
        array = array.astype(np.uint8) * 255
    samples = as_samples(array)
    if samples.dtype.kind in "iu" and samples.dtype.itemsize == 8:
        samples = _narrowed(samples)
        notes.append(f"{array.dtype} samples were converted to {samples.dtype}.")
    return Decoded(samples, notes=notes)


def _narrowed(samples: np.ndarray) -> np.ndarray:
    """Turn integers of 64 bits, which no picture has, into those of 32 bits, or floats where they are larger."""
    low, high = int(samples.min()), int(samples.max())
    for dtype in (np.uint32, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return samples.astype(dtype)
    if max(-low, high) > _LARGEST_EXACT:
        raise UsageError("its integers are too large for 64-bit float; scale them down")
    return samples.astype(np.float64)


def write(samples: np.ndarray, kind: Kind, extras: Extras) -> bytes:
    """Encode samples as an .npy file, ``(H, W)`` or ``(H, W, C)``."""
    file = io.BytesIO()
    np.save(file, samples[..., 0] if kind.channels == 1 else samples, allow_pickle=False)
    return file.getvalue()


def write_archive(samples: np.ndarray, kind: Kind, extras: Extras) -> bytes:
    """Encode samples as an .npz file of one array, ``image``."""
    file = io.BytesIO()
    np.savez_compressed(file, image=samples[..., 0] if kind.channels == 1 else samples)
    return file.getvalue()
