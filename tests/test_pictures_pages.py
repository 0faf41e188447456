"""What ImageJ and OME say of a stack holds, in the result of one page, for that page alone."""

import io
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from picture_files import TALL, encode_picture, noise

from dip_fast.pictures import read_picture

SIZES = {"PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}


def written(samples, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, samples, **options)
    return file.getvalue()


def result_of(data, page=None):
    picture = read_picture(data, page=page)
    return tifffile.TiffFile(io.BytesIO(encode_picture(picture.image, picture)))


def pixels_of(file):
    return tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (np.int8, "int8"),
        (np.int16, "int16"),
        (np.int32, "int32"),
        (np.uint32, "uint32"),
        (np.float64, "double"),
        (bool, "bit"),
    ],
)
def test_ome_of_every_type_is_written(dtype, kind):
    """Reported of this: KeyError after the fit."""
    samples = noise(*TALL) > 127 if dtype is bool else noise(*TALL, dtype=np.dtype(dtype).type)
    with result_of(written(samples, ome=True, metadata={"axes": "YX", **SIZES})) as file:
        pixels = pixels_of(file)
        assert (pixels["Type"], pixels["PhysicalSizeX"]) == (kind, 0.25)
        assert file.series[0].asarray().dtype == dtype


def test_samples_that_ome_has_not_leave_the_text_out():
    from dip_fast.pictures.tiff_texts import of_result

    text = '<OME><Image><Pixels SizeX="1"/></Image></OME>'
    assert of_result(text, np.zeros((2, 2), np.complex64), (1, 1)) is None


def test_odd_ome_is_adapted_or_left_as_it_is():
    """Values that hold the end of a tag, sizes that are no number, elements without an end, and other quotes."""
    from dip_fast.pictures.tiff_texts import of_page, of_result

    text = (
        "<o:OME><o:Image Name='a>b'><o:Pixels SizeX='4' SizeC='2' PhysicalSizeX='wide' PhysicalSizeY='2e-1'>"
        '<o:Channel Name=">5"/><o:Channel Name="/>6"/><o:TiffData PlaneCount="2"/></o:Pixels></o:Image></o:OME>'
    )
    found = of_result(of_page(text, 1), np.zeros((8, 6), np.uint8), (2, 2))
    root = ElementTree.fromstring(found.replace("o:", ""))
    pixels, channel = root.find("Image/Pixels"), root.find("Image/Pixels/Channel")
    wanted = {"SizeX": "6", "SizeY": "8", "SizeC": "1", "PhysicalSizeX": "wide", "PhysicalSizeY": "0.1"}
    assert wanted.items() <= pixels.attrib.items()
    assert channel.attrib == {"Name": "/>6", "SamplesPerPixel": "1"}
    for cut in range(len(text)):
        shown = of_page(text[:cut], 0)
        assert shown == "" or of_result(shown, np.zeros((8, 6), np.uint8), (2, 2)) is not None
    assert of_page("<Image Name='" * 50000, 0) == ""


@pytest.mark.parametrize("page", [1, 2, 3])
def test_a_page_of_an_imagej_stack_is_described_as_one_page(page):
    stack = noise(3, *TALL, dtype=np.uint16)
    data = written(stack, imagej=True, resolution=(4, 4), metadata={"unit": "um", "spacing": 0.5, "axes": "ZYX"})
    with result_of(data, page) as file:
        described = file.imagej_metadata
        assert described["unit"] == "um"
        assert not {"images", "slices", "frames", "channels", "hyperstack"} & {*described}
        assert file.pages[0].tags["XResolution"].value == (4, 1)
        np.testing.assert_array_equal(file.asarray(), stack[page - 1])


@pytest.mark.parametrize("page", [1, 2, 6])
def test_a_page_of_an_ome_stack_is_described_as_one_page(page):
    """And a later page has the pixel size, whose text only the first has; of the channels, its own."""
    stack = noise(2, 3, *TALL, dtype=np.uint16)
    names = {"Channel": {"Name": ["red", "green", "blue"]}}
    data = written(stack, ome=True, photometric="minisblack", metadata={"axes": "ZCYX", **SIZES, **names})
    with result_of(data, page) as file:
        pixels = pixels_of(file)
        assert [pixels[f"Size{axis}"] for axis in "ZCT"] == [1, 1, 1]
        assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeY"]) == (0.25, 0.5)
        assert pixels["TiffData"] == {"IFD": 0, "PlaneCount": 1}
        assert pixels["Channel"]["Name"] == ("red", "green", "blue")[(page - 1) % 3]
        assert file.series[0].shape == TALL
        np.testing.assert_array_equal(file.asarray(), stack.reshape(-1, *TALL)[page - 1])


def test_a_page_of_an_ome_file_of_several_images_has_its_own_pixel_size():
    file = io.BytesIO()
    with tifffile.TiffWriter(file, ome=True) as writer:
        for size in (0.25, 0.75):
            writer.write(noise(*TALL), metadata={"axes": "YX", "PhysicalSizeX": size})
    for page, size in ((1, 0.25), (2, 0.75)):
        with result_of(file.getvalue(), page) as result:
            assert pixels_of(result)["PhysicalSizeX"] == size


def test_ome_of_colours_counts_them():
    data = written(noise(*TALL, 3), ome=True, photometric="rgb", metadata={"axes": "YXS", **SIZES})
    with result_of(data) as file:
        pixels = pixels_of(file)
        assert (pixels["SizeC"], pixels["Channel"]["SamplesPerPixel"]) == (3, 3)
        assert file.series[0].shape == (*TALL, 3)
