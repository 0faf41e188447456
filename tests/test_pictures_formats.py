"""The registry of picture formats: what it loads, and a format that is added to it."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from picture_files import TALL, noise, pillow

from dip_fast.errors import UsageError
from dip_fast.pictures import Kind, encode_image, formats, read_picture
from dip_fast.registry import Registry

GRAY_MAP = '''
"""Gray maps as nobody but this test has them, of 8 bits."""

import numpy as np

from dip_fast.errors import UsageError
from dip_fast.pictures import Decoded, Format
from dip_fast.pictures.formats import check_size


def read(data, keep_metadata):
    _, width, height, _, rest = data.split(maxsplit=4)
    height, width = int(height), int(width)
    check_size(height, width)
    return Decoded(np.frombuffer(rest, np.uint8, height * width).reshape(height, width, 1))


def write(samples, kind, extras):
    if kind.channels != 1 or kind.alpha is not None:
        raise UsageError("G1M holds one channel: name the result .png")
    return b"G1 %d %d 255\\n" % (kind.width, kind.height) + samples.tobytes()


G1M = Format(
    "G1M",
    (".g1m",),
    sniff=lambda data: data.startswith(b"G1"),
    read=read,
    result_suffix=".g1m",
    write=write,
    dtypes=("uint8",),
)
'''


@pytest.fixture
def g1m(tmp_path, monkeypatch):
    """Register a format as a plugin does, for one test; returns a file of that format and its samples."""
    (tmp_path / "gray_map.py").write_text(GRAY_MAP)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(formats, "FORMATS", Registry("picture format", dict(formats.FORMATS)))
    formats.FORMATS.register("g1m", "gray_map:G1M")
    samples = noise(*TALL)
    return b"G1 18 21 255\n" + samples.tobytes(), samples


def test_a_registered_format_is_read_and_written(g1m, tmp_path):
    data, samples = g1m
    (tmp_path / "picture.g1m").write_bytes(data)
    picture = read_picture(tmp_path / "picture.g1m")
    assert (picture.name, picture.size, picture.channels, picture.kind.suffix) == ("picture.g1m", TALL, 1, ".g1m")
    np.testing.assert_array_equal(picture.kind.to_samples(picture.image)[..., 0], samples)
    assert encode_image(picture.image, picture.kind) == data
    # A model file may name the format for its replay.
    assert Kind.of(picture.kind.facts()) == picture.kind


def test_a_registered_format_is_known_to_the_messages(g1m):
    data, _ = g1m
    with pytest.raises(UsageError, match=r"not a PNG, JPEG, .*, MRC or G1M picture"):
        read_picture(b"no picture")
    picture = read_picture(data)
    with pytest.raises(UsageError, match=r"name the file \.png, .* or \.g1m"):
        encode_image(picture.image, picture.kind, suffix=".xyz")
    sixteen = replace(picture.kind, dtype="uint16", value_range=(0.0, 65535.0))
    with pytest.raises(UsageError, match=r"G1M cannot hold uint16 samples: name the result \.png, \.tif"):
        encode_image(picture.image, sixteen)
    with pytest.raises(UsageError, match="cannot read stdin: it is damaged or cut short"):
        read_picture(data[:100])
    with pytest.raises(UsageError, match="at least 16x16"):
        read_picture(b"G1 8 8 255\n" + bytes(64))


def test_without_the_plugin_its_files_are_refused():
    with pytest.raises(UsageError, match=r"not a PNG, JPEG, .* or MRC picture.*convert"):
        read_picture(b"G1 16 16 255\n" + bytes(256))
    with pytest.raises(ValueError, match="damaged"):
        Kind.of(replace(read_picture(pillow(noise(*TALL), "PNG")).kind, suffix=".g1m").facts())


def test_a_decoder_is_loaded_with_the_first_file_of_its_format():
    heavy = ("torch", "PIL", "tifffile", "imagecodecs", "skimage", "cv2")
    code = (
        "import sys\nfrom dip_fast.pictures import formats\n"
        f"loaded = lambda: print(*(name for name in {heavy} if name in sys.modules))\n"
        "for begin in (b'\\x89PNG\\r\\n\\x1a\\n', b'II*\\0', b'BM', b'\\xff\\xd8\\xff', b'RIFF1234WEBP'):\n"
        "    formats.recognised(begin)\n"
        "assert formats.writer('.tif') and {'.png', '.tif'} <= {*formats.written_suffixes()}\n"
        "loaded()\n"
        "from dip_fast.pictures import read_picture\n"
        "read_picture(sys.stdin.buffer.read())\n"
        "loaded()\n"
    )
    data = pillow(noise(*TALL, 3), "PNG")
    done = subprocess.run([sys.executable, "-P", "-c", code], input=data, capture_output=True, check=True)
    assert done.stdout.decode().splitlines() == ["", "PIL imagecodecs"]
