"""What people hand in that is no developed picture: each is refused in one line that says what it is and what to do."""

import gzip
import importlib.util
import io
import lzma
import tarfile
import zipfile

import numpy as np
import pytest
import tifffile
from picture_files import TALL, noise, pillow, tiff

from dip_fast.errors import UsageError
from dip_fast.pictures import read_picture
from dip_fast.pictures.raw_structure import is_camera_raw


def nef():
    """A raw file as most cameras write it: a TIFF whose first picture is a small preview, the sensor's behind it."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(noise(16, 24, 3), photometric="rgb", subfiletype=1, subifds=1, metadata=None)
        writer.write(noise(64, 96, dtype=np.uint16), photometric=32803, metadata=None)
    return file.getvalue()


def dng(**options):
    """A raw file whose first picture is the sensor's."""
    tags = [(33421, "H", 2, (2, 2), True), (33422, "B", 4, b"\0\1\1\2", True), (50706, "B", 4, b"\1\4\0\0", True)]
    return tiff(noise(64, 96, dtype=np.uint16) >> 4, photometric=32803, extratags=tags, **options)


RAW = {
    "nef": nef,
    "dng": dng,
    "big-endian dng": lambda: dng(byteorder=">"),
    "dng in bigtiff": lambda: dng(bigtiff=True),
    "linear dng": lambda: tiff(noise(*TALL, 3), photometric=34892),
    "cr2": lambda: b"II*\0\x10\0\0\0CR\2\0" + bytes(200),
    "cr3": lambda: b"\0\0\0\x18ftypcrx " + bytes(200),
    "raf": lambda: b"FUJIFILMCCD-RAW 0201" + bytes(200),
    "rw2": lambda: b"IIU\0" + bytes(200),
}


@pytest.fixture
def without_libraries(monkeypatch):
    """No library of an extra can be imported."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.mark.usefixtures("without_libraries")
@pytest.mark.parametrize("kind", RAW)
def test_a_raw_file_is_not_read_as_its_thumbnail(kind, tmp_path):
    path = tmp_path / "shot.raw"
    path.write_bytes(RAW[kind]())
    with pytest.raises(UsageError, match=r'camera raw.*pip install "dip-fast\[raw\]", or develop it') as caught:
        read_picture(path)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("without_libraries")
def test_a_raw_file_whose_structure_says_nothing_is_known_by_its_name(tmp_path):
    path = tmp_path / "shot.NEF"
    path.write_bytes(tiff(noise(*TALL, 3), extratags=[(271, "s", 0, "NIKON", True)]))
    with pytest.raises(UsageError, match="camera raw"):
        read_picture(path)


def test_a_tiff_that_was_only_named_so_is_no_raw_file(tmp_path):
    samples = noise(*TALL, 3)
    path = tmp_path / "shot.cr2"
    path.write_bytes(tiff(samples))
    np.testing.assert_array_equal(read_picture(path).samples, samples)
    path.write_bytes(tiff(samples, extratags=[(271, "s", 0, "Canon", True)]))
    pytest.importorskip("rawpy")
    with pytest.raises(UsageError, match=r"LibRaw cannot develop it .*; .* if it is one, name it \.tif"):
        read_picture(path)


def test_a_developed_tiff_is_no_raw_file():
    for options in ({}, {"byteorder": ">"}, {"bigtiff": True}, {"tile": (16, 16)}):
        data = tiff(noise(40, 40, 3), **options)
        assert not is_camera_raw(data)
        for end in range(0, len(data), 7):
            is_camera_raw(data[:end])  # whatever is there, it ends without an error
    circle = bytearray(tiff(noise(*TALL)))
    with tifffile.TiffFile(io.BytesIO(circle)) as file:
        place, first = file.pages.next_page_offset, file.pages.first.offset
    circle[place : place + 4] = first.to_bytes(4, "little")
    assert not is_camera_raw(bytes(circle))


def packed(kind):
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("picture.png", pillow(noise(*TALL), "PNG"))
    else:
        with tarfile.open(fileobj=file, mode="w") as archive:
            content = pillow(noise(*TALL), "PNG")
            entry = tarfile.TarInfo("picture.png")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return {"gz": gzip.compress, "xz": lzma.compress}.get(kind, bytes)(file.getvalue())


OTHERS = {
    "zip": (lambda: packed("zip"), r"archive \(zip\); unpack it and name one picture"),
    "tar": (lambda: packed(""), r"archive \(tar\); unpack it"),
    "tar.gz": (lambda: packed("gz"), r"archive \(gzip\); unpack it"),
    "tar.xz": (lambda: packed("xz"), r"archive \(xz\); unpack it"),
    "mp4": (lambda: b"\0\0\0\x18ftypmp42" + bytes(400), "a video; save one frame as PNG"),
    "avi": (lambda: b"RIFF\0\0\0\0AVI " + bytes(400), "a video; save one frame as PNG"),
    "pdf": (lambda: b"%PDF-1.7\n" + bytes(400), "a PDF document; export its page"),
    "psd": (lambda: b"8BPS\0\1" + bytes(400), "a Photoshop file; export it as TIFF"),
    "xisf": (lambda: b"XISF0100" + bytes(400), "XISF file; save it as FITS"),
    "czi": (lambda: b"ZISRAWFILE" + bytes(400), r"microscope's own file \(CZI\); export one plane as OME-TIFF"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(400), r"HDF5 file; save one array of it as \.npy"),
    "dicom": (lambda: bytes(128) + b"DICM" + bytes(400), "DICOM file; export it as TIFF"),
    "web page": (lambda: b"\n<!DOCTYPE html><html>" + bytes(400), "a web page; save the picture that it shows"),
    "svg": (lambda: b'<?xml version="1.0"?><svg xmlns="...">' + bytes(400), "a drawing .SVG.; export it as PNG"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_picture_is_called_by_its_name(kind, tmp_path):
    make, pattern = OTHERS[kind]
    path = tmp_path / "handed-in.png"
    path.write_bytes(make())
    with pytest.raises(UsageError, match=pattern) as caught:
        read_picture(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["https://example.org/photo.png", "s3://bucket/photo.png", "file:///photo.png", "data:image/png;base64,"]
)
def test_an_address_is_not_taken_for_a_missing_file(dip, place, address):
    ended = dip("run", address)
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert "it is an address, and nothing is downloaded; save the picture and name its file" in line


@pytest.mark.usefixtures("without_libraries")
@pytest.mark.parametrize(
    ("beginning", "extra"),
    [
        (b"SIMPLE  =                    T", "astro"),
        (b"\0\0\0\x18ftypheic", "heif"),
        (b"\x76\x2f\x31\x01", "exr"),
        (bytes(208) + b"MAP ", "mrc"),
    ],
    ids=["fits", "heif", "exr", "mrc"],
)
def test_a_format_whose_library_is_missing_says_the_pip_line(beginning, extra):
    with pytest.raises(UsageError, match=rf'library for that is missing: pip install "dip-fast\[{extra}\]", or save'):
        read_picture(beginning + bytes(3000))
