"""The decoders and encoders behind `dip_fast.pictures`: bytes to samples and back, one section for each library.

Who decodes what: Pillow the 8-bit formats, EXIF and ICC; imagecodecs the 16-bit PNG samples, which Pillow cuts to
8 bits when there is more than one channel; tifffile every TIFF.  What is refused raises a `UsageError` that says why
and what to do; what is damaged may raise whatever its library raises.
"""

from __future__ import annotations

import io
import logging
import math
import struct
import zlib
from dataclasses import dataclass, field

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from dip_fast.errors import UsageError

# With fewer pixels there is no image statistic left that a network could pick up before the noise.
MIN_SIDE = 16
# One float32 feature map of 128 channels takes 512 bytes a pixel, so this many pixels would take 64 GiB for one layer:
# a larger header is a mistake or a decompression bomb.  It stays under the 179 million at which Pillow itself refuses.
MAX_PIXELS = 2**27

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# The TIFF tags that decide what the pixels are.  tifffile drops a tag that it cannot read and goes on with a default.
_TIFF_TAGS = frozenset({*range(254, 267), 273, 274, 277, 278, 279, 284, 317, *range(320, 326), 338, 339, 347, 529, 530})
_ICC_TAG = 34675
_ALPHA_KINDS = {0: "unspecified", 1: "assocalpha", 2: "unassalpha"}  # of the TIFF tag ExtraSamples, in tifffile's words

_ORIENTATION_TAG = 274
_EXIF_DIRECTORIES = (0x8769, 0x8825)  # camera settings, GPS
# Of EXIF's main directory, what tells of the picture and not of its storage: description, make, model, resolution
# (three tags), software, date, artist, computer, copyright, and Windows' title, comment, author, keywords, subject.
_EXIF_KEPT = (270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 33432, *range(0x9C9B, 0x9CA0))
# Inside the camera settings: width and height as shot, and a pointer into the old file.
_EXIF_STALE = (0xA002, 0xA003, 0xA005)

# tifffile tells of oddities through logging, which prints to stderr where nobody listens; what matters is checked here.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


@dataclass
class Decoded:
    """What a decoder found, before it is turned upright and scaled."""

    samples: np.ndarray  # (H, W, C), C 1 or 3
    alpha: np.ndarray | None  # (H, W)
    suffix: str
    alpha_kind: str = "unassalpha"
    orientation: int = 1
    icc_profile: bytes | None = None
    exif: Image.Exif | None = None
    notes: list[str] = field(default_factory=list)


def decode(data: bytes, *, keep_metadata: bool = False) -> Decoded:
    """Decode a file's content."""
    return _decode_tiff(data, keep_metadata) if data[:4] in _TIFF_STARTS else _decode_with_pillow(data)


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise UsageError(f"it is {width}x{height} pixels, more than {MAX_PIXELS}; cut out the part to restore")
    if min(height, width) < MIN_SIDE:
        raise UsageError(f"it is {width}x{height} pixels; a picture must have at least {MIN_SIDE}x{MIN_SIDE}")


def _gray_where_possible(rgb: np.ndarray, icc_profile: bytes | None) -> np.ndarray:
    """Drop to one channel, without loss, where a palette held grays only; an RGB profile would not fit a gray file."""
    is_gray = icc_profile is None and (rgb == rgb[..., :1]).all()
    return rgb[..., :1] if is_gray else rgb


# --- PNG, JPEG, BMP, WebP


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "BMP", "WEBP"))
    except UnidentifiedImageError as error:
        raise UsageError(
            "it is not a PNG, JPEG, TIFF, BMP or WebP picture, or its header is damaged; convert it to one of these"
        ) from error
    except Image.DecompressionBombError as error:
        raise UsageError(f"it has more than {MAX_PIXELS} pixels; cut out the part to restore") from error


def _decode_with_pillow(data: bytes) -> Decoded:
    file = _open(data)
    _check_size(file.height, file.width)
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
    if depth == 16:
        samples = imagecodecs.png_decode(data)  # libpng turns a transparent colour into an alpha channel
        samples = samples.reshape(*samples.shape[:2], -1)
    else:
        samples = _samples_of(file, depth, icc_profile, notes)
    samples, alpha = (samples[..., :-1], samples[..., -1]) if samples.shape[2] in (2, 4) else (samples, None)
    decoded = Decoded(samples, alpha, ".png", icc_profile=icc_profile, notes=notes)
    try:
        decoded.exif = file.getexif()
        decoded.orientation = decoded.exif.get(_ORIENTATION_TAG, 1)
    except Exception:  # damage shows in many ways; the pixels are sound
        notes.append("The EXIF metadata is damaged and was ignored, its orientation too.")
    return decoded


def _samples_of(file: Image.Image, depth: int, icc_profile: bytes | None, notes: list[str]) -> np.ndarray:
    """Decode to uint8 (H, W, 1 to 4)."""
    file.load()
    mode, key = file.mode, file.info.get("transparency")
    if mode == "P":
        samples = np.asarray(file.convert("RGB" if key is None else "RGBA"))
        rgb = _gray_where_possible(samples[..., :3], icc_profile)
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
    samples = np.asarray(file).reshape(file.height, file.width, -1)
    if key is None:
        return samples
    notes.append("The transparent colour was converted to an alpha channel.")
    return np.dstack([samples, np.where((samples == key).all(axis=2), 0, 255).astype(np.uint8)])


def encode_png(samples: np.ndarray, icc_profile: bytes | None, exif: bytes | None) -> bytes:
    """Encode uint8 or uint16 samples, (H, W, 1 to 4); an even number of channels means that the last is alpha."""
    samples = np.ascontiguousarray(samples.squeeze(2) if samples.shape[2] == 1 else samples)
    if samples.dtype == np.uint8:
        file = io.BytesIO()
        Image.fromarray(samples).save(file, "PNG", icc_profile=icc_profile, exif=exif or b"")
        return file.getvalue()
    chunks = b""
    if icc_profile is not None:
        chunks += _png_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc_profile))
    if exif is not None:
        chunks += _png_chunk(b"eXIf", exif)
    png = imagecodecs.png_encode(samples)
    header = 8 + 25  # the signature and IHDR, after which these chunks must stand
    return bytes(png[:header] + chunks + png[header:])


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


# --- TIFF


def _decode_tiff(data: bytes, keep_metadata: bool) -> Decoded:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        pages = [page.aspage() for page in file.pages]
        pages = [page for page in pages if not page.is_reduced] or pages[:1]  # without thumbnails
        stacked = (file.imagej_metadata or {}).get("images", 1)  # ImageJ puts a stack behind a single directory
        if max(len(pages), stacked) > 1:
            raise UsageError(f"it holds {max(len(pages), stacked)} pages; save one page as a file of its own")
        page = pages[0]
        _check_tiff(data, file, page)
        samples = page.asarray(squeeze=False)[:, 0]  # (planes, H, W, samples): either first or last is 1
        samples = np.moveaxis(samples, 0, 3).reshape(*samples.shape[1:3], -1)
        samples = samples.astype(samples.dtype.newbyteorder("="), copy=False)
        tags = page.tags
        exif = None
        if keep_metadata:  # TIFF's own directory is EXIF's main directory
            exif = Image.Exif()
            exif.bigtiff, exif.endian = file.is_bigtiff, file.byteorder  # where Pillow reads no header
            exif.load_from_fp(io.BytesIO(data), page.offset)
    decoded = Decoded(
        samples,
        None,
        ".tif",
        orientation=tags.valueof(_ORIENTATION_TAG, 1),
        icc_profile=bytes(tags.valueof(_ICC_TAG, b"")) or None,
        exif=exif,
    )
    _interpret_tiff(decoded, page)
    return decoded


def _check_tiff(data: bytes, file: tifffile.TiffFile, page: tifffile.TiffPage) -> None:
    """Refuse what is damaged or not supported, before any pixel is decoded."""
    _check_size(page.imagelength, page.imagewidth)
    layout = file.tiff
    (count,) = struct.unpack_from(layout.tagnoformat, data, page.offset)
    first = page.offset + layout.tagnosize
    codes = {struct.unpack_from(file.byteorder + "H", data, first + i * layout.tagsize)[0] for i in range(count)}
    lost = (codes & (_TIFF_TAGS | {_ICC_TAG})) - set(page.tags.keys())
    if lost or 262 not in codes:  # what the samples mean; the other tags have defaults that writers rely on
        raise UsageError(f"it is damaged (tag {min(lost, default=262)} is missing or unreadable); get an intact copy")
    if page.photometric == tifffile.PHOTOMETRIC.SEPARATED:
        raise UsageError("it is CMYK; convert it to RGB with an image editor that knows its profile")
    if page.samplesperpixel > 4:
        raise UsageError(f"it has {page.samplesperpixel} channels; save it as gray or RGB, with one alpha at most")
    if page.imagedepth != 1:
        raise UsageError(f"it is a volume {page.imagedepth} layers deep; save one layer as a file of its own")
    kind = page.dtype if isinstance(page.bitspersample, int) else None  # one size for all channels
    if kind is None or kind.str[1:] not in ("b1", "u1", "u2", "f2", "f4", "f8"):
        found = kind or f"{page.bitspersample} bits of format {page.sampleformat}"
        raise UsageError(f"its samples are {found}; save them as uint8, uint16 or float32")
    if math.prod(page.chunks) > 4 * MAX_PIXELS:
        raise UsageError("it is damaged (its tiles are larger than any picture); get an intact copy")
    # tifffile fills what is missing with zeros or takes what lies at that place.
    offsets, lengths = page.dataoffsets, page.databytecounts
    if page.is_contiguous:
        offsets, lengths = offsets[:1], (page.nbytes,)
    elif len(offsets) != math.prod(page.chunked):
        raise UsageError("it is damaged (parts of the picture are missing); get an intact copy")
    whole = len(offsets) == len(lengths) > 0 and all(
        o > 0 and n > 0 and o + n <= len(data) for o, n in zip(offsets, lengths, strict=True)
    )
    if not whole:
        raise UsageError("it is cut short or holds parts without data; get an intact copy")


def _interpret_tiff(decoded: Decoded, page: tifffile.TiffPage) -> None:
    """Turn TIFF's many meanings of a sample into gray or RGB, dark to bright, with the alpha apart."""
    kinds, bits, samples, notes = tifffile.PHOTOMETRIC, page.bitspersample, decoded.samples, decoded.notes
    is_float = samples.dtype.kind == "f"
    is_jpeg = page.photometric == kinds.YCBCR and page.compression == tifffile.COMPRESSION.JPEG  # decoded to RGB
    is_gray = page.photometric in (kinds.MINISBLACK, kinds.MINISWHITE)
    is_palette = page.photometric == kinds.PALETTE and bits <= 8
    inverted = page.photometric == kinds.MINISWHITE
    if not (is_gray or is_palette or is_jpeg or page.photometric == kinds.RGB) or (inverted and is_float):
        kind = getattr(page.photometric, "name", page.photometric)
        raise UsageError(f"its colours are of a kind that is not supported ({kind}); convert it to gray or RGB")
    colours = 1 if is_gray or is_palette else 3
    if samples.shape[2] - colours not in (0, 1) or (is_palette and samples.shape[2] > 1):
        raise UsageError(f"it has {samples.shape[2]} channels; save it as gray or RGB, with one alpha at most")
    if samples.shape[2] > colours:
        kind = _ALPHA_KINDS[int(page.extrasamples[0]) if page.extrasamples else 0]
        if kind == "unspecified":
            notes.append("The extra channel, of no stated meaning, was carried through as alpha.")
        decoded.alpha_kind, decoded.alpha = kind, samples[..., colours]
        samples = samples[..., :colours]
    if is_palette:
        colormap = np.asarray(page.colormap)  # (3, 2**bits) uint16; a few writers put 8-bit values there
        colormap = (colormap >> 8 if colormap.max() > 255 else colormap).astype(np.uint8)
        samples = _gray_where_possible(colormap.T[samples[..., 0].astype(np.intp)], decoded.icc_profile)
        notes.append(f"The palette was converted to 8-bit {'gray' if samples.shape[2] == 1 else 'RGB'}.")
    elif inverted:
        samples = samples ^ True if samples.dtype == bool else (2**bits - 1 - samples).astype(samples.dtype)
        notes.append("White was stored as 0; the samples were inverted, and the result stores black as 0.")
    if bits < 8 and not is_palette:
        samples = _widened(samples, bits)
        decoded.alpha = None if decoded.alpha is None else _widened(decoded.alpha, bits)
        notes.append(f"{bits}-bit samples were converted to 8-bit.")
    elif not is_float and 8 < bits < 16:
        notes.append(f"{bits}-bit samples are written to a 16-bit file.")
    decoded.samples = samples


def _widened(samples: np.ndarray, bits: int) -> np.ndarray:
    return np.rint(samples.astype(np.float64) * (255 / (2**bits - 1))).astype(np.uint8)


def encode_tiff(samples: np.ndarray, alpha_kind: str | None, icc_profile: bytes | None, exif: bytes | None) -> bytes:
    """Encode uint8, uint16 or float32 samples, (H, W, 1 to 4); with an `alpha_kind` the last channel is alpha."""
    colours = samples.shape[2] - (alpha_kind is not None)
    samples = samples.squeeze(2) if samples.shape[2] == 1 else samples
    metadata = Image.Exif()
    metadata.load(exif or b"")
    tags: list[tuple[int, str, int, bytes | int, bool]] = [
        (code, "s", 0, value.encode("latin-1"), True) for code, value in metadata.items() if isinstance(value, str)
    ]
    directories = {code: dict(metadata.get_ifd(code)) for code in _EXIF_DIRECTORIES if code in metadata}
    # tifffile does not write these two tags itself; the code before each keeps its place until it is known where the
    # directory lies.
    tags += [(code - 1, "I", 1, 0, True) for code in directories]
    file = io.BytesIO()
    tifffile.imwrite(
        file,
        samples,
        byteorder="<",
        photometric="rgb" if colours == 3 else "minisblack",
        planarconfig="contig" if samples.ndim == 3 else None,
        extrasamples=None if alpha_kind is None else [alpha_kind],
        compression="zlib",
        predictor=True,
        iccprofile=icc_profile,
        resolution=(float(metadata.get(282, 1)), float(metadata.get(283, 1))),
        resolutionunit=metadata.get(296, 1),
        extratags=tags,
        software=False,
        metadata=None,
    )
    tiff = bytearray(file.getvalue())
    for code, content in directories.items():
        tiff += bytes(len(tiff) % 2)  # a directory starts at an even place
        with tifffile.TiffFile(io.BytesIO(tiff)) as written:
            place = written.pages.first.tags[code - 1]
        struct.pack_into("<H", tiff, place.offset, code)
        struct.pack_into("<I", tiff, place.valueoffset, len(tiff))
        directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
        for tag, value in content.items():
            directory[tag] = value
        tiff += directory.tobytes(len(tiff))
    return bytes(tiff)


# --- EXIF


def kept_exif(exif: Image.Exif) -> bytes | None:
    """Rebuild the EXIF block for upright pixels, without the thumbnail and what only holds for the old file.

    Raises whatever Pillow or tifffile raises where it is damaged; what is returned can be written.
    """
    kept = Image.Exif()
    for code in _EXIF_KEPT:
        if code in exif:
            text = exif[code]  # Pillow reads latin-1 but would write a question mark for what is not ASCII
            kept[code] = text.encode("latin-1") if isinstance(text, str) and not text.isascii() else text
    for code in _EXIF_DIRECTORIES:
        content = {tag: value for tag, value in exif.get_ifd(code).items() if tag not in _EXIF_STALE}
        if content:
            kept[code] = content
    if not kept:
        return None
    kept[_ORIENTATION_TAG] = 1
    block = bytes(kept.tobytes()).removeprefix(b"Exif\0\0")
    # Nonsense, such as an unknown resolution unit, has to show now and not when a long run wants to write its result.
    encode_tiff(np.zeros((1, 1, 1), np.uint8), None, None, block)
    return block
