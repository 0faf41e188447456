"""TIFF, decoded and encoded by tifffile.

What is refused raises a `UsageError` that says why and what to do; what is damaged may raise whatever tifffile raises.
"""

from __future__ import annotations

import io
import math
import struct

import numpy as np
import tifffile
from PIL import Image, TiffImagePlugin

from dip_fast.errors import Argument, UsageError
from dip_fast.pictures import tiff_geometry
from dip_fast.pictures.decoded import Decoded
from dip_fast.pictures.formats import MAX_CHANNELS, MAX_PIXELS, ORIENTATION_TAG, check_size, gray_where_possible
from dip_fast.pictures.geometry import Geometry
from dip_fast.pictures.kind import Kind
from dip_fast.pictures.picture import Extras
from dip_fast.pictures.tiff_structure import MAX_PAGES, MAX_STACK, check_directories, check_parts

# The TIFF tags that decide what the pixels are.  tifffile drops a tag that it cannot read and goes on with a default.
_TIFF_TAGS = frozenset({*range(254, 267), 273, 274, 277, 278, 279, 284, 317, *range(320, 326), 338, 339, 347, 529, 530})
ICC_TAG = 34675
ALPHA_KINDS = {0: "unspecified", 1: "assocalpha", 2: "unassalpha"}  # of the TIFF tag ExtraSamples, in tifffile's words
SAMPLES = ("b1", "u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8")

EXIF_DIRECTORIES = (0x8769, 0x8825)  # camera settings, GPS


def read(data: bytes, keep_metadata: bool, number: int | None = None) -> Decoded:
    """Decode a TIFF file of one page, or a page of one that has several.

    Parameters
    ----------
    data : bytes
        The file's content.
    keep_metadata : bool
        Whether the EXIF data are read as well.
    number : int, optional
        Which page, counted from 1 without thumbnails; needed where there are several.
    """
    check_directories(data, MAX_PAGES if number is None else MAX_STACK)
    # These three kinds of microscopes and scanners list more pages in places of their own.
    with tifffile.TiffFile(io.BytesIO(data), is_lsm=False, is_ndpi=False, is_scanimage=False) as file:
        page, samples = _page(data, file, number)
        tags = page.tags
        geometry = tiff_geometry.of(page, file.pages.first.aspage())
        exif = None
        if keep_metadata:  # TIFF's own directory is EXIF's main directory
            exif = Image.Exif()
            exif.bigtiff, exif.endian = file.is_bigtiff, file.byteorder  # where Pillow reads no header
            exif.load_from_fp(io.BytesIO(data), page.offset)
    decoded = Decoded(
        samples,
        orientation=tags.valueof(ORIENTATION_TAG, 1),
        icc_profile=bytes(tags.valueof(ICC_TAG, b"")) or None,
        exif=exif,
        geometry=geometry,
    )
    _interpret(decoded, page)
    return decoded


def _page(data: bytes, file: tifffile.TiffFile, number: int | None) -> tuple[tifffile.TiffPage, np.ndarray]:
    """Choose a page, and decode it: ``(H, W, samples)``, in the machine's byte order."""
    whole = [page.aspage() for page in file.pages]
    pages = [page for page in whole if not page.is_reduced] or whole[:1]  # without thumbnails
    # ImageJ puts a stack behind a single directory.
    stacked = (file.imagej_metadata or {}).get("images", 1) if len(pages) == 1 else 1
    count = max(len(pages), stacked)
    if number is None and count > 1:
        raise UsageError(
            "it holds {} pages; choose one, such as {}, or save one as a file of its own; dip-fast stack takes all",
            *(count, Argument("page", 1)),
        )
    if number is not None and not 1 <= number <= count:
        raise UsageError(
            "{}: it holds {} page{}; choose one of them", Argument("page", number), count, "s"[: count > 1]
        )
    page = pages[0 if stacked > 1 else (number or 1) - 1]
    check_page(data, file, page)
    if stacked > 1:
        if not page.is_contiguous:
            raise UsageError("it is a stack behind one directory, and compressed; save one page as a file of its own")
        start = page.dataoffsets[0] + ((number or 1) - 1) * page.nbytes
        if start + page.nbytes > len(data):
            raise UsageError("it is cut short or holds parts without data; get an intact copy")
        dtype = np.dtype(page.dtype).newbyteorder(file.byteorder)
        samples = np.frombuffer(data, dtype, math.prod(page.shape), start)
        samples = samples.reshape(page.shaped)[:, 0]
    else:
        samples = page.asarray(squeeze=False)[:, 0]  # (planes, H, W, samples): either first or last is 1
    samples = np.moveaxis(samples, 0, 3).reshape(*samples.shape[1:3], -1)
    return page, samples.astype(samples.dtype.newbyteorder("="), copy=False)


def measure(data: bytes) -> tuple[int, int, int]:
    """Read the height, the width and the channels of the first page without decoding any pixel."""
    check_directories(data)
    with tifffile.TiffFile(io.BytesIO(data), is_lsm=False, is_ndpi=False, is_scanimage=False) as file:
        page = file.pages.first
        return page.imagelength, page.imagewidth, page.samplesperpixel - len(page.extrasamples)


def check_page(data: bytes, file: tifffile.TiffFile, page: tifffile.TiffPage) -> None:
    """Refuse what is damaged or not supported, before the picture is decoded."""
    check_size(page.imagelength, page.imagewidth)
    layout = file.tiff
    (count,) = struct.unpack_from(layout.tagnoformat, data, page.offset)
    first = page.offset + layout.tagnosize
    codes = {struct.unpack_from(file.byteorder + "H", data, first + i * layout.tagsize)[0] for i in range(count)}
    lost = (codes & (_TIFF_TAGS | {ICC_TAG})) - set(page.tags.keys())
    if lost or 262 not in codes:  # what the samples mean; the other tags have defaults that writers rely on
        raise UsageError(f"it is damaged (tag {min(lost, default=262)} is missing or unreadable); get an intact copy")
    if page.photometric == tifffile.PHOTOMETRIC.SEPARATED:
        raise UsageError("it is CMYK; convert it to RGB with an image editor that knows its profile")
    if page.samplesperpixel > MAX_CHANNELS:
        raise UsageError(f"it has {page.samplesperpixel} channels, more than {MAX_CHANNELS}; save some of them")
    if page.imagedepth != 1:
        raise UsageError(f"it is a volume {page.imagedepth} layers deep; save one layer as a file of its own")
    kind = page.dtype if isinstance(page.bitspersample, int) else None  # one size for all channels
    if kind is None or kind.str[1:] not in SAMPLES:
        found = kind or f"{page.bitspersample} bits of format {page.sampleformat}"
        raise UsageError(f"its samples are {found}; save them as integers of up to 32 bits or floats")
    if math.prod(page.chunks) > 4 * MAX_PIXELS:
        raise UsageError("it is damaged (its tiles are larger than any picture); get an intact copy")
    # tifffile fills what is missing with zeros or takes what lies at that place.
    offsets, lengths = page.dataoffsets, page.databytecounts
    if page.is_contiguous:
        offsets, lengths = offsets[:1], (page.nbytes,)
    elif len(offsets) < math.prod(page.chunked):
        raise UsageError("it is damaged (parts of the picture are missing); get an intact copy")
    whole = len(offsets) == len(lengths) > 0 and all(
        o > 0 and n > 0 and o + n <= len(data) for o, n in zip(offsets, lengths, strict=True)
    )
    if not whole:
        raise UsageError("it is cut short or holds parts without data; get an intact copy")
    check_parts(data, page)


def _interpret(decoded: Decoded, page: tifffile.TiffPage) -> None:
    """Convert TIFF's many meanings of a sample to gray or RGB, dark to bright, with the alpha by itself."""
    kinds, bits, samples, notes = tifffile.PHOTOMETRIC, page.bitspersample, decoded.samples, decoded.notes
    is_signed = samples.dtype.kind in "fi"
    is_jpeg = page.photometric == kinds.YCBCR and page.compression == tifffile.COMPRESSION.JPEG  # decoded to RGB
    is_gray = page.photometric in (kinds.MINISBLACK, kinds.MINISWHITE)
    is_palette = page.photometric == kinds.PALETTE and bits <= 8
    inverted = page.photometric == kinds.MINISWHITE
    if not (is_gray or is_palette or is_jpeg or page.photometric == kinds.RGB) or (inverted and is_signed):
        kind = getattr(page.photometric, "name", page.photometric)
        raise UsageError(f"its colours are of a kind that is not supported ({kind}); convert it to gray or RGB")
    colours = 1 if is_gray or is_palette else 3
    extra = samples.shape[2] - colours
    if extra < 0 or (is_palette and extra):
        raise UsageError(
            f"it has {samples.shape[2]} channels, which its kind of colours has not; save it as gray or RGB"
        )
    kinds_of_extra = [ALPHA_KINDS.get(int(code), "unspecified") for code in page.extrasamples][:extra]
    alpha = next((i for i, kind in enumerate(kinds_of_extra) if kind != "unspecified"), None)
    if alpha is not None:  # any other channel is data like the first
        decoded.alpha_kind, decoded.alpha = kinds_of_extra[alpha], samples[..., colours + alpha]
        samples = np.delete(samples, colours + alpha, axis=2)
    if colours == 3 and samples.shape[2] > 3:
        notes.append("A channel beside RGB, of no stated meaning, is restored like the others.")
    if samples.shape[2] > 1 and (colours == 3) != (samples.shape[2] == 3):
        decoded.colours = colours
    if is_palette:
        colormap = np.asarray(page.colormap)  # (3, 2**bits) uint16; a few writers put 8-bit values there
        colormap = (colormap >> 8 if colormap.max() > 255 else colormap).astype(np.uint8)
        samples = gray_where_possible(colormap.T[samples[..., 0].astype(np.intp)], decoded.icc_profile)
        notes.append(f"The palette was converted to 8-bit {'gray' if samples.shape[2] == 1 else 'RGB'}.")
    elif inverted:
        samples = samples ^ True if samples.dtype == bool else (2**bits - 1 - samples).astype(samples.dtype)
        notes.append("White was stored as 0; the samples were inverted, and the result stores black as 0.")
    single = bits == 1 and samples.shape[2] == 1 and decoded.alpha is None  # tifffile packs no more channels of one bit
    if bits < 8 and not is_palette and not single:
        samples = _widened(samples, bits)
        decoded.alpha = None if decoded.alpha is None else _widened(decoded.alpha, bits)
        notes.append(f"{bits}-bit samples were converted to 8-bit.")
    elif 8 < bits < 16 and samples.dtype == np.uint16:
        notes.append(f"{bits}-bit samples are written to a 16-bit file.")
    decoded.samples = samples


def _widened(samples: np.ndarray, bits: int) -> np.ndarray:
    return np.rint(samples.astype(np.float64) * (255 / (2**bits - 1))).astype(np.uint8)


def write(samples: np.ndarray, kind: Kind, extras: Extras) -> bytes:
    """Encode samples as a TIFF file, as `dip_fast.pictures.encode_samples` does after its checks."""
    if extras.alpha is not None:
        samples = np.dstack([samples, extras.alpha])
    colours = 3 if kind.is_rgb else 1
    return encode(samples, kind.alpha, extras.icc_profile, extras.exif, extras.geometry, colours)


def encode(
    samples: np.ndarray,
    alpha_kind: str | None,
    icc_profile: bytes | None,
    exif: bytes | None,
    geometry: Geometry | None = None,
    colours: int = 1,
) -> bytes:
    """Encode samples, (H, W, C), the first of which are gray or RGB; with an `alpha_kind` the last channel is alpha."""
    others = samples.shape[2] - colours - (alpha_kind is not None)
    samples = samples.squeeze(2) if samples.shape[2] == 1 else samples
    metadata = Image.Exif()
    metadata.load(exif or b"")
    tags: list[tuple[int, str, int, bytes | int, bool]] = [
        (code, "s", 0, value.encode("latin-1"), True) for code, value in metadata.items() if isinstance(value, str)
    ]
    directories = {code: dict(metadata.get_ifd(code)) for code in EXIF_DIRECTORIES if code in metadata}
    # tifffile does not write these two tags itself; the code before each keeps its place until it is known where the
    # directory lies.
    tags += [(code - 1, "I", 1, 0, True) for code in directories]
    where = tiff_geometry.options(geometry, samples)
    if "description" in where:  # one text has the place of the other
        tags = [tag for tag in tags if tag[0] != tiff_geometry.DESCRIPTION]
    tags += where.pop("extratags", [])
    resolution = float(metadata.get(282, 1)), float(metadata.get(283, 1))
    file = io.BytesIO()
    tifffile.imwrite(
        file,
        samples,
        byteorder="<",
        photometric="rgb" if colours == 3 else "minisblack",
        planarconfig="contig" if samples.ndim == 3 else None,
        extrasamples=["unspecified"] * others + ([] if alpha_kind is None else [alpha_kind]) or None,
        compression="zlib",
        predictor=samples.dtype != bool,
        iccprofile=icc_profile,
        extratags=tags,
        software=False,
        metadata=None,
        **{"resolution": resolution, "resolutionunit": metadata.get(296, 1)} | where,
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
