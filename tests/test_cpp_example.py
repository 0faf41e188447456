"""The C++ program of examples/cpp draws what the file recorded, with libtorch alone and with the operators' library."""

import json
import os
import subprocess
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from dip_fast.models.model import open_model
from dip_fast.models.packing import digest

BUILD = Path(os.environ.get("DIP_FAST_CPP", Path(__file__).parents[1] / "build" / "cpp"))  # of make test-cpp
pytestmark = [
    pytest.mark.usefixtures("place", "small"),
    pytest.mark.skipif(
        "DIP_FAST_CPP" not in os.environ and not (BUILD / "examples/cpp/draw").exists(),
        reason="the C++ example is not built: make test-cpp",
    ),
]


def read_ppm(path):
    kind, size, largest, rest = path.read_bytes().split(b"\n", 3)
    width, height = map(int, size.split())
    samples = np.frombuffer(rest, ">u2" if largest == b"65535" else np.uint8)
    return samples.reshape(height, width, {b"P5": 1, b"P6": 3}[kind])


def draw(*arguments):
    return subprocess.run([BUILD / "examples/cpp/draw", *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(17, 23, 3), (18, 16)], ids=["rgb", "gray"])
def test_example_draws_the_recorded_picture(dip, shape, dtype, fused):
    samples = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype)
    Path("picture.png").write_bytes(imagecodecs.png_encode(samples))
    assert dip("run", "picture.png", "--iterations", "3", "--threads", "1", "-o", "run", "--quiet").code == 0
    options = ["--fused-ops"] if fused else []
    path = Path(json.loads(dip("export", "run", "--format", "torchscript", *options, "--json").out)["path"])
    library = [BUILD / "libdip_fast_ops.so"] if fused else []
    ended = draw(path, "picture.ppm", *library)
    assert (ended.returncode, ended.stderr) == (0, "")
    drawn = read_ppm(Path("picture.ppm")).astype(dtype)
    assert digest(drawn) == open_model(path, trust=True).metadata["sha256"]["pixels"]
    if fused:
        ended = draw(path, "picture.ppm")
        assert ended.returncode == 1
        assert "upsample_conv2d" in ended.stderr


def test_example_complains_in_words():
    assert draw().returncode == 2
    ended = draw("missing.pt", "picture.ppm")
    assert ended.returncode == 1
    assert ended.stderr.startswith("draw: ")
