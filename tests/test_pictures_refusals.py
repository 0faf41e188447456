"""Pictures that are refused, and those that are damaged: the whole picture comes out, or a UsageError."""

import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from picture_files import (
    COLOURS,
    ICC,
    TALL,
    chunk,
    encode_picture,
    full_exif,
    noise,
    palette_picture,
    pillow,
    png,
    samples_of,
    smooth,
    tiff,
)
from PIL import Image

from dip_fast.errors import UsageError, in_words
from dip_fast.models.model import open_model
from dip_fast.pictures import read_picture, reading
from dip_fast.pictures.formats import MIN_SIDE
from dip_fast.tasks.kernels import blur


def animated(kind):
    frames = [Image.fromarray(noise(*TALL, 3, seed=seed)) for seed in range(3)]
    return pillow(frames[0], kind, save_all=True, append_images=frames[1:])


def animated_jxl():
    frames = np.stack([noise(*TALL, 3, seed=seed) for seed in range(3)])
    return bytes(imagecodecs.jpegxl_encode(frames, lossless=True, photometric="rgb"))


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
    "text": (lambda: b"not a picture at all\n" * 9, "not a PNG, JPEG, .* or MRC.*convert"),
    "cmyk jpeg": (lambda: pillow(Image.new("CMYK", TALL), "JPEG"), "CMYK.*convert it to RGB"),
    "cmyk tiff": (lambda: pillow(Image.new("CMYK", TALL), "TIFF"), "CMYK.*convert it to RGB"),
    "lab tiff": (lambda: pillow(Image.new("LAB", TALL), "TIFF"), "CIELAB.*convert"),
    "animated png": (lambda: animated("PNG"), "animated.*3 frames.*export one"),
    "animated gif": (lambda: animated("GIF"), "animated.*3 frames.*export one"),
    "animated avif": (lambda: animated("AVIF"), "animated.*3 frames.*export one"),
    "animated jxl": (animated_jxl, "animated.*export one"),
    "animated webp": (lambda: animated("WEBP"), "animated.*3 frames.*export one"),
    "pages": (two_tiffs, "2 pages; choose one, such as page=1"),
    "imagej stack": (imagej_stack, "5 pages; choose one, such as page=1"),
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
    "a thousand channels": (
        lambda: tiff(noise(16, 16, 300), planarconfig="contig", photometric="minisblack"),
        "300 channels, more than 256; save some",
    ),
    "floats too close for float32": (
        lambda: tiff(noise(*TALL, dtype=np.float64) + 1e9),
        "too close to each other for 32-bit float; subtract 1e.09",
    ),
    "complex": (lambda: tiff(noise(*TALL, dtype=np.float32).astype(np.complex64)), "complex64.*save them"),
    "too large a float": (lambda: tiff(np.full(TALL, 1e300)), "too large for 32-bit float.*scale"),
    "a range too wide for float32": (
        lambda: tiff(np.where(noise(*TALL) > 99, np.float32(3e38), np.float32(-3e38))),
        "too large for 32-bit float.*scale",
    ),
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
    monkeypatch.setattr(reading, "MAX_BYTES", 10)
    with pytest.raises(UsageError, match=r"longer than any picture of \d+ pixels; cut out the part to restore$"):
        read_picture(path)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.undo()
    monkeypatch.setattr(reading, "read_regular", refuse)  # root, as in most containers, may read everything
    with pytest.raises(UsageError, match="permission denied; make"):
        read_picture(path)


def test_a_library_that_is_missing_is_not_blamed_on_the_file(place, monkeypatch):
    """A sound file was called damaged, which no other copy of it would have mended."""
    from dip_fast.pictures.reading import naming

    def without(library):
        raise ModuleNotFoundError(f"No module named {library!r}", name=library)

    with pytest.raises(ModuleNotFoundError) as caught, naming("sound.png"):
        without("imagecodecs")
    assert str(in_words(caught.value)) == "imagecodecs is missing; pip install it, or dip-fast with all it needs"
    Image.new("L", (16, 16)).save("sound.png")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ModuleNotFoundError):
        blur("sound.png")


def test_devices_and_pipes_are_not_read(place):
    """The first may have no end, and the second no writer."""
    os.mkfifo("pipe.png")
    for path in ("/dev/zero", "pipe.png"):
        with pytest.raises(UsageError, match=f"cannot read {path}: it is a device or a pipe, not a regular file; save"):
            read_picture(path)
        with pytest.raises(UsageError, match=f"cannot replay {path}: it is a device or a pipe, not a regular file"):
            open_model(path)


class Endless(io.RawIOBase):
    """A stream that begins in some way and goes on with zeros for ever."""

    def __init__(self, start):
        self.start, self.given = start, 0

    def read(self, size=-1):
        assert size > 0, "asked for all of an endless stream"
        self.given += size
        start, self.start = self.start, b""
        return start + bytes(size - len(start))


def test_an_endless_stream_is_read_to_the_limit_at_most(monkeypatch):
    nothing, picture = Endless(b""), Endless(pillow(noise(*TALL), "PNG"))
    assert len(reading.read_stream(nothing)) == nothing.given == 2**20  # it is no picture from the first
    monkeypatch.setattr(reading, "MAX_BYTES", 2**22)
    with pytest.raises(UsageError, match=r"cannot read stdin: it is longer than any picture of \d+ pixels; cut out"):
        reading.read_stream(picture)
    assert picture.given == 2**22 + 2**20


def test_refusals_leave_no_trace_on_stderr(tmp_path):
    """Neither warnings nor the logs of decoders, which go to stderr where, unlike here, nobody listens."""
    deep = FILES["png16"]
    damaged = (tiff(noise(*TALL, 3))[:-400], tiff(noise(*TALL, 3))[:200], b"II*\0" + bytes(60), deep[:-20])
    odd = deep[:33] + chunk(b"bKGD", bytes(3)) + deep[33:]  # libpng warns that it is too short
    names = []
    for index, data in enumerate((*damaged, odd)):
        names.append(str(tmp_path / str(index)))
        Path(names[-1]).write_bytes(data)
    code = (
        "import sys\nfrom dip_fast.errors import UsageError\nfrom dip_fast.pictures import read_picture\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        read_picture(name)\n        print('read')\n"
        "    except UsageError:\n        print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code, *names], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("refused\n" * 4 + "read\n", "")


def test_a_tiff_that_lists_too_few_tiles_is_refused():
    """Tifffile would leave the last one black."""
    data = bytearray(tiff(noise(40, 40), tile=(16, 16), compression="zlib"))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        for code in (324, 325):
            struct.pack_into("<I", data, file.pages[0].tags[code].offset + 4, 8)
    with pytest.raises(UsageError, match="parts of the picture are missing"):
        read_picture(bytes(data))


def with_directories(data, *more):
    """Let the list of a TIFF's directories go on: `more` are their contents; an empty one is the first again."""
    data = bytearray(data)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        first, place, layout = file.pages.first.offset, file.pages.next_page_offset, file.tiff
    for content in more:
        struct.pack_into(layout.offsetformat, data, place, len(data) if content else first)
        data += content
        place = len(data) - layout.offsetsize
    return bytes(data)


EMPTY = bytes(2 + 4)  # a directory without tags


@pytest.mark.parametrize("options", [{}, {"byteorder": ">"}, {"bigtiff": True}], ids=["II", "MM", "BigTIFF"])
@pytest.mark.parametrize("between", [0, 1, 150])
def test_directories_in_circles_are_refused_at_once(options, between):
    """Tifffile would walk in them for ever, or as far as the memory goes."""
    empty = bytes(8 + 8) if "bigtiff" in options else EMPTY
    data = with_directories(tiff(noise(*TALL), **options), *[empty] * between, b"")
    with pytest.raises(UsageError, match="round in circles.*intact copy" if between < 100 else "more than 100 pages"):
        read_picture(data)


def test_tens_of_thousands_of_directories_are_refused_before_they_are_read(monkeypatch):
    data = with_directories(tiff(noise(*TALL)), *[EMPTY] * 60_000)
    monkeypatch.setattr(tifffile, "TiffFile", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(UsageError, match="more than 100 pages; save one page as a file of its own"):
        read_picture(data)


def test_directories_of_thousands_of_tags_are_refused_before_they_are_read(monkeypatch):
    data = with_directories(tiff(noise(*TALL)), struct.pack("<H", 4096) + bytes(12 * 4096 + 4))
    monkeypatch.setattr(tifffile, "TiffFile", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(UsageError, match="more than 4096 tags"):
        read_picture(data)


def test_thumbnails_and_a_list_that_ends_outside_the_file_are_no_reason_to_refuse():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(noise(40, 40), metadata=None)
        writer.write(noise(20, 20), metadata=None, subfiletype=1)
    np.testing.assert_array_equal(samples_of(read_picture(file.getvalue())), noise(40, 40))
    data = bytearray(tiff(noise(*TALL)))
    with tifffile.TiffFile(io.BytesIO(data)) as opened:
        struct.pack_into("<I", data, opened.pages.next_page_offset, 2**31)
    np.testing.assert_array_equal(samples_of(read_picture(bytes(data))), noise(*TALL))


CODECS = [None, "zlib", "lzw", "lzma", "packbits", "zstd", "jpeg", "webp", "png", "jpeg2000", "jpegxl", "lerc"]


@pytest.mark.parametrize("options", [{"rowsperstrip": 40}, {"rowsperstrip": 10}, {"tile": (16, 16)}], ids=str)
@pytest.mark.parametrize("codec", CODECS)
def test_strips_and_tiles_that_hold_a_larger_picture_are_refused(codec, options):
    """Tifffile would cut the picture, or begin each row at another column."""
    whole = tiff(smooth(40, 50, 3), compression=codec, **options)
    assert read_picture(whole).size == (40, 50)
    with tifffile.TiffFile(io.BytesIO(whole)) as file:
        tags = {code: file.pages.first.tags[code] for code in (256, 257)}
    for code, side in ((257, 20), (256, 20)):
        data = bytearray(whole)
        struct.pack_into("<I" if tags[code].dtype == 4 else "<H", data, tags[code].valueoffset, side)
        with pytest.raises(UsageError, match=r"holds more than the picture|damaged or cut short"):
            read_picture(bytes(data))


# --- damage


def array_file(samples, save=np.save):
    file = io.BytesIO()
    save(file, samples)
    return file.getvalue()


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
    "gif": pillow(palette_picture(COLOURS), "GIF"),
    "avif": pillow(RGB, "AVIF"),
    "deep avif": bytes(imagecodecs.avif_encode(RGB.astype(np.uint16) << 2, bitspersample=10, level=100)),
    "jxl": bytes(imagecodecs.jpegxl_encode(RGB, lossless=True)),
    "lossy jxl": bytes(imagecodecs.jpegxl_encode(RGB, distance=1.0)),
    "jp2": bytes(imagecodecs.jpeg2k_encode(RGB, reversible=True, level=0)),
    "ppm": b"P6\n18 24\n255\n" + RGB.tobytes(),
    "pfm": b"PF\n18 24\n-1.0\n" + (RGB / np.float32(255)).astype("<f4").tobytes(),
    "npy": array_file(RGB),
    "npz": array_file(RGB, np.savez_compressed),
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
        assert picture.extras.icc_profile == whole.extras.icc_profile, f"cut at {end} of {len(data)}"


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
    assert min(picture.size) >= MIN_SIDE
    assert encode_picture(picture.image, picture)
