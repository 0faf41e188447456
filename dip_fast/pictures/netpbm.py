"""PNM and PFM, the formats of Netpbm: a short header, then the samples by rows.

Pillow reads those whose samples are text or bits; it would cut samples of 16 bits to 8.
"""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image

from dip_fast.errors import UsageError
from dip_fast.pictures.decoded import Decoded, with_alpha
from dip_fast.pictures.formats import check_size
from dip_fast.pictures.kind import Kind
from dip_fast.pictures.picture import Extras

_GAP = rb"(?:\s|#[^\n]*\n)+"  # white space and comments
_HEADER = re.compile(rb"P[56]" + 2 * (_GAP + rb"(\d{1,9})") + _GAP + rb"(\d{1,5})\s")
_FLOATS = re.compile(rb"P[fF]\s+(\d{1,9})\s+(\d{1,9})\s+(-?[0-9.eE+-]{1,30})\s")
_ARBITRARY = re.compile(rb"P7\n((?:[A-Z]+ [^\n]{1,80}\n|#[^\n]*\n){3,20})ENDHDR\n")
_CHANNELS = {b"GRAYSCALE": 1, b"RGB": 3, b"GRAYSCALE_ALPHA": 2, b"RGB_ALPHA": 4}
_DAMAGED = "its header is damaged; get an intact copy"


def read(data: bytes, keep_metadata: bool) -> Decoded:
    """Decode a PBM, PGM, PPM or PAM file.

    Parameters
    ----------
    data : bytes
        The file's content.
    keep_metadata : bool
        Unused: the format has no metadata.
    """
    if data[1:2] in b"1234":
        return _with_pillow(data)
    if data[1:2] == b"7":
        width, height, channels, largest, place = _arbitrary(data)
    else:
        header = _HEADER.match(data)
        if header is None:
            raise UsageError(_DAMAGED)
        width, height, largest = (int(number) for number in header.groups())
        channels, place = 1 if data[1:2] == b"5" else 3, header.end()
    if not 0 < largest < 2**16:
        raise UsageError(_DAMAGED)
    samples = _samples(data, place, (height, width, channels), ">u2" if largest > 255 else "u1")
    if samples.max() > largest:
        raise UsageError(f"it is damaged (samples are larger than {largest}); get an intact copy")
    return with_alpha(samples, largest)


def _samples(data: bytes, place: int, shape: tuple[int, int, int], dtype: str) -> np.ndarray:
    """Take the samples behind the header, all of them."""
    check_size(*shape[:2])
    wanted = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if len(data) - place < wanted:
        raise UsageError("it is cut short; get an intact copy")
    if data[place + wanted : place + wanted + 100].strip():
        raise UsageError("it holds more than one picture; save one as a file of its own")
    samples = np.frombuffer(data, dtype, count=int(np.prod(shape)), offset=place).reshape(shape)
    return samples.astype(samples.dtype.newbyteorder("="))


def _arbitrary(data: bytes) -> tuple[int, int, int, int, int]:
    """Read the header of a PAM file: width, height, channels, largest value, and where it ends."""
    header = _ARBITRARY.match(data)
    if header is None:
        raise UsageError(_DAMAGED)
    lines = [line.split() for line in header[1].splitlines() if not line.startswith(b"#")]
    entries = {line[0]: line[1] for line in lines if len(line) == 2}
    try:
        width, height, depth, largest = (int(entries[key]) for key in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL"))
        fits = _CHANNELS[entries[b"TUPLTYPE"]] == depth
    except (KeyError, ValueError):
        fits = False
    if not fits:
        raise UsageError("its channels are not gray or RGB with at most an alpha; convert it to one of these")
    return width, height, depth, largest, header.end()


def _with_pillow(data: bytes) -> Decoded:
    with Image.open(io.BytesIO(data), formats=("PPM",)) as file:
        check_size(file.height, file.width)
        if file.mode == "1":
            decoded = with_alpha(np.asarray(file.convert("L")))
            decoded.notes.append("1-bit black and white was converted to 8-bit gray.")
            return decoded
        samples = np.asarray(file)
    if samples.dtype == np.int32:  # Pillow's mode I, which holds 16 bits here
        samples = samples.astype(np.uint16)
    return with_alpha(samples)


def write(samples: np.ndarray, kind: Kind, extras: Extras) -> bytes:
    """Encode samples as PGM, PPM or, with alpha, PAM."""
    if extras.alpha is not None:
        samples = np.dstack([samples, extras.alpha])
    height, width, channels = samples.shape
    largest = np.iinfo(samples.dtype).max
    if channels in (1, 3):
        header = f"P{5 if channels == 1 else 6}\n{width} {height}\n{largest}\n"
    else:
        named = {number: name.decode() for name, number in _CHANNELS.items()}
        header = f"P7\nWIDTH {width}\nHEIGHT {height}\nDEPTH {channels}\nMAXVAL {largest}\n"
        header += f"TUPLTYPE {named[channels]}\nENDHDR\n"
    return header.encode() + samples.astype(samples.dtype.newbyteorder(">")).tobytes()


def read_floats(data: bytes, keep_metadata: bool) -> Decoded:
    """Decode a PFM file, whose last row comes first; `keep_metadata` is unused."""
    header = _FLOATS.match(data)
    if header is None:
        raise UsageError(_DAMAGED)
    width, height, scale = int(header[1]), int(header[2]), float(header[3])
    shape = (height, width, 3 if data[1:2] == b"F" else 1)
    return Decoded(_samples(data, header.end(), shape, "<f4" if scale < 0 else ">f4")[::-1])


def write_floats(samples: np.ndarray, kind: Kind, extras: Extras) -> bytes:
    """Encode float samples as PFM."""
    header = f"P{'f' if kind.channels == 1 else 'F'}\n{kind.width} {kind.height}\n-1.0\n"
    return header.encode() + samples[::-1].astype("<f4").tobytes()
