"""JPEG XL, decoded by imagecodecs; the header, which it does not show, is read here."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

import imagecodecs

from dip_fast.errors import UsageError
from dip_fast.pictures.decoded import Decoded, with_alpha
from dip_fast.pictures.formats import check_size

_CODESTREAM, _MARK = (b"jxlc", b"jxlp"), b"\xff\x0a"
_RATIOS = {1: (1, 1), 2: (6, 5), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}  # width to height


def read(data: bytes, keep_metadata: bool) -> Decoded:
    """Decode a JPEG XL file, which the decoder turns upright.

    Parameters
    ----------
    data : bytes
        The file's content.
    keep_metadata : bool
        Unused: the decoder shows no EXIF data.
    """
    header = _header(data)
    check_size(*header.size)
    if header.is_animated:
        raise UsageError("it is animated; export one frame as PNG")
    decoded = with_alpha(imagecodecs.jpegxl_decode(data))
    if not header.is_plain:
        decoded.notes.append("The decoder shows no colour profile of JPEG XL; the samples are taken for sRGB.")
    return decoded


class _Header(NamedTuple):
    size: tuple[int, int]  # height, width
    is_plain: bool  # 8-bit sRGB without anything else
    is_animated: bool


def _header(data: bytes) -> _Header:
    """Read the header before any pixel is decoded."""
    bits = int.from_bytes(_codestream(data)[2:].ljust(64, b"\0"), "little")

    def take(number: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << number) - 1), bits >> number
        return value

    size = _size(take)
    if take(1):
        return _Header(size, True, False)
    if not take(1):
        return _Header(size, False, False)
    take(3)  # the orientation
    if take(1):
        _size(take)  # at which it should be shown
    has_preview = take(1)  # whose size would have to be read on the way; no encoder at hand writes any
    return _Header(size, False, bool(not has_preview and take(1)))


def _size(take: Callable[[int], int]) -> tuple[int, int]:
    """Read a height and a width from a stream of bits."""
    is_small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if is_small else 1 + take((9, 13, 18, 30)[take(2)])

    height = side()
    ratio = take(3)
    if ratio == 0:
        return height, side()
    across, down = _RATIOS[ratio]
    return height, height * across // down


def _codestream(data: bytes) -> bytes:
    """Find where the picture begins, in the boxes of a container or at once."""
    place = 0
    while not data.startswith(_MARK, place):
        length, kind = struct.unpack_from(">I4s", data, place)
        start = place + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, start)
            start += 8
        if kind in _CODESTREAM:
            place = start + (4 if kind == b"jxlp" else 0)
            break
        if length < 8:
            raise UsageError("it is damaged (it holds no picture); get an intact copy")
        place += length
    return data[place : place + 66]
