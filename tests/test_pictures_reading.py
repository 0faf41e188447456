"""Pictures read kind by kind, against files that Pillow, tifffile, imagecodecs or the tests' own bytes make."""

import io
import struct

import imagecodecs
import numpy as np
import pytest
import tifffile
from picture_files import (
    COLOURS,
    GRAYS,
    ICC,
    TALL,
    chunk,
    encode_picture,
    noise,
    palette_picture,
    pillow,
    png,
    samples_of,
    smooth,
    tiff,
)
from PIL import Image

from dip_fast.errors import UsageError
from dip_fast.pictures import read_mask, read_picture


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_8_bit_rgb_comes_in_unchanged(kind):
    rgb = noise(*TALL, 3)
    picture = read_picture(pillow(rgb, kind, **({"lossless": True} if kind == "WEBP" else {})))
    np.testing.assert_array_equal(samples_of(picture), rgb)
    np.testing.assert_allclose(picture.image, rgb / 255, atol=1e-7)
    assert (picture.image.dtype, picture.image.shape, picture.kind.dtype) == (np.float32, (*TALL, 3), "uint8")
    assert (picture.size, picture.channels, picture.kind.suffix, picture.notes) == (TALL, 3, ".png", ())
    assert (picture.extras.alpha, picture.extras.icc_profile, picture.extras.exif) == (None, None, None)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_what_pillow_decodes_and_becomes_png(channels, progressive):
    rgb = noise(*TALL, 3).squeeze() if channels == 3 else noise(*TALL)
    data = pillow(rgb, "JPEG", progressive=progressive)
    picture = read_picture(data)
    np.testing.assert_array_equal(samples_of(picture), np.asarray(Image.open(io.BytesIO(data))))
    assert (picture.kind.suffix, picture.channels) == (".png", channels)


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
        assert picture.extras.alpha.dtype == dtype
        np.testing.assert_array_equal(picture.extras.alpha, samples[..., -1])


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
    assert (picture.kind.dtype, picture.kind.suffix, picture.notes) == (np.dtype(dtype).name, ".tif", ())
    assert picture.image.dtype.isnative
    result = encode_picture(picture.image, picture)
    with tifffile.TiffFile(io.BytesIO(result)) as file:
        page = file.pages[0]
        assert (len(file.pages), page.dtype, page.compression.name) == (1, dtype, "ADOBE_DEFLATE")  # type: ignore[attr-defined]
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
    np.testing.assert_array_equal(samples_of(picture), top - stored.astype(int))
    assert "inverted" in picture.notes[0]
    with tifffile.TiffFile(io.BytesIO(encode_picture(picture.image, picture))) as file:
        assert file.pages[0].photometric.name == "MINISBLACK"


def test_twelve_bits_packed_in_a_tiff():
    samples = noise(*TALL, dtype=np.uint16) >> 4
    samples[0, 0] = 4095
    picture = read_picture(tiff(samples, bitspersample=12))
    np.testing.assert_array_equal(samples_of(picture), samples)
    assert picture.kind.value_range == (0, 4095)
    assert picture.notes == ("12-bit samples are written to a 16-bit file.",)


def test_short_floats_become_float32():
    samples = noise(*TALL, dtype=np.float16)
    picture = read_picture(tiff(samples))
    np.testing.assert_array_equal(samples_of(picture), samples.astype(np.float32))
    assert picture.notes == ("16-bit float samples were converted to 32-bit float.",)


def test_a_tiff_thumbnail_is_not_a_second_page():
    rgb, file = noise(*TALL, 3), io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(rgb, photometric="rgb", metadata=None)
        writer.write(rgb[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
    np.testing.assert_array_equal(samples_of(read_picture(file.getvalue())), rgb)


# --- palettes, few bits, transparent colours


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
    assert (picture.channels, picture.extras.icc_profile) == (3, ICC)


def test_a_transparent_palette_becomes_rgba_with_its_colours():
    source = palette_picture(COLOURS)
    picture = read_picture(pillow(source, "PNG", transparency=bytes([0, 128, 255, 7])))
    indices = np.asarray(source)
    np.testing.assert_array_equal(samples_of(picture)[..., :3], COLOURS[indices])
    np.testing.assert_array_equal(picture.extras.alpha, np.array([0, 128, 255, 7], np.uint8)[indices])


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
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
    np.testing.assert_array_equal(picture.extras.alpha, np.where(values == 1, 0, 255))
    assert len(picture.notes) == 2


@pytest.mark.parametrize(("depth", "dtype"), [(8, ">u1"), (16, ">u2")])
@pytest.mark.parametrize("colour", [0, 2])
def test_a_transparent_colour_becomes_alpha(colour, depth, dtype):
    samples = noise(16, 16, 3 if colour else 1, dtype=np.dtype(dtype).newbyteorder("="))
    samples[4, 5] = samples[2, 3]
    key = samples[2, 3]
    rows = [row.astype(dtype).tobytes() for row in samples]
    picture = read_picture(png((16, 16), depth, colour, rows, chunk(b"tRNS", key.astype(">u2").tobytes())))
    np.testing.assert_array_equal(picture.kind.to_samples(picture.image), samples)
    transparent = (samples == key).all(axis=2)
    assert transparent[4, 5]
    np.testing.assert_array_equal(picture.extras.alpha, np.where(transparent, 0, 2**depth - 1))


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
    assert read_picture(path).kind.suffix == ".png"


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


def test_black_is_known_where_white_marks_the_hole():
    np.testing.assert_array_equal(read_mask(pillow(half_white(), "PNG"), TALL, white_is_known=False), half_white() == 0)
    with pytest.raises(UsageError, match=r"nothing known.*black, below 127\.5 in its range of 0 to 255"):
        read_mask(pillow(np.full(TALL, 255, np.uint8), "PNG"), TALL, white_is_known=False)


@pytest.mark.parametrize("colour", [0, 255])
def test_what_is_painted_on_a_transparent_layer_is_unknown(colour):
    layer = np.dstack([np.full(TALL, colour, np.uint8)] * 3 + [half_white(7)])  # a soft brush covers too
    np.testing.assert_array_equal(read_mask(pillow(layer, "PNG"), TALL), half_white() == 0)


def test_missing_samples_are_marked_where_they_may_be():
    samples = np.full((16, 17, 3), 0.5, np.float32)
    samples[3, 4, 1], samples[5, 6] = np.nan, np.inf
    with pytest.raises(UsageError, match="4 of its 816 samples are NaN or infinite"):
        read_picture(tiff(samples))
    picture = read_picture(tiff(samples), missing=True)
    assert np.argwhere(picture.missing).tolist() == [[3, 4], [5, 6]]
    np.testing.assert_array_equal(picture.image, 0.5)
    with pytest.raises(UsageError, match="NaN or infinite"):
        read_picture(tiff(np.full((16, 17), np.nan, np.float32)), missing=True)
    assert read_picture(tiff(np.full((16, 17), 0.5, np.float32)), missing=True).missing is None


def test_masks_that_cannot_be_meant():
    with pytest.raises(UsageError, match="18x21 pixels but the picture is 30x20"):
        read_mask(pillow(half_white(), "PNG"), (20, 30))
    for value in (0, 1, 127):  # 1: a mask of zeros and ones in uint8
        with pytest.raises(UsageError, match=r"nothing known.*white, at least 127\.5 in its range of 0 to 255"):
            read_mask(pillow(half_white(value), "PNG"), TALL)
    with pytest.raises(UsageError, match="cannot read stdin"):
        read_mask(b"", TALL)


def test_a_photograph_for_a_mask_is_noted():
    """It was taken for a mask in silence."""
    notes = []
    read_mask(pillow(smooth(40, 30, 3), "PNG"), (40, 30), notes=notes)
    (line,) = notes
    assert "has many grays, as a photograph has: where it is lighter than half" in line
    soft = np.clip(np.add.outer(np.zeros(40), np.arange(30.0) - 15) * 40 + 128, 0, 255).astype(np.uint8)
    for mask in (soft, np.where(soft > 99, 255, 128).astype(np.uint8)):  # a soft edge, and two grays
        read_mask(pillow(mask, "PNG"), (40, 30), notes=notes)
    assert notes == [line]


def test_a_mask_all_known_is_the_callers_concern():
    assert read_mask(pillow(np.full(TALL, 255, np.uint8), "PNG"), TALL).all()
