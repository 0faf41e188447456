"""JPEG 2000: Pillow reads the header, imagecodecs the samples, of which Pillow would cut 16 bits to 8."""

from __future__ import annotations

import io
import struct

import imagecodecs
from PIL import Image

from dip_fast.errors import UsageError
from dip_fast.pictures.decoded import Decoded, with_alpha
from dip_fast.pictures.formats import check_size
from dip_fast.pictures.geometry import Geometry

_SIZE = b"\xff\x4f\xff\x51"  # where the codestream and its header of the size begin
_PROFILE = b"colr\x02"  # a box that holds an ICC profile


def read(data: bytes, keep_metadata: bool) -> Decoded:
    """Decode a JPEG 2000 file.

    Parameters
    ----------
    data : bytes
        The file's content.
    keep_metadata : bool
        Unused: the format has no EXIF data of its own.
    """
    with Image.open(io.BytesIO(data), formats=("JPEG2000",)) as file:
        size, dpi = file.size, file.info.get("dpi")
    check_size(size[1], size[0])
    place = data.find(_SIZE)
    right, low, left, top = struct.unpack_from(">4I", data, place + 8)
    bits = 1 + (data[place + 42] & 0x7F)
    if (right - left, low - top) != size or data[place + 42] & 0x80 or not 1 <= bits <= 16:
        raise UsageError("its samples are of a kind that is not supported; convert it to 8 or 16 bits without sign")
    samples = imagecodecs.jpeg2k_decode(data)
    decoded = with_alpha(samples, 2**bits - 1)
    decoded.icc_profile = _profile(data[:place])
    decoded.geometry = None if dpi is None else Geometry((float(dpi[0]), float(dpi[1])), "inch")
    return decoded


def _profile(header: bytes) -> bytes | None:
    place = header.find(_PROFILE)
    if place < 4:
        return None
    (length,) = struct.unpack_from(">I", header, place - 4)
    return header[place + 7 : place - 4 + length] or None
