"""PNG, JPEG, BMP, WebP, GIF and AVIF: Pillow decodes them, except for the samples of PNG and AVIF of more than 8 bits.

Pillow cuts these to 8 bits, of PNG where there is more than one channel, so imagecodecs decodes and encodes them.
What is refused raises a `UsageError` that says why and what to do; what is damaged may raise whatever a library raises.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import imagecodecs
import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from dip_fast import large
from dip_fast.errors import UsageError
from dip_fast.pictures.decoded import Decoded, with_alpha
from dip_fast.pictures.formats import MAX_PIXELS, ORIENTATION_TAG, check_size, gray_where_possible
from dip_fast.pictures.geometry import Geometry
from dip_fast.pictures.kind import Kind
from dip_fast.pictures.picture import Extras


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "BMP", "WEBP", "GIF", "AVIF"))
    except UnidentifiedImageError as error:
        raise UsageError("its header is damaged; get an intact copy") from error
    except Image.DecompressionBombError as error:
        raise UsageError(f"it has more than {MAX_PIXELS} pixels; cut out the part to restore") from error


def read(data: bytes, keep_metadata: bool) -> Decoded:
    """Decode a PNG, JPEG, BMP, WebP, GIF or AVIF file.

    Parameters
    ----------
    data : bytes
        The file's content.
    keep_metadata : bool
        Unused: Pillow reads EXIF data for the orientation in any case.
    """
    file = _open(data)
    check_size(file.height, file.width)
    notes: list[str] = []
    frames = getattr(file, "n_frames", 1)
    if file.format == "MPO":  # a JPEG with more JPEGs behind it; every viewer shows the first
        notes.append(f"The first of {frames} pictures in the file was taken; cameras add previews and depth maps.")
    elif frames > 1:
        raise UsageError(f"it is animated ({frames} frames); export one frame as PNG")
    depth = 8
    if file.format == "PNG":
        if data[12:16] != b"IHDR":
            raise UsageError("it is damaged (no header where PNG has one); get an intact copy")
        depth = data[24]
        file.verify()  # every chunk's checksum and the end mark, which decoding alone does not look at
        file = _open(data)
    icc_profile = file.info.get("icc_profile") or None
    largest = None
    if depth == 16:
        samples = imagecodecs.png_decode(data)  # libpng turns a transparent colour into an alpha channel
    elif file.format == "AVIF" and (depth := _depth_of_avif(data)) > 8:
        samples, largest = imagecodecs.avif_decode(data), 2**depth - 1
    else:
        samples = _samples_of(file, depth, icc_profile, notes)
    decoded = with_alpha(samples, largest)
    decoded.icc_profile = icc_profile
    decoded.notes[:0] = notes
    decoded.geometry = _geometry(file)
    if file.format in ("JPEG", "MPO"):
        sampling = JpegImagePlugin.get_sampling(file)
        # Pillow cannot write every sampling that there is; -1 is for those.
        decoded.jpeg = {"qtables": file.quantization, "subsampling": max(sampling, 0)}  # type: ignore[attr-defined]
    try:
        decoded.exif = file.getexif()
        decoded.orientation = decoded.exif.get(ORIENTATION_TAG, 1)
    except Exception:  # damage shows in many ways; the pixels are sound
        notes.append("The EXIF metadata is damaged and was ignored, its orientation too.")
    return decoded


def measure(data: bytes) -> tuple[int, int, int]:
    """Read the height, the width and the channels without decoding any pixel."""
    with _open(data) as file:
        return file.height, file.width, 1 if file.mode in ("1", "L", "LA", "I;16") else 3


def _depth_of_avif(data: bytes) -> int:
    """Read the bits of a sample from the box that describes the codec."""
    place = data.find(b"av1C")
    flags = data[place + 6] if 0 <= place < len(data) - 6 else 0
    return 8 if not flags & 0x40 else 12 if flags & 0x20 else 10


def _geometry(file: Image.Image) -> Geometry | None:
    """Find the resolution that a file names, in whatever way its format does."""
    unit = {1: "inch", 2: "cm"}.get(file.info.get("jfif_unit", 0), "none")
    density = file.info.get("jfif_density")
    if unit != "none":
        return Geometry.with_resolution(density, unit)
    if file.format in ("PNG", "BMP"):
        dpi = Geometry.with_resolution(file.info.get("dpi"), "inch")
        return dpi or Geometry.with_resolution(file.info.get("aspect"), "none")
    with contextlib.suppress(Exception):  # damaged EXIF, which shows in many ways
        exif = file.getexif()  # Pillow makes up 72 dpi where EXIF names none
        unit = {2: "inch", 3: "cm"}.get(exif.get(296, 2), "none")
        density_of_exif = exif.get(282, 0), exif.get(283, 0)
        if (found := Geometry.with_resolution(density_of_exif, unit)) is not None:
            return found
    return Geometry.with_resolution(density, "none")


def _samples_of(file: Image.Image, depth: int, icc_profile: bytes | None, notes: list[str]) -> np.ndarray:
    """Decode to uint8 samples, ``(H, W, 1 to 4)``; an even number of channels means that the last is alpha."""
    file.load()
    mode, key = file.mode, file.info.get("transparency")
    if mode == "P":
        samples = np.asarray(file.convert("RGB" if key is None else "RGBA"))
        rgb = gray_where_possible(samples[..., :3], icc_profile)
        notes.append(f"The palette was converted to 8-bit {'gray' if rgb.shape[2] == 1 else 'RGB'}.")
        return np.dstack([rgb, samples[..., 3:]])
    if mode in ("CMYK", "YCCK"):
        raise UsageError("it is CMYK; convert it to RGB with an image editor that knows its profile")
    if mode == "1":
        notes.append("1-bit black and white was converted to 8-bit gray.")
        file = file.convert("L")
    elif mode not in ("L", "LA", "RGB", "RGBA"):
        raise UsageError(f"its pixels are of a kind that is not supported ({mode}); convert it to gray or RGB")
    elif depth < 8:
        notes.append(f"{depth}-bit gray was converted to 8-bit gray.")
        if key is not None:  # Pillow widens the samples to 8 bits but not the transparent colour
            key = key * 255 // (2**depth - 1)
    samples = _array(file)
    if key is None:
        return samples
    notes.append("The transparent colour was converted to an alpha channel.")
    return np.dstack([samples, np.where((samples == key).all(axis=2), 0, 255).astype(np.uint8)])


def _array(file: Image.Image) -> np.ndarray:
    """Take the samples out of a picture that Pillow has decoded, ``(H, W, C)``, uint8."""
    samples = large.empty((file.height, file.width, len(file.getbands())), np.uint8)
    for rows in large.bands(samples.shape):
        samples[rows] = np.asarray(file.crop((0, rows.start, file.width, rows.stop))).reshape(samples[rows].shape)
    return samples


def _image(samples: np.ndarray) -> Image.Image:
    """Put uint8 samples, ``(H, W, 1 to 4)``, into a picture of Pillow's."""
    height, width, channels = samples.shape
    image = Image.new(("L", "LA", "RGB", "RGBA")[channels - 1], (width, height))
    for rows in large.bands(samples.shape):
        part = np.ascontiguousarray(samples[rows])
        image.paste(Image.fromarray(part[..., 0] if channels == 1 else part), (0, rows.start))
    return image


def write_png(samples: np.ndarray, kind: Kind, extras: Extras) -> bytes:
    """Encode samples as a PNG file, as `dip_fast.pictures.encode_samples` does after its checks."""
    if extras.alpha is not None:
        samples = np.dstack([samples, extras.alpha])
    return encode_png(samples, extras.icc_profile, extras.exif, extras.geometry)


def encode_png(
    samples: np.ndarray,
    icc_profile: bytes | None = None,
    exif: bytes | None = None,
    geometry: Geometry | None = None,
) -> bytes:
    """Encode uint8 or uint16 samples, (H, W, 1 to 4); an even number of channels means that the last is alpha."""
    chunks = _physical_size(geometry)
    if samples.dtype == np.uint8:
        file = io.BytesIO()
        _image(samples).save(file, "PNG", icc_profile=icc_profile, exif=exif or b"")
        png = file.getbuffer()  # no copy of it, for it may be large
    else:
        if icc_profile is not None:
            chunks += _png_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc_profile))
        if exif is not None:
            chunks += _png_chunk(b"eXIf", exif)
        samples = np.ascontiguousarray(samples.squeeze(2) if samples.shape[2] == 1 else samples)
        png = memoryview(imagecodecs.png_encode(samples))
    header = 8 + 25  # the signature and IHDR, after which these chunks must stand
    return b"".join((png[:header], chunks, png[header:]))


def write_jpeg(samples: np.ndarray, kind: Kind, extras: Extras) -> bytes:
    """Encode samples as a JPEG file: compressed as the picture was, where it was JPEG, or else at quality 95."""
    file = io.BytesIO()
    found = None if extras.geometry is None else extras.geometry.per_metre()
    dpi = None if found is None else tuple(round(number * 0.0254) for number in found)
    _image(samples).save(
        file,
        "JPEG",
        icc_profile=extras.icc_profile,
        exif=b"" if extras.exif is None else b"Exif\0\0" + extras.exif,  # Pillow writes it as it is
        **({} if dpi is None or max(dpi) >= 2**16 else {"dpi": dpi}),
        **(extras.jpeg or {"quality": 95, "subsampling": 0}),
    )
    return file.getvalue()


def _physical_size(geometry: Geometry | None) -> bytes:
    """Make PNG's chunk of pixels a metre, or of the ratio of a pixel's sides."""
    found = None if geometry is None else geometry.per_metre()
    if found is not None:
        across, down = (round(number) for number in found)
        if 0 < across < 2**31 and 0 < down < 2**31:
            return _png_chunk(b"pHYs", struct.pack(">IIB", across, down, 1))
    elif geometry is not None and geometry.resolution is not None and geometry.is_oblong():
        across, down = (round(1000 * number) for number in geometry.resolution)
        if 0 < across < 2**31 and 0 < down < 2**31:
            return _png_chunk(b"pHYs", struct.pack(">IIB", across, down, 0))
    return b""


def decode_png(data: bytes) -> np.ndarray:
    """Decode a file that `encode_png` made of uint8 samples, (H, W, 1 or 3), at less than half the cost of `read`.

    Raises
    ------
    Exception
        Whatever Pillow raises for what is no such file.
    """
    file = Image.open(io.BytesIO(data), formats=("PNG",))
    check_size(file.height, file.width)
    if file.mode not in ("L", "RGB"):
        raise ValueError(f"its pixels are of another kind ({file.mode})")
    return _array(file)


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
