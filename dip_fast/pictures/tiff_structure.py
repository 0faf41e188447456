"""The structure of a TIFF file, checked before tifffile is trusted with it.

tifffile follows a list of directories for as long as it goes on, in circles too, and cuts off what a strip or a tile
holds beyond the size that the tags name.  Both are refused here.
"""

from __future__ import annotations

import io
import math
import struct

import imagecodecs
import tifffile
from PIL import Image, UnidentifiedImageError

from dip_fast.errors import UsageError

MAX_PAGES = 100
MAX_STACK = 10_000  # pages of a file of which one is chosen
MAX_TAGS = 4096  # of 100 directories; a page has some twenty, and tifffile takes some microseconds for each
_HEADERS = ("JPEG", "PNG", "WEBP", "JPEG2000")  # whose size Pillow reads without decoding a pixel
_JPEG = (6, 7, 33007, 34892)
_FAX = (2, 3, 4)  # decoded for a number of rows, whatever else they hold
_MORE = "it is damaged (it holds more than the picture that its tags describe); get an intact copy"


def check_directories(data: bytes, most: int = MAX_PAGES) -> bool:
    """Refuse a list of directories that goes round in circles, or is longer than that of any picture.

    Parameters
    ----------
    data : bytes
        The file's content.
    most : int
        Pages that it may hold.

    Returns
    -------
    bool
        Whether the list is whole: it does not lead beyond the end of the file.

    Raises
    ------
    UsageError
    """
    order = "<" if data[:2] == b"II" else ">"
    is_big = data[2:4] in (b"+\0", b"\0+")
    offset_format, count_format, tag_size, place = ("Q", "Q", 20, 8) if is_big else ("I", "H", 12, 4)
    seen: set[int] = set()
    tags, most_tags = 0, most * MAX_TAGS // MAX_PAGES
    try:
        while (offset := struct.unpack_from(order + offset_format, data, place)[0]) and offset < len(data):
            if offset in seen:
                raise UsageError("it is damaged (its list of pages goes round in circles); get an intact copy")
            seen.add(offset)
            if len(seen) > most:
                raise UsageError(f"it holds more than {most} pages; save one page as a file of its own")
            (count,) = struct.unpack_from(order + count_format, data, offset)
            tags += count
            if tags > most_tags:
                raise UsageError(f"it is damaged (it lists more than {most_tags} tags); get an intact copy")
            place = offset + struct.calcsize("=" + count_format) + count * tag_size
    except struct.error:
        return False  # the list ends with the file; tifffile stops there too
    return offset == 0


def check_parts(data: bytes, page: tifffile.TiffPage) -> None:
    """Refuse a page whose strips or tiles hold more than the picture that its tags describe.

    Parameters
    ----------
    data : bytes
        The file's content.
    page : tifffile.TiffPage
        With one part for each place, all of them within the file.

    Raises
    ------
    UsageError
    Exception
        Whatever a decoder raises on damaged data.
    """
    offsets = page.tags.get(324) or page.tags.get(273)
    if offsets is not None and offsets.count > math.prod(page.chunked):
        raise UsageError(_MORE)
    for index, (offset, length) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=False)):
        _, _, (_, rows, columns, samples) = page.decode(None, index)
        if _holds_more(data[offset : offset + length], page, rows, columns, samples):
            raise UsageError(_MORE)


def _holds_more(part: bytes, page: tifffile.TiffPage, rows: int, columns: int, samples: int) -> bool:
    """Find whether a strip or a tile holds another row, or rows of another length."""
    if page.compression in tifffile.TIFF.IMAGE_COMPRESSIONS:
        height, width = _coded_size(part, page)
        # A tile at the border may be as small as what is left of the picture; a strip is as wide as the picture.
        return height > rows or (width > columns if page.is_tiled else width != columns)
    row = math.ceil(columns * samples * int(page.bitspersample) / 8)
    wanted = (page.tiledepth if page.is_tiled else 1) * rows * row
    if page.compression == tifffile.COMPRESSION.NONE:
        return len(part) >= wanted + row
    if page.compression in _FAX:
        return False
    coded = imagecodecs.bitorder_decode(part) if page.fillorder == 2 else part
    # No more is decompressed than one row too many; less than that is padding, or what a decoder leaves at the end.
    decoded = tifffile.TIFF.DECOMPRESSORS[page.compression](coded, out=wanted + row)
    return memoryview(decoded).nbytes >= wanted + row


def _coded_size(part: bytes, page: tifffile.TiffPage) -> tuple[int, int]:
    """Read the height and width that a strip or a tile, a coded picture itself, names."""
    try:
        with Image.open(io.BytesIO(part), formats=_HEADERS) as picture:
            return picture.height, picture.width
    except UnidentifiedImageError:  # JPEG of 12 bits, JPEG XL and others
        tables = {"tables": page.jpegtables} if page.compression in _JPEG else {}
        height, width = tifffile.TIFF.DECOMPRESSORS[page.compression](part, **tables).shape[:2]
        return height, width
