"""The size and the place of pixels go along, from file to result and through a model file, however they are held."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from picture_files import TALL, encode_picture, noise, pillow, tiff
from PIL import Image

from dip_fast.pictures import encode_image, read_picture
from dip_fast.pictures.geometry import Geometry
from dip_fast.runs.finish import _extras


def result_of(data):
    """What is written for a picture whose image is left as it is."""
    picture = read_picture(data)
    return encode_picture(picture.image, picture)


def enlarged(data, factor=2):
    """What is written for a picture of more pixels."""
    picture = read_picture(data)
    height, width = (factor * side for side in picture.size)
    kind = replace(picture.kind, height=height, width=width)
    image = picture.image.repeat(factor, axis=0).repeat(factor, axis=1)
    return encode_image(image, kind, _extras(picture, kind))


def imagej():
    file = io.BytesIO()
    tifffile.imwrite(file, noise(*TALL), imagej=True, resolution=(1 / 0.65, 1 / 0.65), metadata={"unit": "um"})
    return file.getvalue()


def ome(**options):
    file = io.BytesIO()
    sizes = {"PhysicalSizeX": 0.1083, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.2166, "PhysicalSizeYUnit": "µm"}
    tifffile.imwrite(file, noise(*TALL, dtype=np.uint16), ome=True, metadata={"axes": "YX", **sizes}, **options)
    return file.getvalue()


@pytest.mark.parametrize("factor", [1, 2])
def test_pixel_size_of_imagej_is_kept(factor):
    """Reported of others: the result measures everything in pixels."""
    with tifffile.TiffFile(io.BytesIO(enlarged(imagej(), factor))) as file:
        assert file.is_imagej
        assert file.imagej_metadata["unit"] == "um"
        number, by = file.pages[0].tags["XResolution"].value
        assert number / by == pytest.approx(factor / 0.65, rel=1e-6)
        assert file.pages[0].tags["ResolutionUnit"].value == 1


@pytest.mark.parametrize("factor", [1, 2])
def test_pixel_size_of_ome_tiff_is_kept(factor):
    with tifffile.TiffFile(io.BytesIO(enlarged(ome(), factor))) as file:
        assert file.is_ome
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        assert file.series[0].shape == tuple(factor * side for side in TALL)
    assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeY"]) == (0.1083 / factor, 0.2166 / factor)
    assert (pixels["PhysicalSizeXUnit"], pixels["Type"]) == ("µm", "uint16")
    assert (pixels["SizeX"], pixels["SizeY"]) == (factor * TALL[1], factor * TALL[0])


@pytest.mark.parametrize("unit", [2, 3], ids=["inch", "cm"])
def test_resolution_of_a_tiff_is_kept(unit):
    with tifffile.TiffFile(
        io.BytesIO(result_of(tiff(noise(*TALL), resolution=(300, 150), resolutionunit=unit)))
    ) as file:
        tags = file.pages[0].tags
        assert (tags["XResolution"].value, tags["YResolution"].value) == ((300, 1), (150, 1))
        assert tags["ResolutionUnit"].value == unit


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "JPEG with EXIF", "PNG of 16 bits"])
def test_dpi_are_kept(kind):
    rgb = noise(*TALL, 3)
    exif = Image.Exif()
    exif[282], exif[283], exif[296] = 300.0, 300.0, 2
    data = {
        "PNG": lambda: pillow(rgb, "PNG", dpi=(300, 300)),
        "JPEG": lambda: pillow(rgb, "JPEG", dpi=(300, 300)),
        "BMP": lambda: pillow(rgb, "BMP", dpi=(300, 300)),
        "JPEG with EXIF": lambda: pillow(rgb, "JPEG", exif=exif.tobytes()),
        "PNG of 16 bits": lambda: pillow(noise(*TALL, dtype=np.uint16), "PNG", dpi=(300, 300)),
    }[kind]()
    with Image.open(io.BytesIO(result_of(data))) as file:
        file.load()
        assert file.info["dpi"] == pytest.approx((300, 300), abs=0.02)
    with Image.open(io.BytesIO(enlarged(data))) as file:
        assert file.info["dpi"] == pytest.approx((600, 600), abs=0.02)


def test_a_picture_that_names_no_resolution_gets_none():
    for data in (pillow(noise(*TALL), "PNG"), pillow(noise(*TALL, 3), "JPEG"), pillow(noise(*TALL, 3), "WEBP")):
        assert read_picture(data).extras.geometry is None
        assert b"pHYs" not in result_of(data)
    exif = Image.Exif()
    exif[271] = "a camera"  # where Pillow makes up 72 dpi
    assert read_picture(pillow(noise(*TALL, 3), "JPEG", exif=exif.tobytes())).extras.geometry is None


def test_resolution_turns_with_the_picture():
    exif = Image.Exif()
    exif[274] = 6
    data = pillow(noise(*TALL), "PNG", exif=exif.tobytes(), dpi=(300, 150))
    with Image.open(io.BytesIO(result_of(data))) as file:
        assert file.info["dpi"] == pytest.approx((150, 300), abs=0.02)


def test_the_place_of_geotiff_is_kept():
    place = [
        (33550, "d", 3, (10.0, 20.0, 0.0), True),
        (33922, "d", 6, (0.0, 0.0, 0.0, 4e5, 5e6, 0.0), True),
        (34735, "H", 8, (1, 1, 0, 1, 1024, 0, 1, 1), True),
        (42113, "s", 0, "-9999", True),
    ]
    data = tiff(noise(*TALL), extratags=place)
    for factor in (1, 2):
        with tifffile.TiffFile(io.BytesIO(enlarged(data, factor))) as file:
            tags = file.pages[0].tags
            assert tags[33550].value == (10.0 / factor, 20.0 / factor, 0.0)
            assert (tags[33922].value, tags[34735].value, tags[42113].value) == (*(p[3] for p in place[1:3]), "-9999")
    picture = read_picture(data)
    part = replace(picture.extras, geometry=picture.extras.geometry.cropped(2, 3))
    with tifffile.TiffFile(io.BytesIO(encode_image(picture.image, picture.kind, part))) as file:
        assert file.pages[0].tags[33922].value == (-2.0, -3.0, 0.0, 4e5, 5e6, 0.0)
    turned = tiff(noise(*TALL), extratags=[*place, (274, "H", 1, 6, True)])
    with tifffile.TiffFile(io.BytesIO(result_of(turned))) as file:
        assert 33550 not in file.pages[0].tags  # it would hold for other rows


@pytest.mark.parametrize("facts", [{"unit": "mile"}, {"resolution": [0, 1]}, {"scale": [float("nan"), 1]}, {"text": 3}])
def test_damaged_geometry_of_a_model_file_is_refused(facts):
    whole = Geometry((300.0, 150.0), "inch", "text", ((42113, "s", ("-9999",)),)).facts()
    assert Geometry.of(whole).facts() == whole
    with pytest.raises((ValueError, TypeError)):
        Geometry.of(whole | facts)


@pytest.mark.usefixtures("small", "from_random_input")
def test_replay_gives_the_pixel_size_back(dip, place):
    (place / "cells.tif").write_bytes(ome())
    words = ("--threads", "1", "--iterations", "3", "-q")
    assert dip("run", "cells.tif", *words).code == 0
    assert dip("replay", "runs/cells/model.onnx", "-o", "again.tif").code == 0
    result, again = (place / name for name in ("runs/cells/result.tif", "again.tif"))
    assert again.read_bytes() == result.read_bytes()
    assert re.search(rb'PhysicalSizeX="0.1083"', again.read_bytes())
