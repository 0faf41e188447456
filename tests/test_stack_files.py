"""Stacks of pictures as files: read one by one, and written with the axes and all that was said of them."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from picture_files import TALL, noise
from PIL import Image

from dip_fast.errors import UsageError
from dip_fast.pictures import stacks

SIZES = {"PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm", "PhysicalSizeZ": 1.5}
NAMES = {"Channel": {"Name": ["dapi", "gfp"]}}
# By name: shape, dtype, arguments of tifffile, pictures, moments and channels.
FILES = {
    "ome": ((2, 3, 2), "u2", {"ome": True, "metadata": {"axes": "TZCYX", **SIZES, **NAMES}}, (6, 2, 2)),
    "ome, channels outermost": ((2, 3, 4), "u2", {"ome": True, "metadata": {"axes": "CZTYX"}}, (12, 4, 2)),
    "ome, big-endian floats": ((3,), "f4", {"ome": True, "byteorder": ">", "metadata": {"axes": "ZYX"}}, (3, 1, 1)),
    "hyperstack": ((2, 3, 2), "u1", {"imagej": True, "metadata": {"axes": "TZCYX", "unit": "um"}}, (6, 2, 2)),
    "imagej, channels alone": ((3,), "u2", {"imagej": True, "metadata": {"axes": "CYX"}}, (1, 1, 3)),
    "pages": ((3,), "u2", {"metadata": None}, (3, 3, 1)),
    "pages, compressed": ((3,), "u2", {"metadata": None, "compression": "zlib"}, (3, 3, 1)),
    "named axes": ((2, 3), "f8", {"metadata": {"axes": "TCYX", "made": "here"}}, (2, 2, 3)),
    "truth values": ((3,), "b1", {}, (3, 3, 1)),
}


OPENED = []


def open_stack(sources):
    OPENED.append(stacks.open_stack(sources))
    return OPENED[-1]


@pytest.fixture(autouse=True)
def closing():
    """Close what a test opens."""
    yield
    while OPENED:
        OPENED.pop().close()


def written(path, name):
    shape, dtype, options, _ = FILES[name]
    samples = noise(*shape, *TALL, dtype=np.dtype(dtype).type) if dtype != "b1" else noise(*shape, *TALL) > 127
    tifffile.imwrite(path, samples, photometric="minisblack", **options)
    return samples


def copied(path, out):
    """Write what a stack holds, as it is."""
    stack = open_stack([path])
    with out.open("w+b") as file:
        stack.write(stack.results[0], file, lambda number: stack.read(number).samples)


def said(path):
    with tifffile.TiffFile(path) as file:
        return file.ome_metadata


@pytest.mark.parametrize("name", FILES)
def test_a_tiff_stack_keeps_axes_samples_and_sort(name, place):
    samples = written(place / "a.tif", name)
    stack = open_stack([place / "a.tif"])
    assert (stack.count, stack.moments, stack.kind.channels) == FILES[name][3]
    copied(place / "a.tif", place / "b.tif")
    with tifffile.TiffFile(place / "a.tif") as before, tifffile.TiffFile(place / "b.tif") as after:
        first, second = before.series[0], after.series[0]
        assert (first.axes, first.shape, first.dtype) == (second.axes, second.shape, second.dtype)
        assert (before.is_ome, before.is_imagej) == (after.is_ome, after.is_imagej)
        np.testing.assert_array_equal(second.asarray(), samples)


@pytest.mark.parametrize(("name", "words"), [("imagej, channels alone", "1 picture ("), ("pages", "3 pictures (")])
def test_one_picture_is_not_1_pictures(name, words, place):
    written(place / "a.tif", name)
    assert open_stack([place / "a.tif"]).described.startswith(words)


def test_colours_and_alpha_of_pages_are_kept(place):
    for name, options in {"rgba": {"extrasamples": ["unassalpha"]}, "planar": {"planarconfig": "separate"}}.items():
        shape = (2, *TALL, 4) if name == "rgba" else (2, 3, *TALL)
        samples = noise(*shape)
        tifffile.imwrite(place / "a.tif", samples, photometric="rgb", compression="zlib", **options)
        assert open_stack([place / "a.tif"]).read(0).samples.shape == (*TALL, 3)
        copied(place / "a.tif", place / "b.tif")
        with tifffile.TiffFile(place / "b.tif") as after:
            np.testing.assert_array_equal(after.asarray(), samples)
            assert after.pages[0].photometric == tifffile.PHOTOMETRIC.RGB


def test_what_ome_says_is_kept_under_another_identity(place):
    written(place / "a.tif", "ome")
    copied(place / "a.tif", place / "b.tif")
    before, after = (tifffile.xml2dict(said(place / f"{name}.tif"))["OME"] for name in "ab")
    assert before.pop("UUID") != after["UUID"]
    assert after.pop("UUID").startswith("urn:uuid:")
    assert before == after
    assert after["Image"]["Pixels"]["PhysicalSizeZ"] == 1.5


def test_places_of_pages_in_another_order_are_not_kept(place):
    """A file may name the place of each page, and the result has them in the order of its axes."""
    text = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        'DimensionOrder="XYCZT" Type="uint8" BigEndian="true" SizeX="18" SizeY="21" SizeC="1" SizeZ="1" SizeT="2">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="1"/><TiffData FirstT="1" IFD="0"/><TiffData FirstT="0" IFD="1">'
        "</TiffData></Pixels></Image></OME>"
    )
    samples = noise(2, *TALL)
    tifffile.imwrite(place / "a.tif", samples, description=text, metadata=None, photometric="minisblack")
    np.testing.assert_array_equal(open_stack([place / "a.tif"]).read(0).samples[..., 0], samples[1])
    copied(place / "a.tif", place / "b.tif")
    np.testing.assert_array_equal(tifffile.imread(place / "b.tif"), samples[::-1])
    assert 'BigEndian="false"' in said(place / "b.tif")


def test_what_imagej_says_is_kept(place):
    told = {"unit": "um", "spacing": 0.5, "finterval": 2.0, "Labels": ["one", "two", "three"]}
    samples = noise(3, *TALL, dtype=np.uint16)
    tifffile.imwrite(place / "a.tif", samples, imagej=True, resolution=(4, 5), metadata={"axes": "TYX", **told})
    copied(place / "a.tif", place / "b.tif")
    with tifffile.TiffFile(place / "b.tif") as after:
        assert told.items() <= after.imagej_metadata.items()
        assert after.pages[0].resolution == (4, 5)


def test_a_large_hyperstack_has_one_directory(place, monkeypatch):
    """As ImageJ writes what is longer than places of 32 bits reach."""
    monkeypatch.setattr("dip_fast.pictures.tiff_stacks._CLASSIC", 0)
    samples = written(place / "a.tif", "hyperstack")
    copied(place / "a.tif", place / "b.tif")
    with tifffile.TiffFile(place / "b.tif") as after:
        assert len(after.pages) == 1
        np.testing.assert_array_equal(after.asarray(), samples)
    stack = open_stack([place / "b.tif"])
    np.testing.assert_array_equal(stack.read(5).samples, np.moveaxis(samples[1, 2], 0, 2))


def files(folder, names, shape=TALL, **options):
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(noise(*shape, seed=number)).save(folder / name, **options)


def test_a_folder_is_in_the_order_of_its_numbers(place):
    files(place / "in", ["f10.png", "f2.png", "f1.png", ".hidden.png", "contact_sheet.png"])
    (place / "in" / "notes.txt").write_text("no picture")
    stack = open_stack([place / "in"])
    assert stack.results == ["f1.png", "f2.png", "f10.png"]
    np.testing.assert_array_equal(stack.read(2).samples[..., 0], noise(*TALL, seed=0))


def test_a_pattern_names_its_files(place):
    files(place / "in", ["f_0001.png", "f_0002.png", "f_03.png", "g_0001.png"])
    assert open_stack([place / "in" / "f_%04d.png"]).results == ["f_0001.png", "f_0002.png"]
    assert open_stack([place / "in" / "f_%d.png"]).results == ["f_0001.png", "f_0002.png", "f_03.png"]


def test_missing_numbers_of_a_pattern_are_named(place):
    """A film with holes was restored without a word."""
    files(place / "in", [f"f_{number}.png" for number in (1, 2, 4, 8)])
    assert open_stack([place / "in" / "f_%d.png"]).notes == ["There is no file with the number 3, 5 to 7."]
    assert not open_stack([place / "in"]).notes
    files(place / "many", [f"f_{number:02}.png" for number in range(1, 15, 2)])
    (note,) = open_stack([place / "many" / "f_%02d.png"]).notes
    assert note == "There is no file with the number 2, 4, 6, 8, 10 and 1 more gaps."


def test_results_of_lossy_files_are_lossless(place):
    files(place / "in", ["a.jpg", "b.jpg"])
    stack = open_stack([place / "in"])
    assert stack.results == ["a.png", "b.png"]
    assert stack.notes


def test_files_keep_resolution_and_alpha(place):
    files(place / "in", ["a.png", "b.png"], (*TALL, 4), dpi=(300, 300))
    stack = open_stack([place / "in"])
    with (place / "b.png").open("w+b") as file:
        stack.write("b.png", file, lambda number: stack.read(number).samples)
    with Image.open(place / "b.png") as after:
        np.testing.assert_array_equal(np.asarray(after), noise(*TALL, 4, seed=1))
        assert round(after.info["dpi"][0]) == 300


def refused(*sources):
    with pytest.raises(UsageError) as error:
        read_all(sources)
    return str(error.value)


def read_all(sources):
    stack = open_stack(sources)
    return [stack.read(number) for number in range(stack.count)]


def test_what_is_no_stack_is_refused_in_a_line(place):
    files(place / "in", ["a.png"])
    files(place / "twice", ["a.png", "a.jpg"])
    files(place / "sizes", ["a.png"])
    files(place / "sizes", ["b.png"], (30, 30))
    (place / "empty").mkdir()
    tifffile.imwrite(place / "one.tif", noise(*TALL))
    with tifffile.TiffWriter(place / "kinds.tif") as writer:
        for side in (20, 20, 30):
            writer.write(noise(side, side), metadata=None)
    nan = np.full((2, *TALL), np.nan, np.float32)
    tifffile.imwrite(place / "nan.tif", nan, photometric="minisblack")
    assert "holds one picture" in refused(place / "in" / "a.png")
    assert "holds one picture" in refused(place / "one.tif")
    assert "the result a.png" in refused(place / "twice")
    assert "b.png is 30x30, 1 channel of uint8 and a.png 18x21" in refused(place / "sizes")
    assert "names no picture" in refused(place / "empty")
    assert "names no picture" in refused(place / "f_%04d.png")
    assert "no such file; check the path" in refused(place / "nothing.tif")
    assert "leave out the quotes, or name the folder" in refused(place / "in" / "*.png")
    assert "pictures of 2 kinds" in refused(place / "kinds.tif")
    assert "NaN or infinite" in refused(place / "nan.tif")


def test_a_stack_that_is_cut_short_is_refused(place):
    for name in ("hyperstack", "pages, compressed"):
        written(place / "a.tif", name)
        data = (place / "a.tif").read_bytes()
        (place / "a.tif").write_bytes(data[: len(data) // 3])
        assert "get an intact copy" in refused(place / "a.tif")


def test_a_file_that_is_no_picture_is_named(place):
    Path("bad.png").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"cannot read bad\.png: it is not a PNG"):
        stacks.open_stack([Path("bad.png")])
