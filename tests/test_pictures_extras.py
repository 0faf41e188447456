"""Formats whose libraries come with an extra; each test is left out where its library is missing."""

import io

import numpy as np
import pytest
from picture_files import TALL, encode_picture, noise, samples_of, tiff
from PIL import Image

from dip_fast.errors import UsageError
from dip_fast.pictures import read_picture
from dip_fast.runs.parts import Part


def sky(samples, **cards):
    from astropy.io import fits

    header = fits.Header({"OBJECT": "M 42", "CTYPE1": "RA---TAN", "CRPIX1": 5.0, "CRPIX2": 7.0, **cards})
    file = io.BytesIO()
    fits.PrimaryHDU(samples, header).writeto(file)
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
def test_samples_and_header_of_fits_are_kept(dtype):
    fits = pytest.importorskip("astropy.io.fits")
    samples = noise(*TALL, dtype=np.dtype(dtype).type)
    picture = read_picture(sky(samples, HISTORY="dark subtracted"))
    np.testing.assert_allclose(samples_of(picture)[::-1], samples, rtol=1e-6, atol=1e-3)  # viewers count from below
    with fits.open(io.BytesIO(encode_picture(picture.image, picture))) as file:
        np.testing.assert_allclose(file[0].data, samples, rtol=1e-6, atol=1e-3)
        header = file[0].header
    assert (header["OBJECT"], header["CRPIX1"], header["CRPIX2"]) == ("M 42", 5.0, 7.0)
    assert [*header["HISTORY"]] == ["dark subtracted", "restored by dip-fast"]


def test_the_row_order_of_fits_is_respected():
    pytest.importorskip("astropy")
    samples = noise(*TALL)
    picture = read_picture(sky(samples, ROWORDER="TOP-DOWN"))
    np.testing.assert_array_equal(samples_of(picture), samples)


@pytest.mark.parametrize("order", ["BOTTOM-UP", "TOP-DOWN"])
def test_a_part_of_fits_has_the_same_place_in_the_sky(order):
    """The pixel of a star, by the header's reference, is that of the star in the part."""
    fits = pytest.importorskip("astropy.io.fits")
    samples = np.zeros((40, 50), np.float32)
    samples[21, 32] = 1.0  # row and column as they are stored, from 0
    picture = read_picture(sky(samples, ROWORDER=order, CRPIX1=33.0, CRPIX2=22.0, CDELT1=0.1, CDELT2=0.2))
    for part, scale in ((Part("20,10,30,20"), 1), (Part(max_size=25), 2)):
        taken = part.of(picture)
        with fits.open(io.BytesIO(encode_picture(taken.image, taken))) as file:
            header, stored = file[0].header, file[0].data
        row, column = np.unravel_index(stored.argmax(), stored.shape)
        assert abs(header["CRPIX1"] - (column + 1)) <= 0.5 * (scale - 1)
        assert abs(header["CRPIX2"] - (row + 1)) <= 0.5 * (scale - 1)
        assert (header["CDELT1"], header["CDELT2"]) == (0.1 * scale, 0.2 * scale)


def test_fits_of_unknown_pixels_tables_and_cubes():
    fits = pytest.importorskip("astropy.io.fits")
    samples = noise(*TALL, dtype=np.float32)
    samples[3, 4] = np.nan
    picture = read_picture(sky(samples), missing=True)
    assert [tuple(place) for place in np.argwhere(picture.missing)] == [(TALL[0] - 1 - 3, 4)]
    with pytest.raises(UsageError, match="NaN"):
        read_picture(sky(samples))
    with pytest.raises(UsageError, match="save one plane"):
        read_picture(sky(noise(5, *TALL)))
    table = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns([fits.Column("a", "E", array=[1.0])])]).writeto(
        table
    )
    with pytest.raises(UsageError, match="only tables"):
        read_picture(table.getvalue())


def test_openexr_keeps_floats_and_alpha(tmp_path):
    exr = pytest.importorskip("OpenEXR")
    samples = noise(*TALL, 4, dtype=np.float32) * 8
    header = {"compression": exr.ZIP_COMPRESSION, "type": exr.scanlineimage}
    for name, channels in (("RGBA", samples), ("RGB", samples[..., :3].copy()), ("Y", samples[..., 0].copy())):
        path = tmp_path / f"{name}.exr"
        exr.File(header, {name: channels}).write(str(path))
        picture = read_picture(path)
        assert (picture.kind.suffix, picture.kind.alpha) == (".exr", "assocalpha" if name == "RGBA" else None)
        np.testing.assert_allclose(samples_of(picture), channels, rtol=1e-6, atol=1e-5)
        again = read_picture(encode_picture(picture.image, picture))
        np.testing.assert_array_equal(again.image, picture.image)
    with pytest.raises(UsageError, match="damaged or cut short"):
        read_picture(path.read_bytes()[:300])


def test_heif_is_read():
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    ramp = np.indices((64, 48)).sum(0).astype(np.uint8)[..., None].repeat(3, axis=2)
    heif.from_pillow(Image.fromarray(ramp)).save(file, quality=-1)
    picture = read_picture(file.getvalue())
    assert (picture.size, picture.kind.dtype, picture.kind.suffix) == ((64, 48), "uint8", ".png")
    assert np.abs(samples_of(picture).astype(int) - ramp).max() <= 3


def test_a_raw_file_is_developed_linear_to_16_bits():
    pytest.importorskip("rawpy")
    bright, dark = (dng(np.full((64, 96), level, np.uint16)) for level in (2000, 1000))
    pictures = [read_picture(data) for data in (bright, dark)]
    assert {(picture.size, picture.kind.dtype, picture.kind.suffix) for picture in pictures} == {
        ((64, 96), "uint16", ".tif")
    }
    ratio = samples_of(pictures[0]).mean() / samples_of(pictures[1]).mean()
    assert ratio == pytest.approx(2, rel=0.01)
    with pytest.raises(UsageError, match=r"LibRaw cannot develop it \([^b]"):
        read_picture(b"FUJIFILMCCD-RAW 0201" + bytes(3000))


def dng(samples):
    """A raw file of a colour filter array of 12 bits, with what a developer needs beside it."""
    identity = [number for value in (1, 0, 0, 0, 1, 0, 0, 0, 1) for number in (value, 1)]
    tags = [
        (33421, "H", 2, (2, 2), True),
        (33422, "B", 4, b"\0\1\1\2", True),
        (50706, "B", 4, b"\1\4\0\0", True),
        (50708, "s", 0, "Nobody One", True),
        (50717, "I", 1, 4095, True),
        (50721, "2i", 9, tuple(identity), True),
        (50728, "2I", 3, (1, 1, 1, 1, 1, 1), True),
        (50778, "H", 1, 21, True),
    ]
    return tiff(samples, photometric=32803, extratags=tags)
