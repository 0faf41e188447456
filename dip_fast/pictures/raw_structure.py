"""Camera raw files, recognised by their structure.  Needs no decoder.

Most of them are TIFF, with a small preview as the first picture: taken for a TIFF, a raw file gives its thumbnail.
"""

from __future__ import annotations

import struct

# How files of cameras begin that are no TIFF, or one of their own: Canon, Fujifilm, Olympus, Panasonic, Sigma, Minolta.
_CAMERAS = (b"II\x1a\0\0\0HEAPCCDR", b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb", b"\0MRM")
_SENSOR = (32803, 34892)  # PhotometricInterpretation: a colour filter array, or DNG's linear values of a sensor
MOST_DIRECTORIES, MOST_TAGS = 100, 4096  # no camera writes so many
_PHOTOMETRIC, _SUB_DIRECTORIES, _DNG_VERSION, _FILTER_PATTERN = 262, 330, 50706, 33422
_MAKE = 271  # of the camera


def is_camera_raw(data: bytes, *, named: bool = False) -> bool:
    """Find whether a file holds what a camera's sensor saw, not developed: it then shows a small preview to others.

    Parameters
    ----------
    data : bytes
        The content of any file, or its beginning.
    named : bool
        Whether it has the name of such a file.  The structure of some says nothing; but all of them name the camera,
        as a TIFF file that was only named so does not.
    """
    marks = (_DNG_VERSION, _FILTER_PATTERN, _MAKE) if named else (_DNG_VERSION, _FILTER_PATTERN)
    if data.startswith(_CAMERAS) or data[4:12] == b"ftypcrx " or (data[:2] == b"II" and data[8:10] == b"CR"):
        return True
    if data[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return False
    order, is_big = "<" if data[:2] == b"II" else ">", data[2:4] in (b"+\0", b"\0+")
    offset, count, tag_size = ("Q", "Q", 20) if is_big else ("I", "H", 12)
    value_at = tag_size - struct.calcsize(offset)
    waiting, seen, tags = [8 if is_big else 4], 0, 0  # places of offsets of directories
    while waiting and seen < MOST_DIRECTORIES and tags < MOST_TAGS:
        seen += 1
        try:
            (directory,) = struct.unpack_from(order + offset, data, waiting.pop(0))
            if not directory:  # the end of a list
                continue
            (entries,) = struct.unpack_from(order + count, data, directory)
            first = directory + struct.calcsize("=" + count)
            tags += entries
            for place in range(first, first + min(entries, MOST_TAGS) * tag_size, tag_size):
                (code,) = struct.unpack_from(order + "H", data, place)
                if code in marks:
                    return True
                if code == _PHOTOMETRIC and struct.unpack_from(order + "H", data, place + value_at)[0] in _SENSOR:
                    return True
                if code == _SUB_DIRECTORIES:
                    waiting += _places(data, order + offset, place, value_at)
            waiting.append(first + entries * tag_size)
        except struct.error:  # it goes on behind the end of what is there
            continue
    return False


def _places(data: bytes, offset: str, place: int, value_at: int) -> list[int]:
    """Find where the offsets of a tag's directories stand: in the tag where they have room, or elsewhere."""
    size = struct.calcsize(offset)
    (number,) = struct.unpack_from(offset, data, place + 4)
    if number == 1:
        return [place + value_at]
    (first,) = struct.unpack_from(offset, data, place + value_at)
    return [first + i * size for i in range(min(number, MOST_DIRECTORIES))]
