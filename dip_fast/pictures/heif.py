"""HEIF, the format of phones' pictures, decoded by pillow-heif; it is read only."""

from __future__ import annotations

import numpy as np
import pillow_heif
from PIL import Image

from dip_fast.errors import UsageError
from dip_fast.pictures.decoded import Decoded, with_alpha
from dip_fast.pictures.formats import check_size


def read(data: bytes, keep_metadata: bool) -> Decoded:
    """Decode a HEIF file, which the decoder turns upright.

    Parameters
    ----------
    data : bytes
        The file's content.
    keep_metadata : bool
        Whether the EXIF data are read as well.
    """
    file = pillow_heif.open_heif(data, convert_hdr_to_8bit=False)
    check_size(file.size[1], file.size[0])
    notes = []
    if len(file) > 1:
        if file.info.get("primary") is None and file.mimetype.endswith("sequence"):
            raise UsageError(f"it is animated ({len(file)} frames); export one frame as PNG")
        notes.append(f"The main one of {len(file)} pictures in the file was taken.")
    samples = np.asarray(file)
    decoded = with_alpha(samples)
    decoded.notes[:0] = notes
    decoded.icc_profile = file.info.get("icc_profile") or None
    if keep_metadata and (block := file.info.get("exif")):
        decoded.exif = Image.Exif()
        decoded.exif.load(block)
    return decoded
