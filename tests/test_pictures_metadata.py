"""EXIF orientation, EXIF data and colour profiles of pictures."""

import io
import re
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from picture_files import ICC, TALL, chunk, encode_picture, full_exif, noise, pillow, samples_of, tiff
from PIL import ExifTags, Image, ImageOps

from dip_fast.pictures import read_picture

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
    np.testing.assert_array_equal(picture.extras.alpha, np.rot90(rgba[..., 3], -1))
    assert picture.size == picture.extras.alpha.shape


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
    assert picture.extras.icc_profile == ICC
    result = encode_picture(picture.image, picture)
    assert read_picture(result).extras.icc_profile == ICC
    with Image.open(io.BytesIO(result)) as file:
        assert file.info["icc_profile"] == ICC
        file.load()
    if kind == "PNG16":
        assert result[37:41] == b"iCCP"  # before the pixels, or libpng ignores it
        np.testing.assert_array_equal(imagecodecs.png_decode(result), rgb.astype(np.uint16) * 257)


def shown_exif(data):
    """Return main directory, camera settings and GPS as Pillow finds them."""
    with Image.open(io.BytesIO(data)) as file:
        exif = file.getexif()
        return dict(exif), exif.get_ifd(0x8769), exif.get_ifd(0x8825)


@pytest.mark.parametrize("target", ["png", "png16", "tif", "jpg"])
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
    suffix = ".png" if target == "png16" else f".{target}"

    picture = read_picture(data)
    assert picture.extras.exif is None
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
    if target == "jpg":
        assert re.search(rb"\xff\xe1..Exif\0\0", result, re.DOTALL)  # readers look for these six bytes
        return
    np.testing.assert_array_equal(samples_of(read_picture(result)), samples_of(picture))

    # Once more from the result: from TIFF to TIFF and PNG to PNG.
    again = read_picture(result, keep_metadata=True)
    assert shown_exif(encode_picture(again.image, again))[1:] == (settings_, gps)


def test_damaged_exif_costs_the_metadata_only():
    exif = full_exif()
    data = pillow(noise(*TALL, 3), "JPEG", exif=exif[:20] + b"\xff" * 40)
    picture = read_picture(data, keep_metadata=True)
    assert picture.size in (TALL, TALL[::-1])
