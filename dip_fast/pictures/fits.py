"""FITS, read and written by astropy: the first picture of a file, with its header and all that this says of the sky."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from astropy.io import fits

from dip_fast.errors import UsageError
from dip_fast.pictures.decoded import Decoded
from dip_fast.pictures.formats import check_size
from dip_fast.pictures.geometry import Geometry
from dip_fast.pictures.kind import Kind
from dip_fast.pictures.picture import Extras

# Keywords of the storage, which hold for the old file only.
_STORAGE = ("SIMPLE", "XTENSION", "BITPIX", "NAXIS", "EXTEND", "PCOUNT", "GCOUNT", "BSCALE", "BZERO", "BLANK")
_STALE = (*_STORAGE, "CHECKSUM", "DATASUM", "DATAMIN", "DATAMAX", *(f"NAXIS{i}" for i in range(1, 10)))


def read(data: bytes, keep_metadata: bool) -> Decoded:
    """Decode the first picture of a FITS file: of two axes, or of three where the third holds three colours.

    Parameters
    ----------
    data : bytes
        The file's content.
    keep_metadata : bool
        Unused: the whole header is kept in any case, for it holds the place of the pixels in the sky.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fits.open(io.BytesIO(data), memmap=False, do_not_scale_image_data=False) as file:
            pictures = [part for part in file if getattr(part, "shape", ()) and len(part.shape) > 1 and _is_image(part)]
            if not pictures:
                raise UsageError("it holds no picture, only tables; export the picture as a file of its own")
            part = pictures[0]
            shape = [side for side in part.shape if side > 1]
            if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != 3):
                raise UsageError(f"its picture has the axes {part.shape}; save one plane as a file of its own")
            check_size(*shape[-2:])
            header = part.header.copy()
            samples = np.asarray(part.data).reshape(shape)
    notes = [] if len(pictures) == 1 else [f"The first of {len(pictures)} pictures in the file was taken."]
    samples = np.moveaxis(samples, 0, 2) if samples.ndim == 3 else samples[..., None]
    samples = samples.astype(samples.dtype.newbyteorder("="))
    if samples.dtype.kind in "iu" and samples.dtype not in (np.uint8, np.uint16):
        notes.append(f"{samples.dtype} samples were converted to 32-bit float.")
        samples = samples.astype(np.float64)
        if header.get("BLANK") is not None:
            scale, zero = header.get("BSCALE", 1), header.get("BZERO", 0)
            samples[samples == header["BLANK"] * scale + zero] = np.nan
        samples = samples.astype(np.float32)
    return Decoded(_turned(samples, header), notes=notes, geometry=Geometry(text=header.tostring(sep="\n")))


def measure(data: bytes) -> tuple[int, int, int]:
    """Read the height, the width and the channels of the first picture without reading it."""
    with warnings.catch_warnings(), fits.open(io.BytesIO(data), memmap=False) as file:
        warnings.simplefilter("ignore")
        shape = next(part.shape for part in file if _is_image(part) and len(part.shape) > 1)
    sides = [side for side in shape if side > 1]
    return sides[-2], sides[-1], sides[0] if len(sides) == 3 else 1


def _is_image(part: Any) -> bool:
    return isinstance(part, fits.PrimaryHDU | fits.ImageHDU | fits.CompImageHDU)


def _turned(samples: np.ndarray, header: Any) -> np.ndarray:
    """Turn the rows as viewers show them, or back: FITS counts them from below unless ROWORDER says otherwise."""
    return samples if _is_top_down(header) else samples[::-1]


def _is_top_down(header: Any) -> bool:
    return bool(str(header.get("ROWORDER", "")).strip().upper() == "TOP-DOWN")


def write(samples: np.ndarray, kind: Kind, extras: Extras) -> bytes:
    """Encode samples as a FITS file with the header that the picture came with, and one line of history."""
    geometry = extras.geometry
    text = "" if geometry is None or not geometry.text.startswith(("SIMPLE", "XTENSION")) else geometry.text
    header = fits.Header.fromstring(text, sep="\n")
    rows = header.get("NAXIS2", kind.height)
    for name in _STALE:
        header.remove(name, ignore_missing=True, remove_all=True)
    stored = _turned(samples, header)
    if text and geometry is not None:
        _place(header, geometry, rows - kind.height / geometry.scale[1])
    header.add_history("restored by dip-fast")
    planes = stored[..., 0] if kind.channels == 1 else np.moveaxis(stored, 2, 0)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Without a checksum: its comment is the time, and a replay has to give the same bytes.
        fits.PrimaryHDU(np.ascontiguousarray(planes), header).writeto(file, output_verify="fix+ignore")
    return file.getvalue()


def _place(header: Any, geometry: Geometry, left_out: float) -> None:
    """Adapt the place in the sky to a picture that has more pixels, or is a part.

    Parameters
    ----------
    header : Header
    geometry : Geometry
    left_out : float
        The rows of the old picture that are not in the part, above and below it.
    """
    scales, (left, top) = geometry.scale, geometry.origin
    if scales == (1.0, 1.0) and (left, top) == (0.0, 0.0):
        return
    for name in [name for name in header if name.startswith(("A_", "B_", "AP_", "BP_")) and name[-1].isdigit()]:
        del header[name]  # a distortion as polynomials of pixels, which would have to be computed anew
    first_row = top if _is_top_down(header) else left_out - top
    for axis, (scale, origin) in enumerate(zip(scales, (left, first_row), strict=True), start=1):
        if f"CRPIX{axis}" in header:  # the centre of the first pixel is 1
            header[f"CRPIX{axis}"] = (header[f"CRPIX{axis}"] - 0.5 - origin) * scale + 0.5
        for name in (f"CDELT{axis}", f"CD1_{axis}", f"CD2_{axis}"):
            if name in header:
                header[name] /= scale
