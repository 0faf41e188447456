"""The value range of pictures, samples to images and back, and what can be encoded."""

import json
from dataclasses import replace

import imagecodecs
import numpy as np
import pytest
from picture_files import TALL, encode_picture, noise, pillow, samples_of, tiff

from dip_fast.errors import UsageError
from dip_fast.pictures import Extras, Kind, encode_image, encode_samples, read_picture
from dip_fast.pictures.samples import value_range


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


def test_ranges_of_other_dtypes_and_refused_ones():
    assert value_range(np.array([3, 4], np.uint8)) == (0, 255)
    assert value_range(np.array([True, False])) == (0, 1)
    assert value_range(np.array([0, 70_000], np.int32)) == (0, 2**17 - 1)
    assert value_range(np.array([-3, 900], np.int16)) == (-3, 900)
    with pytest.raises(TypeError, match="complex64"):
        value_range(np.zeros(3, np.complex64))


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
    assert picture.kind.to_samples(values).ravel().tolist() == [0, 100, 101, 255]
    picture = read_picture(tiff(noise(*TALL, dtype=np.float32)))
    assert picture.kind.to_samples(np.array([-0.5, 1.5])).tolist() == [-0.5, 1.5]


def test_12_bit_overshoot_is_clipped_at_the_container_only():
    picture = read_picture(imagecodecs.png_encode(np.eye(16).astype(np.uint16) * 4095))
    assert picture.kind.to_samples(np.array([2.0, 20.0])).tolist() == [8190, 65535]


def test_nan_in_a_result_is_an_error():
    picture = read_picture(tiff(noise(*TALL)))
    with pytest.raises(ValueError, match="NaN"):
        picture.kind.to_samples(np.full((16, 16, 1), np.nan))


def test_encoding_checks_what_it_is_given():
    rgba = read_picture(pillow(noise(*TALL, 4), "PNG"))
    with pytest.raises(ValueError, match=r"\(21, 18, 3\) of uint8 as their kind says, got \(21, 18, 1\) of uint8"):
        encode_image(rgba.image[..., :1], rgba.kind, rgba.extras)
    with pytest.raises(ValueError, match=r"\(21, 18, 3\) of uint8 .* got \(21, 18, 3\) of float32"):
        encode_samples(rgba.image, rgba.kind, rgba.extras)
    with pytest.raises(ValueError, match=r"alpha must be \(20, 18\) of uint8 as the result is, got \(21, 18\)"):
        encode_picture(rgba.image[:-1], rgba)
    with pytest.raises(UsageError, match=r'"\.bmp".*\.png, .*\.tif'):
        encode_picture(rgba.image, rgba, suffix=".bmp")
    floats = read_picture(tiff(noise(*TALL, dtype=np.float32)))
    with pytest.raises(UsageError, match=r"float.*\.tif"):
        encode_picture(floats.image, floats, suffix=".png")
    premultiplied = read_picture(tiff(noise(*TALL, 4), extrasamples=["assocalpha"]))
    with pytest.raises(UsageError, match=r"premultiplied.*\.tif"):
        encode_picture(premultiplied.image, premultiplied, suffix=".PNG")


def test_alpha_is_in_both_the_kind_and_the_extras_or_in_neither():
    rgba = read_picture(pillow(noise(*TALL, 4), "PNG"))
    for kind, extras in ((rgba.kind, Extras()), (replace(rgba.kind, alpha=None), rgba.extras)):
        with pytest.raises(ValueError, match="both, or neither"):
            encode_image(rgba.image, kind, extras)
    opaque = read_picture(encode_image(rgba.image, replace(rgba.kind, alpha=None)))
    assert opaque.extras.alpha is None
    np.testing.assert_array_equal(opaque.image, rgba.image)


def test_a_result_may_have_other_channels():
    gray = read_picture(pillow(noise(*TALL), "PNG", icc_profile=None))
    colour = read_picture(encode_picture(gray.image.repeat(3, axis=2), gray))
    np.testing.assert_array_equal(colour.image, gray.image.repeat(3, axis=2))


def test_a_kind_comes_back_from_json():
    for data in (pillow(noise(*TALL, 4), "PNG"), tiff(noise(*TALL, dtype=np.float32))):
        kind = read_picture(data).kind
        facts = json.loads(json.dumps(kind.facts()))
        assert Kind.of(facts) == kind
        assert (facts["bit_depth"], kind.size) == (kind.bits, TALL)
    for wrong in ({"suffix": ".png"}, {"suffix": ".tiff"}, {"suffix": ".jpg"}, {"suffix": ["x"]}, {"dtype": "float16"}):
        with pytest.raises(ValueError, match="damaged"):
            Kind.of(facts | wrong)


def test_a_larger_result_may_be_written_where_there_is_no_alpha():
    picture = read_picture(pillow(noise(*TALL, 3), "PNG"))
    larger = picture.image.repeat(2, axis=0).repeat(2, axis=1)
    assert read_picture(encode_picture(larger, picture)).size == (42, 36)
