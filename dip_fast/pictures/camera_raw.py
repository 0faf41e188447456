"""Camera raw files, developed by LibRaw (rawpy) to linear samples of 16 bits."""

from __future__ import annotations

import io

import rawpy

from dip_fast.errors import UsageError
from dip_fast.pictures.decoded import Decoded
from dip_fast.pictures.formats import check_size


def read(data: bytes, keep_metadata: bool) -> Decoded:
    """Develop a camera raw file: the camera's white balance, linear sRGB, no change of brightness, upright.

    Parameters
    ----------
    data : bytes
        The file's content.
    keep_metadata : bool
        Unused: the developed picture has no EXIF data.
    """
    try:
        with rawpy.imread(io.BytesIO(data)) as raw:
            sizes = raw.sizes
            check_size(sizes.height, sizes.width)
            samples = raw.postprocess(
                gamma=(1, 1), no_auto_bright=True, use_camera_wb=True, output_bps=16, half_size=False
            )
    except rawpy.LibRawError as error:
        text = error.args[0] if error.args else error
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        raise UsageError(
            f"LibRaw cannot develop it ({text}); develop it to a 16-bit TIFF file first, or if it is one, name it .tif"
        ) from error
    notes = ["It was developed to linear sRGB of 16 bits, with the camera's white balance: it looks dark as it is."]
    return Decoded(samples, notes=notes)
