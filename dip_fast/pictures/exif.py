"""EXIF data of a picture, rebuilt for its result."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dip_fast.pictures import tiff
from dip_fast.pictures.formats import ORIENTATION_TAG

# The tags of EXIF's main directory that describe the picture and not its storage: description, make, model, resolution
# (three tags), software, date, artist, computer, copyright, and Windows' title, comment, author, keywords, subject.
_KEPT = (270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 33432, *range(0x9C9B, 0x9CA0))
# Tags of the camera settings that hold for the old file only: width and height as shot, and a pointer into it.
_STALE = (0xA002, 0xA003, 0xA005)


def kept(exif: Image.Exif) -> bytes | None:
    """Rebuild the EXIF block for upright pixels, without the thumbnail and what only holds for the old file.

    Returns
    -------
    bytes or None
        A block that every format can write; None where nothing is left.

    Raises
    ------
    Exception
        Whatever Pillow or tifffile raises for a damaged block.
    """
    block = Image.Exif()
    for code in _KEPT:
        if code in exif:
            text = exif[code]  # Pillow reads latin-1 but would write a question mark for what is not ASCII
            block[code] = text.encode("latin-1") if isinstance(text, str) and not text.isascii() else text
    for code in tiff.EXIF_DIRECTORIES:
        content = {tag: value for tag, value in exif.get_ifd(code).items() if tag not in _STALE}
        if content:
            block[code] = content
    if not block:
        return None
    block[ORIENTATION_TAG] = 1
    data = bytes(block.tobytes()).removeprefix(b"Exif\0\0")
    # Nonsense, such as an unknown resolution unit, has to show now and not when a long run wants to write its result.
    tiff.encode(np.zeros((1, 1, 1), np.uint8), None, None, data)
    return data
