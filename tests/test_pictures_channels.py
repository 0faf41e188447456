"""TIFF files of any number of channels, kind of samples and pages: read, and written back in their kind."""

import io

import numpy as np
import pytest
import tifffile
from picture_files import TALL, noise, tiff
from PIL import Image
from run_cases import SHORT

from dip_fast.errors import UsageError
from dip_fast.pictures import Kind, encode_image, encode_samples, read_picture
from dip_fast.tasks import TASKS

DTYPES = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]


def values(dtype, *shape):
    """Samples over a good part of the dtype's range."""
    if dtype == "bool":
        return noise(*shape) > 99
    if np.dtype(dtype).kind == "f":
        return noise(*shape, dtype=dtype) * 300 - 100
    return noise(*shape, dtype=dtype)


def written(picture):
    return tifffile.TiffFile(io.BytesIO(encode_image(picture.image, picture.kind, picture.extras)))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_of_any_kind_come_back_in_their_kind(dtype, order):
    samples = values(dtype, *TALL)
    picture = read_picture(tiff(samples, byteorder=order), aside=TASKS["denoise"].aside)
    assert picture.kind.dtype == dtype
    assert Kind.of(picture.kind.facts()) == picture.kind
    with written(picture) as file:
        assert file.pages[0].dtype == dtype
        # Wide samples are drawn in 32-bit floats.
        step = 0 if np.dtype(dtype).itemsize < 4 else np.ptp(samples.astype(float)) * 2.0**-23
        np.testing.assert_allclose(file.asarray().astype(float), samples.astype(float), rtol=0, atol=step)


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("channels", [2, 3, 4, 5, 22])
def test_channels_are_no_alpha_unless_the_file_says_so(channels, planes):
    samples = noise(*TALL, channels, dtype=np.uint16)
    stored = samples if planes == "contig" else np.moveaxis(samples, -1, 0)
    picture = read_picture(tiff(stored, photometric="minisblack", planarconfig=planes))
    assert (picture.channels, picture.extras.alpha, picture.notes) == (channels, None, ())
    with written(picture) as file:
        page = file.pages[0]
        assert (page.photometric.name, page.samplesperpixel) == ("MINISBLACK", channels)
        assert [int(kind) for kind in page.extrasamples] == [0] * (channels - 1)
        np.testing.assert_array_equal(page.asarray(), samples)


def test_an_alpha_among_channels_is_found_by_what_the_file_says():
    samples = noise(*TALL, 5)
    picture = read_picture(tiff(samples, photometric="rgb", extrasamples=["unspecified", "unassalpha"]))
    assert (picture.channels, picture.kind.is_rgb) == (4, True)
    np.testing.assert_array_equal(picture.extras.alpha, samples[..., 4])
    assert "restored like the others" in picture.notes[0]
    with written(picture) as file:
        assert (file.pages[0].photometric.name, [int(kind) for kind in file.pages[0].extrasamples]) == ("RGB", [0, 2])
        np.testing.assert_array_equal(file.asarray(), samples)


def test_png_holds_no_channels_that_are_no_colours():
    picture = read_picture(tiff(noise(*TALL, 2), photometric="minisblack", planarconfig="contig"))
    with pytest.raises(UsageError, match=r"PNG cannot hold 2 channels that are no RGB: name the result \.tif"):
        encode_samples(picture.samples, picture.kind, picture.extras, suffix=".png")


@pytest.mark.parametrize("side", [17, 33, 101])
def test_edges_of_odd_sizes_are_whole(side):
    samples = noise(side, side + 2, dtype=np.uint16)
    for tile in (None, (16, 16)):
        picture = read_picture(tiff(samples, tile=tile, byteorder=">"))
        with written(picture) as file:
            np.testing.assert_array_equal(file.asarray(), samples)


STACKS = {
    "plain": {"photometric": "minisblack"},
    "imagej": {"imagej": True, "metadata": {"axes": "ZYX"}},
    "ome": {"ome": True, "photometric": "minisblack", "metadata": {"axes": "ZYX"}},
    "bigtiff": {"bigtiff": True, "photometric": "minisblack"},
    "compressed": {"compression": "zlib", "photometric": "minisblack"},
}


@pytest.mark.parametrize("kind", STACKS)
def test_a_page_of_a_stack_is_chosen_by_its_number(kind):
    pages, file = noise(5, *TALL, dtype=np.uint16), io.BytesIO()
    tifffile.imwrite(file, pages, **STACKS[kind])
    data = file.getvalue()
    for number in (1, 3, 5):
        np.testing.assert_array_equal(read_picture(data, page=number).samples[..., 0], pages[number - 1])
    with pytest.raises(UsageError, match=r"it holds 5 pages; choose one, such as page=1, or save"):
        read_picture(data)
    for number in (0, 6):
        with pytest.raises(UsageError, match=rf"page={number}: it holds 5 pages; choose one of them"):
            read_picture(data, page=number)


def test_a_page_of_more_than_a_hundred():
    pages, file = noise(120, 16, 16), io.BytesIO()
    tifffile.imwrite(file, pages, photometric="minisblack", metadata=None)
    np.testing.assert_array_equal(read_picture(file.getvalue(), page=120).samples[..., 0], pages[-1])


def test_a_stack_cut_short_is_refused():
    file = io.BytesIO()
    tifffile.imwrite(file, noise(5, *TALL, dtype=np.uint16), imagej=True)
    data = file.getvalue()[:-900]
    with pytest.raises(UsageError, match=r"cut short|damaged"):
        read_picture(data, page=5)


def test_the_command_line_chooses_a_page(dip, small, place):
    tifffile.imwrite("stack.tif", noise(3, *TALL, dtype=np.uint16), imagej=True)
    refused = dip("run", "stack.tif")
    assert refused.code == 2
    assert "stack.tif: it holds 3 pages; choose one, such as --page 1, or save" in refused.err
    assert dip("run", "stack.tif", "--page", "2", *SHORT).code == 0
    assert tifffile.imread("runs/stack/result.tif").shape == TALL
    again = dip("run", "stack.tif", "--page", "3", "--resume", *SHORT)
    assert "cannot resume" in again.err
    Image.fromarray(noise(*TALL)).save("one.png")
    assert "a PNG file has no pages; leave it out" in dip("run", "one.png", "--page", "1").err


def test_many_channels_through_a_run_a_replay_and_an_export(dip, small, place):
    samples = noise(*TALL, 5, dtype=np.int16)
    tifffile.imwrite("five.tif", samples, photometric="minisblack", planarconfig="contig")
    outcome = dip(
        "run", "five.tif", *SHORT[:2], "--iterations", "6", "--snapshot-every", "3", "--export", "onnx,torchscript"
    )
    assert outcome.code == 0, outcome.err
    assert "five.tif: 18x21, 5 channels, 16 bit signed" in outcome.err
    result = tifffile.imread("runs/five/result.tif")
    assert (result.dtype, result.shape) == (samples.dtype, samples.shape)
    for model in ("model.onnx", "model.pt"):
        assert dip("replay", f"runs/five/{model}", "--verify", "--trust", "-o", f"{model}.tif").code == 0
        np.testing.assert_allclose(tifffile.imread(f"{model}.tif").astype(int), result, rtol=0, atol=2)
