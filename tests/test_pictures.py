"""Reading and writing pictures, against files that Pillow, tifffile, imagecodecs or this file's own bytes make."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, ImageOps

from dip_fast.errors import DipFastError, UsageError
from dip_fast.pictures import codecs as _codecs
from dip_fast.pictures import picture as pictures
from dip_fast.pictures.picture import encode_picture, read_mask, read_picture, to_samples, write_atomically
from dip_fast.pictures.samples import value_range

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
TALL = (21, 18)  # height, width: neither square nor a multiple of 16


def noise(*shape, dtype=np.uint8, seed=0):
    """Independent samples over the whole range of the dtype; floats in [0, 1)."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.random(shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def smooth(*shape):
    """uint8 ramps, gentle on lossy formats."""
    ramp = np.add.outer(np.arange(shape[0]) * 5, np.arange(shape[1]) * 3) % 256
    return np.dstack([np.roll(ramp, 7 * i, axis=0) for i in range(shape[2])]).astype(np.uint8)


def pillow(picture, kind, **options):
    """Return the bytes of an array or an Image as Pillow writes it."""
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, kind, **options)
    return file.getvalue()


def tiff(samples, **options):
    file = io.BytesIO()
    options = {"photometric": "rgb" if samples.shape[-1] in (3, 4) else "minisblack", "metadata": None, **options}
    tifffile.imwrite(file, samples, **options)
    return file.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(size, depth, colour, rows, *chunks):
    """Return a PNG made by hand, for what no library at hand writes; `rows` are bytes, one row each."""
    header = struct.pack(">IIBBBBB", size[1], size[0], depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def samples_of(picture):
    """Return what the file held: colour and alpha, gray without a channel axis."""
    samples = to_samples(picture.image, picture)
    samples = samples if picture.alpha is None else np.dstack([samples, picture.alpha])
    return samples[..., 0] if samples.shape[2] == 1 else samples


# --- reading, kind by kind


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_8_bit_rgb_comes_in_unchanged(kind):
    rgb = noise(*TALL, 3)
    picture = read_picture(pillow(rgb, kind, **({"lossless": True} if kind == "WEBP" else {})))
    np.testing.assert_array_equal(samples_of(picture), rgb)
    np.testing.assert_allclose(picture.image, rgb / 255, atol=1e-7)
    assert (picture.image.dtype, picture.image.shape, picture.dtype) == (np.float32, (*TALL, 3), np.uint8)
    assert (picture.size, picture.channels, picture.suffix, picture.notes) == (TALL, 3, ".png", ())
    assert (picture.alpha, picture.icc_profile, picture.exif) == (None, None, None)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_what_pillow_decodes_and_becomes_png(channels, progressive):
    rgb = noise(*TALL, 3).squeeze() if channels == 3 else noise(*TALL)
    data = pillow(rgb, "JPEG", progressive=progressive)
    picture = read_picture(data)
    np.testing.assert_array_equal(samples_of(picture), np.asarray(Image.open(io.BytesIO(data))))
    assert (picture.suffix, picture.channels) == (".png", channels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_round_trip_keeps_every_sample_and_the_kind(channels, dtype):
    """Gray, LA, RGB and RGBA; the colour under fully transparent pixels too."""
    samples = noise(*TALL, channels, dtype=dtype).squeeze()
    if channels in (2, 4):
        samples[:5, :, -1] = 0
    picture = read_picture(imagecodecs.png_encode(samples))
    result = encode_picture(picture.image, picture)
    written = imagecodecs.png_decode(result)
    assert written.dtype == dtype
    np.testing.assert_array_equal(written, samples)
    assert result[24] == 8 * np.dtype(dtype).itemsize
    assert result[25] == {1: 0, 2: 4, 3: 2, 4: 6}[channels]  # PNG's colour type
    if channels in (2, 4):
        assert picture.alpha.dtype == dtype
        np.testing.assert_array_equal(picture.alpha, samples[..., -1])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bigtiff": True, "byteorder": ">"},
        {"planarconfig": "separate"},
        {"tile": (16, 16), "compression": "zlib", "predictor": True},
        {"rowsperstrip": 4, "compression": "lzw"},
    ],
    ids=["plain", "big", "planes", "tiles", "strips"],
)
def test_tiff_round_trip_keeps_every_sample_and_the_kind(channels, dtype, options):
    samples = noise(*TALL, channels, dtype=dtype).squeeze()
    stored = samples
    if channels > 1:
        options = {"planarconfig": "contig", **options}
        if options["planarconfig"] == "separate":
            stored = np.moveaxis(samples, 2, 0)
        if channels in (2, 4):
            options = {"extrasamples": ["unassalpha"], **options}
    else:
        options = {key: value for key, value in options.items() if key != "planarconfig"}
    data = tiff(stored, **{"photometric": "rgb" if channels > 2 else "minisblack", **options})
    picture = read_picture(data)
    assert (picture.dtype, picture.suffix, picture.notes) == (dtype, ".tif", ())
    assert picture.dtype.isnative
    result = encode_picture(picture.image, picture)
    with tifffile.TiffFile(io.BytesIO(result)) as file:
        page = file.pages[0]
        assert (len(file.pages), page.dtype, page.compression.name) == (1, dtype, "ADOBE_DEFLATE")
        assert page.photometric.name == ("RGB" if channels > 2 else "MINISBLACK")
        assert [int(kind) for kind in page.extrasamples] == ([2] if channels in (2, 4) else [])
        np.testing.assert_array_equal(page.asarray(), samples)


@pytest.mark.parametrize(("kind", "code"), [("assocalpha", 1), ("unassalpha", 2), ("unspecified", 0)])
def test_tiff_alpha_keeps_its_association(kind, code):
    samples = noise(*TALL, 4)
    picture = read_picture(tiff(samples, extrasamples=[kind]))
    assert bool(picture.notes) == (kind == "unspecified")
    with tifffile.TiffFile(io.BytesIO(encode_picture(picture.image, picture))) as file:
        assert [int(extra) for extra in file.pages[0].extrasamples] == [code]
        np.testing.assert_array_equal(file.pages[0].asarray(), samples)


def test_tiff_result_opens_elsewhere_too():
    """Pillow reads through libtiff, which shares no code with tifffile."""
    for samples in (noise(*TALL, 3), noise(*TALL, dtype=np.float32), noise(*TALL, 4)):
        picture = read_picture(tiff(samples, **({"extrasamples": ["unassalpha"]} if samples.shape[-1] == 4 else {})))
        with Image.open(io.BytesIO(encode_picture(picture.image, picture))) as file:
            np.testing.assert_array_equal(np.asarray(file), samples)


def test_jpeg_in_tiff_is_decoded_to_rgb():
    red = smooth(24, 18, 1)[..., 0]
    rgb = np.dstack([red, 255 - red, red // 2])
    data = tiff(rgb, compression="jpeg")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        assert file.pages[0].photometric.name == "YCBCR"
    assert np.abs(samples_of(read_picture(data)).astype(int) - rgb).mean() < 5


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16])
def test_tiff_with_white_as_zero_is_inverted(dtype):
    stored = noise(*TALL, dtype=np.uint8) > 99 if dtype is bool else noise(*TALL, dtype=dtype)
    top = {bool: 1, np.uint8: 255, np.uint16: 65535}[dtype]
    picture = read_picture(tiff(stored, photometric="miniswhite"))
    np.testing.assert_array_equal(samples_of(picture), (top - stored.astype(int)) * (255 if dtype is bool else 1))
    assert "inverted" in picture.notes[0]
    with tifffile.TiffFile(io.BytesIO(encode_picture(picture.image, picture))) as file:
        assert file.pages[0].photometric.name == "MINISBLACK"


def test_twelve_bits_packed_in_a_tiff():
    samples = noise(*TALL, dtype=np.uint16) >> 4
    samples[0, 0] = 4095
    picture = read_picture(tiff(samples, bitspersample=12))
    np.testing.assert_array_equal(samples_of(picture), samples)
    assert picture.value_range == (0, 4095)
    assert picture.notes == ("12-bit samples are written to a 16-bit file.",)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_become_float32(dtype):
    samples = noise(*TALL, dtype=dtype)
    picture = read_picture(tiff(samples))
    np.testing.assert_array_equal(samples_of(picture), samples.astype(np.float32))
    assert picture.notes == (f"{8 * np.dtype(dtype).itemsize}-bit float samples were converted to 32-bit float.",)


def test_a_tiff_thumbnail_is_not_a_second_page():
    rgb, file = noise(*TALL, 3), io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(rgb, photometric="rgb", metadata=None)
        writer.write(rgb[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
    np.testing.assert_array_equal(samples_of(read_picture(file.getvalue())), rgb)


# --- palettes, few bits, transparent colours


def palette_picture(colours, **info):
    picture = Image.fromarray(noise(*TALL) % len(colours)).convert("P")
    picture.putpalette([value for colour in colours for value in colour])
    picture.info.update(info)
    return picture


COLOURS = np.array([(250, 10, 20), (1, 2, 3), (90, 180, 60), (255, 255, 255)], np.uint8)
GRAYS = np.array([(10, 10, 10), (200, 200, 200), (33, 33, 33)], np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
@pytest.mark.parametrize(("colours", "channels"), [(COLOURS, 3), (GRAYS, 1)], ids=["colours", "grays"])
def test_a_palette_becomes_rgb_or_gray_and_is_noted(kind, colours, channels):
    source = palette_picture(colours)
    picture = read_picture(pillow(source, kind))
    expected = colours[np.asarray(source)]
    np.testing.assert_array_equal(samples_of(picture), expected if channels == 3 else expected[..., 0])
    assert picture.notes == (f"The palette was converted to 8-bit {'RGB' if channels == 3 else 'gray'}.",)
    assert encode_picture(picture.image, picture)


def test_a_gray_palette_with_a_profile_stays_rgb():
    picture = read_picture(pillow(palette_picture(GRAYS), "PNG", icc_profile=ICC))
    assert (picture.channels, picture.icc_profile) == (3, ICC)


def test_a_transparent_palette_becomes_rgba_with_its_colours():
    source = palette_picture(COLOURS)
    picture = read_picture(pillow(source, "PNG", transparency=bytes([0, 128, 255, 7])))
    indices = np.asarray(source)
    np.testing.assert_array_equal(samples_of(picture)[..., :3], COLOURS[indices])
    np.testing.assert_array_equal(picture.alpha, np.array([0, 128, 255, 7], np.uint8)[indices])


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_one_bit_becomes_gray_and_is_noted(kind):
    bits = noise(*TALL) > 99
    picture = read_picture(pillow(bits, kind))
    np.testing.assert_array_equal(samples_of(picture), bits * np.uint8(255))
    assert len(picture.notes) == 1
    assert picture.notes[0].startswith("1-bit ")


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_few_bits_with_a_transparent_gray(depth):
    values = noise(16, 16) % 2**depth
    bits = np.unpackbits(values[..., None], axis=2)[..., -depth:].reshape(16, -1)
    rows = [row.tobytes() for row in np.packbits(bits, axis=1)]
    picture = read_picture(png((16, 16), depth, 0, rows, chunk(b"tRNS", struct.pack(">H", 1))))
    np.testing.assert_array_equal(samples_of(picture)[..., 0], values.astype(int) * 255 // (2**depth - 1))
    np.testing.assert_array_equal(picture.alpha, np.where(values == 1, 0, 255))
    assert len(picture.notes) == 2


@pytest.mark.parametrize(("depth", "dtype"), [(8, ">u1"), (16, ">u2")])
@pytest.mark.parametrize("colour", [0, 2])
def test_a_transparent_colour_becomes_alpha(colour, depth, dtype):
    samples = noise(16, 16, 3 if colour else 1, dtype=np.dtype(dtype).newbyteorder("="))
    samples[4, 5] = samples[2, 3]
    key = samples[2, 3]
    rows = [row.astype(dtype).tobytes() for row in samples]
    picture = read_picture(png((16, 16), depth, colour, rows, chunk(b"tRNS", key.astype(">u2").tobytes())))
    np.testing.assert_array_equal(to_samples(picture.image, picture), samples)
    transparent = (samples == key).all(axis=2)
    assert transparent[4, 5]
    np.testing.assert_array_equal(picture.alpha, np.where(transparent, 0, 2**depth - 1))


# --- EXIF orientation, metadata, profiles

# How a camera stores an upright picture under each orientation, written out by the standard's words
# ("row 0 is the visual ... side, column 0 the visual ... side").
STORED = {
    1: lambda a: a,  # top, left
    2: lambda a: np.fliplr(a),  # top, right
    3: lambda a: np.flipud(np.fliplr(a)),  # bottom, right
    4: lambda a: np.flipud(a),  # bottom, left
    5: lambda a: np.swapaxes(a, 0, 1),  # left, top
    6: lambda a: np.fliplr(a).swapaxes(0, 1),  # right, top
    7: lambda a: np.flipud(np.fliplr(a)).swapaxes(0, 1),  # right, bottom
    8: lambda a: np.flipud(a).swapaxes(0, 1),  # left, bottom
}


def upright_picture():
    """Big flat blocks, no symmetry, gentle on JPEG."""
    blocks = np.array([[30, 90, 150], [200, 60, 240]], np.uint8)
    return np.repeat(np.repeat(blocks, 16, axis=0), 16, axis=1)  # 32 high, 48 wide


def exif_with(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PNG16", "WEBP", "TIFF"])
def test_orientation_is_honoured(kind, orientation):
    upright = upright_picture()
    stored = np.ascontiguousarray(STORED[orientation](upright))
    exif = exif_with(orientation)
    if kind == "TIFF":
        data = tiff(stored, extratags=[(274, "H", 1, orientation, True)])
    elif kind == "PNG16":
        data = imagecodecs.png_encode(stored.astype(np.uint16) * 257)
        data = data[:33] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + data[33:]
    else:
        data = pillow(stored, kind, exif=exif.tobytes(), quality=95)
        shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("L")  # a second witness to STORED
        assert np.abs(np.asarray(shown, int) - upright).max() < 6
    picture = read_picture(data)
    assert picture.size == (32, 48)
    shown = picture.image.mean(axis=2) * 255
    assert np.abs(shown - upright).max() < 6
    for keep in (False, True):  # a viewer must not turn the result once more
        picture = read_picture(data, keep_metadata=keep)
        result = encode_picture(picture.image, picture)
        if kind == "TIFF":
            with tifffile.TiffFile(io.BytesIO(result)) as file:
                assert file.pages[0].tags.valueof(274, 1) == 1
        else:
            assert Image.open(io.BytesIO(result)).getexif().get(274, 1) == 1


def test_alpha_turns_with_the_picture():
    rgba = noise(*TALL, 4)
    picture = read_picture(pillow(rgba, "PNG", exif=exif_with(6).tobytes()))
    np.testing.assert_array_equal(picture.alpha, np.rot90(rgba[..., 3], -1))
    assert picture.size == picture.alpha.shape


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "PNG16", "TIFF"])
def test_the_profile_is_kept(kind):
    rgb = noise(*TALL, 3)
    if kind == "TIFF":
        data = tiff(rgb, iccprofile=ICC)
    elif kind == "PNG16":
        data = imagecodecs.png_encode(rgb.astype(np.uint16) * 257)
        data = data[:33] + chunk(b"iCCP", b"x\0\0" + zlib.compress(ICC)) + data[33:]
    else:
        data = pillow(rgb, kind, icc_profile=ICC)
    picture = read_picture(data)
    assert picture.icc_profile == ICC
    result = encode_picture(picture.image, picture)
    assert read_picture(result).icc_profile == ICC
    with Image.open(io.BytesIO(result)) as file:
        assert file.info["icc_profile"] == ICC
        file.load()
    if kind == "PNG16":
        assert result[37:41] == b"iCCP"  # before the pixels, or libpng ignores it
        np.testing.assert_array_equal(imagecodecs.png_decode(result), rgb.astype(np.uint16) * 257)


def full_exif():
    """A block as a camera writes it, by hand: two directories of text and numbers, and a thumbnail."""
    exif = Image.Exif()
    exif[274], exif[271], exif[315] = 6, "Camera & Söhne".encode("latin-1"), "A. Nobody"
    exif[0x8769] = {0x829A: 0.004, 0x9003: "2020:01:02 03:04:05", 0xA002: 4000}
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 12.5)}
    block = exif.tobytes()
    thumbnail = b"THUMBNAIL" * 20
    body = bytearray(block.removeprefix(b"Exif\0\0"))
    body += bytes(len(body) % 2)
    order = "<" if body[:2] == b"II" else ">"
    (first,) = struct.unpack_from(order + "I", body, 4)
    (count,) = struct.unpack_from(order + "H", body, first)
    struct.pack_into(order + "I", body, first + 2 + 12 * count, len(body))
    directory = struct.pack(order + "HHHIIHHIII", 2, 513, 4, 1, len(body) + 30, 514, 4, 1, len(thumbnail), 0)
    return b"Exif\0\0" + bytes(body) + directory + thumbnail


def shown_exif(data):
    """Return main directory, camera settings and GPS as Pillow finds them."""
    with Image.open(io.BytesIO(data)) as file:
        exif = file.getexif()
        return dict(exif), exif.get_ifd(0x8769), exif.get_ifd(0x8825)


@pytest.mark.parametrize("target", ["png", "png16", "tif"])
def test_metadata_is_kept_on_request_only(target):
    if target == "png16":
        data = imagecodecs.png_encode(noise(*TALL, 3, dtype=np.uint16))
        data = data[:33] + chunk(b"eXIf", full_exif().removeprefix(b"Exif\0\0")) + data[33:]
    else:
        data = pillow(noise(*TALL, 3), "JPEG", exif=full_exif())
    assert b"THUMBNAIL" in data
    assert (
        Image.open(io.BytesIO(data)).getexif().get_ifd(ExifTags.IFD.IFD1)[514] == 180
    )  # the thumbnail is found in the source
    suffix = ".tif" if target == "tif" else ".png"

    picture = read_picture(data)
    assert picture.exif is None
    result = encode_picture(picture.image, picture, suffix=suffix)
    assert b"Nobody" not in result
    assert shown_exif(result)[1:] == ({}, {})

    picture = read_picture(data, keep_metadata=True)
    result = encode_picture(picture.image, picture, suffix=suffix)
    main, settings_, gps = shown_exif(result)
    assert (main[271], main[315], main.get(274, 1)) == ("Camera & Söhne", "A. Nobody", 1)
    assert settings_ == {0x829A: 0.004, 0x9003: "2020:01:02 03:04:05"}
    assert gps == {1: "N", 2: (52.0, 31.0, 12.5)}
    assert b"THUMBNAIL" not in result
    np.testing.assert_array_equal(samples_of(read_picture(result)), samples_of(picture))

    # Once more from the result: from TIFF to TIFF and PNG to PNG.
    again = read_picture(result, keep_metadata=True)
    assert shown_exif(encode_picture(again.image, again))[1:] == (settings_, gps)


def test_damaged_exif_costs_the_metadata_only():
    exif = full_exif()
    data = pillow(noise(*TALL, 3), "JPEG", exif=exif[:20] + b"\xff" * 40)
    picture = read_picture(data, keep_metadata=True)
    assert picture.size in (TALL, TALL[::-1])


# --- value range and samples


@pytest.mark.parametrize(
    ("top", "high"),
    [(0, 255), (255, 255), (256, 511), (1023, 1023), (4095, 4095), (4096, 8191), (65535, 65535)],
)
def test_uint16_range_is_the_smallest_power_that_covers(top, high):
    assert value_range(np.array([0, top], np.uint16)) == (0, high)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([0.0, 1.0], (0, 1)),
        ([0.1, 0.25], (0, 1)),
        ([0.7, 0.7], (0, 1)),
        ([0.0, 0.125], (0, 0.125)),
        ([-0.5, 0.5], (-0.5, 0.5)),
        ([0.0, 255.0], (0, 255)),
        ([0.0, 0.0], (0, 1)),
        ([7.0, 7.0], (7, 8)),
    ],
)
def test_float_range(samples, expected):
    assert value_range(np.array(samples, np.float32)) == expected


def test_a_huge_constant_has_a_range_of_some_width():
    low, high = value_range(np.full(4, 1e30, np.float32))
    assert low < high


def test_uint8_range_and_refused_dtypes():
    assert value_range(np.array([3, 4], np.uint8)) == (0, 255)
    with pytest.raises(TypeError, match="int32"):
        value_range(np.zeros(3, np.int32))


@pytest.mark.parametrize(("dtype", "width"), [(np.uint8, 16), (np.uint16, 256)])
def test_every_integer_survives(dtype, width):
    samples = np.arange(np.iinfo(dtype).max + 1).astype(dtype).reshape(-1, width)
    np.testing.assert_array_equal(samples_of(read_picture(tiff(samples))), samples)


def test_every_12_bit_integer_survives():
    samples = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    picture = read_picture(imagecodecs.png_encode(samples))
    assert picture.image.max() == 1
    np.testing.assert_array_equal(samples_of(picture), samples)


def test_floats_in_the_unit_range_survive_exactly_and_others_nearly():
    samples = noise(*TALL, dtype=np.float32)
    np.testing.assert_array_equal(samples_of(read_picture(tiff(samples))), samples)
    wide = samples * 5e4 - 1e4
    picture = read_picture(tiff(wide))
    assert (picture.image.min(), picture.image.max()) == (0, 1)
    np.testing.assert_allclose(samples_of(picture), wide, rtol=0, atol=4 * 5e4 * 2.0**-24)


def test_integers_are_rounded_and_clipped_and_floats_are_not():
    picture = read_picture(tiff(noise(*TALL)))
    values = np.array([-0.5, 100.5 / 255, 100.6 / 255, 1.7]).reshape(2, 2, 1)
    assert to_samples(values, picture).ravel().tolist() == [0, 100, 101, 255]
    picture = read_picture(tiff(noise(*TALL, dtype=np.float32)))
    assert to_samples(np.array([-0.5, 1.5]), picture).tolist() == [-0.5, 1.5]


def test_12_bit_overshoot_is_clipped_at_the_container_only():
    picture = read_picture(imagecodecs.png_encode(np.full((16, 16), 4095, np.uint16)))
    assert to_samples(np.array([2.0, 20.0]), picture).tolist() == [8190, 65535]


def test_nan_in_a_result_is_an_error():
    picture = read_picture(tiff(noise(*TALL)))
    with pytest.raises(ValueError, match="NaN"):
        to_samples(np.full((16, 16, 1), np.nan), picture)


def test_encoding_checks_what_it_is_given():
    rgba = read_picture(pillow(noise(*TALL, 4), "PNG"))
    with pytest.raises(ValueError, match=r"\(H, W, 3\), got \(21, 18, 1\)"):
        encode_picture(rgba.image[..., :1], rgba)
    with pytest.raises(ValueError, match="alpha"):
        encode_picture(rgba.image[:-1], rgba)
    with pytest.raises(UsageError, match=r'"\.jpg".*\.png or \.tif'):
        encode_picture(rgba.image, rgba, suffix=".jpg")
    floats = read_picture(tiff(noise(*TALL, dtype=np.float32)))
    with pytest.raises(UsageError, match=r"float.*\.tif"):
        encode_picture(floats.image, floats, suffix=".png")
    premultiplied = read_picture(tiff(noise(*TALL, 4), extrasamples=["assocalpha"]))
    with pytest.raises(UsageError, match=r"premultiplied.*\.tif"):
        encode_picture(premultiplied.image, premultiplied, suffix=".PNG")


def test_a_larger_result_may_be_written_where_there_is_no_alpha():
    picture = read_picture(pillow(noise(*TALL, 3), "PNG"))
    larger = picture.image.repeat(2, axis=0).repeat(2, axis=1)
    assert read_picture(encode_picture(larger, picture)).size == (42, 36)


# --- names and sources


def test_names(tmp_path):
    path = tmp_path / "Ünïcode 漢字 picture.tif"
    rgb = noise(*TALL, 3)
    path.write_bytes(tiff(rgb))
    for source in (path, str(path)):
        picture = read_picture(source)
        assert picture.name == path.name
        np.testing.assert_array_equal(samples_of(picture), rgb)
    assert read_picture(path.read_bytes()).name == "stdin"
    assert read_picture(path, name="other").name == "other"


def test_a_suffix_that_lies_does_not_matter(tmp_path):
    path = tmp_path / "picture.tif"
    path.write_bytes(pillow(noise(*TALL, 3), "PNG"))
    assert read_picture(path).suffix == ".png"


# --- refusals


def animated(kind):
    frames = [Image.fromarray(noise(*TALL, 3, seed=seed)) for seed in range(3)]
    return pillow(frames[0], kind, save_all=True, append_images=frames[1:])


def png_header(width, height, depth=8, colour=2):
    return png((height, width), depth, colour, [b"\0"])


def two_tiffs():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(noise(*TALL), metadata=None)
        writer.write(noise(*TALL, seed=1), metadata=None)
    return file.getvalue()


def imagej_stack():
    file = io.BytesIO()
    tifffile.imwrite(file, noise(5, *TALL), imagej=True, truncate=True)  # one directory for all
    return file.getvalue()


def with_bad_floats():
    samples = noise(*TALL, 3, dtype=np.float32)
    samples[3, 5, 1], samples[7, 0, 0] = np.nan, -np.inf
    return tiff(samples)


REFUSALS = {
    "empty": (lambda: b"", "empty"),
    "text": (lambda: b"not a picture at all\n" * 9, "not a PNG, JPEG, TIFF, BMP or WebP.*convert"),
    "gif": (lambda: pillow(noise(*TALL), "GIF"), "not a PNG, JPEG, TIFF, BMP or WebP.*convert"),
    "cmyk jpeg": (lambda: pillow(Image.new("CMYK", TALL), "JPEG"), "CMYK.*convert it to RGB"),
    "cmyk tiff": (lambda: pillow(Image.new("CMYK", TALL), "TIFF"), "CMYK.*convert it to RGB"),
    "lab tiff": (lambda: pillow(Image.new("LAB", TALL), "TIFF"), "CIELAB.*convert"),
    "animated png": (lambda: animated("PNG"), "animated.*3 frames.*export one"),
    "animated webp": (lambda: animated("WEBP"), "animated.*3 frames.*export one"),
    "pages": (two_tiffs, "2 pages.*save one page"),
    "imagej stack": (imagej_stack, "5 pages.*save one page"),
    "volume": (
        lambda: tiff(noise(16, 32, 32), volumetric=True, tile=(16, 16, 16)),
        "volume 16 layers.*save one layer",
    ),
    "nan": (with_bad_floats, r"2 of its 1134 samples.*row 3, column 5, channel 1.*replace"),
    "small": (lambda: pillow(noise(15, 40), "PNG"), "40x15 pixels.*at least 16x16"),
    "small tiff": (lambda: tiff(noise(40, 15)), "15x40 pixels.*at least 16x16"),
    "no width": (lambda: png_header(0, 20), "damaged|at least 16x16"),
    "warned-of bomb": (lambda: png_header(15000, 10000), "15000x10000 pixels.*cut out"),
    "bomb": (lambda: png_header(60000, 60000), "more than 134217728.*cut out"),
    "bomb of 16 bits": (lambda: png_header(15000, 10000, 16), "15000x10000 pixels.*cut out"),
    "five channels": (lambda: tiff(noise(5, *TALL), planarconfig="separate", photometric="rgb"), "5 channels.*save"),
    "three grays": (lambda: tiff(noise(*TALL, 3), planarconfig="contig", photometric="minisblack"), "3 channels.*save"),
    "int16": (lambda: tiff(noise(*TALL, dtype=np.int16)), "int16.*save them as uint8, uint16 or float32"),
    "uint32": (lambda: tiff(noise(*TALL, dtype=np.uint32)), "uint32.*save them"),
    "int8": (lambda: tiff(noise(*TALL, dtype=np.int8)), "int8.*save them"),
    "complex": (lambda: tiff(noise(*TALL, dtype=np.float32).astype(np.complex64)), "complex64.*save them"),
    "too large a float": (lambda: tiff(np.full(TALL, 1e300)), "too large for 32-bit float.*scale"),
    "float with white as zero": (
        lambda: tiff(noise(*TALL, dtype=np.float32), photometric="miniswhite"),
        "MINISWHITE.*convert",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_say_what_why_and_what_to_do_in_one_line(case, tmp_path):
    make, pattern = REFUSALS[case]
    path = tmp_path / "a\nb.bin"
    path.write_bytes(make())
    with pytest.raises(UsageError, match=pattern) as caught:
        read_picture(path)
    assert str(caught.value).startswith("cannot read ")
    assert "a b.bin" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bomb_in_a_tiff_is_refused_before_decoding(monkeypatch):
    data = bytearray(tiff(noise(*TALL)))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        for code in (256, 257):
            tag = file.pages[0].tags[code]
            struct.pack_into("<I" if tag.dtype == 4 else "<H", data, tag.valueoffset, 60000)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(UsageError, match="60000x60000 pixels"):
        read_picture(bytes(data))


def test_what_is_not_a_readable_file(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"missing\.png: there is no such file; check"):
        read_picture(tmp_path / "missing.png")
    with pytest.raises(UsageError, match="it is a folder; name one"):
        read_picture(tmp_path)
    with pytest.raises(UsageError, match="null"):
        read_picture("a\0b")
    path = tmp_path / "picture.png"
    path.write_bytes(pillow(noise(*TALL), "PNG"))
    monkeypatch.setattr(pictures, "_MAX_BYTES", 10)
    with pytest.raises(UsageError, match=r"longer than any picture of \d+ pixels; cut out the part to restore$"):
        read_picture(path)

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.undo()
    monkeypatch.setattr(Path, "read_bytes", refuse)  # root, as in most containers, may read everything
    with pytest.raises(UsageError, match="permission denied; make"):
        read_picture(path)


def test_refusals_leave_no_trace_on_stderr(tmp_path):
    """Neither warnings nor tifffile's log, which would go to stderr where, unlike here, nobody listens to it."""
    names = []
    for index, data in enumerate((tiff(noise(*TALL, 3))[:-400], tiff(noise(*TALL, 3))[:200], b"II*\0" + bytes(60))):
        names.append(str(tmp_path / f"{index}.tif"))
        Path(names[-1]).write_bytes(data)
    code = (
        "import sys\nfrom dip_fast.errors import UsageError\nfrom dip_fast.pictures.picture import read_picture\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        read_picture(name)\n    except UsageError:\n        print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code, *names], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("refused\n" * 3, "")


def test_a_tiff_that_lists_too_few_tiles_is_refused():
    """Tifffile would leave the last one black."""
    data = bytearray(tiff(noise(40, 40), tile=(16, 16), compression="zlib"))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        for code in (324, 325):
            struct.pack_into("<I", data, file.pages[0].tags[code].offset + 4, 8)
    with pytest.raises(UsageError, match="parts of the picture are missing"):
        read_picture(bytes(data))


# --- damage: what comes out is the whole picture or a UsageError


RGB = smooth(24, 18, 3)
FILES = {
    "png": pillow(RGB, "PNG"),
    "png16": bytes(imagecodecs.png_encode(RGB.astype(np.uint16) * 257)),
    "palette": pillow(palette_picture(COLOURS), "PNG"),
    "jpeg": pillow(RGB, "JPEG", exif=full_exif(), quality=60),
    "progressive": pillow(RGB, "JPEG", progressive=True),
    "webp": pillow(RGB, "WEBP"),
    "lossless webp": pillow(RGB, "WEBP", lossless=True),
    "bmp": pillow(RGB, "BMP"),
    "tiff": tiff(RGB),
    "tiff strips": tiff(RGB, rowsperstrip=5, compression="zlib"),
    "tiff tiles": tiff(RGB, tile=(16, 16)),
    "tiff lzw": tiff(RGB, rowsperstrip=5, compression="lzw", predictor=True),
    "tiff jpeg": tiff(RGB, compression="jpeg", rowsperstrip=8),
    "tiff directory last": pillow(RGB, "TIFF", compression="tiff_deflate", icc_profile=ICC[:200]),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_cut_short_is_never_a_partial_picture(kind):
    data = FILES[kind]
    whole = read_picture(data, keep_metadata=True)
    ends = range(len(data)) if len(data) < 1200 else [*range(0, len(data), 4), *range(len(data) - 60, len(data))]
    for end in ends:
        try:
            picture = read_picture(data[:end])
        except UsageError:
            continue
        # Only bytes that carry no pixel may be missing: padding, or a mark of the end.
        np.testing.assert_array_equal(picture.image, whole.image, err_msg=f"cut at {end} of {len(data)}")
        assert picture.icc_profile == whole.icc_profile, f"cut at {end} of {len(data)}"


@pytest.mark.parametrize("kind", ["png", "png16", "palette"])
def test_any_changed_byte_of_a_png_is_found(kind):
    data = bytearray(FILES[kind])
    for place in range(len(data) - 12):  # the rest is the end mark
        data[place] ^= 0x10
        with pytest.raises(UsageError):
            read_picture(bytes(data))
        data[place] ^= 0x10


@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("kind", FILES)
def test_damaged_files_give_a_picture_or_a_usage_error(kind, data):
    content = bytearray(FILES[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        # Half of the changes go to the first bytes, where the headers are.
        last = len(content) - 1 if data.draw(st.booleans()) else 200
        content[data.draw(st.integers(0, min(last, len(content) - 1)))] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    try:
        picture = read_picture(bytes(content[:end]), keep_metadata=True)
    except UsageError:
        return
    assert np.isfinite(picture.image).all()
    assert min(picture.size) >= _codecs.MIN_SIDE
    assert encode_picture(picture.image, picture)


# --- masks


def half_white(value=255, dtype=np.uint8):
    mask = np.zeros(TALL, dtype)
    mask[:, :9] = value
    return mask


@pytest.mark.parametrize(
    "data",
    [
        pillow(half_white(), "PNG"),
        pillow(half_white() > 0, "PNG"),
        pillow(half_white(128), "PNG"),
        pillow(np.dstack([half_white()] * 3), "BMP"),
        tiff(half_white(65535, np.uint16)),
        tiff(half_white(1, np.float32)),
        pillow(np.dstack([half_white()] * 3 + [np.full(TALL, 255, np.uint8)]), "PNG"),
    ],
    ids=["gray", "1 bit", "just half", "rgb", "16 bit", "float", "opaque rgba"],
)
def test_white_is_known(data):
    known = read_mask(data, TALL)
    assert known.dtype == bool
    np.testing.assert_array_equal(known, half_white() > 0)


def test_masks_that_cannot_be_meant():
    with pytest.raises(UsageError, match="18x21 pixels but the picture is 30x20"):
        read_mask(pillow(half_white(), "PNG"), (20, 30))
    for value in (0, 1, 127):  # 1: a mask of zeros and ones in uint8
        with pytest.raises(UsageError, match=r"nothing known.*white, at least 127\.5 in its range of 0 to 255"):
            read_mask(pillow(half_white(value), "PNG"), TALL)
    with pytest.raises(UsageError, match="partly transparent"):
        read_mask(pillow(np.dstack([half_white()] * 4), "PNG"), TALL)
    with pytest.raises(UsageError, match="cannot read stdin"):
        read_mask(b"", TALL)


def test_a_mask_all_known_is_the_callers_concern():
    assert read_mask(pillow(np.full(TALL, 255, np.uint8), "PNG"), TALL).all()


# --- writing


def test_a_file_is_written_whole_and_alone(tmp_path):
    path = tmp_path / "result.png"
    write_atomically(path, b"old")
    write_atomically(str(path), b"new content")
    assert path.read_bytes() == b"new content"
    assert list(tmp_path.iterdir()) == [path]
    reference = tmp_path / "reference"
    reference.touch()
    assert path.stat().st_mode == reference.stat().st_mode  # the user's umask, not a private temporary file's


def test_the_longest_name_and_a_link(tmp_path):
    path = tmp_path / ("n" * 251 + ".png")
    write_atomically(path, b"1")
    link = tmp_path / "link.png"
    link.symlink_to(path)
    write_atomically(link, b"2")
    assert link.is_symlink()
    assert path.read_bytes() == b"2"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(step, tmp_path, monkeypatch):
    path = tmp_path / "result.png"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((pictures.os, "fsync") if step == "fsync" else (Path, "replace")), fail)
    with pytest.raises(DipFastError, match=r"cannot write .*result\.png: No space left on device") as caught:
        write_atomically(path, b"new")
    assert caught.value.exit_code == 1
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_writing_where_no_file_can_be(tmp_path):
    with pytest.raises(DipFastError, match="No such file or directory"):
        write_atomically(tmp_path / "missing" / "result.png", b"x")
    with pytest.raises(DipFastError, match="not a regular file"):
        write_atomically(tmp_path, b"x")


def test_the_content_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    steps = []
    fsync, replace = pictures.os.fsync, Path.replace
    monkeypatch.setattr(pictures.os, "fsync", lambda handle: (steps.append("fsync"), fsync(handle)))
    monkeypatch.setattr(Path, "replace", lambda *names: (steps.append("replace"), replace(*names))[1])
    write_atomically(tmp_path / "result.png", b"x")
    assert steps == ["fsync", "replace", "fsync"]  # the second one is the folder's
