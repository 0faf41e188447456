"""What docs/replay.md shows, run."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "replay.md").read_text()
BUILD = Path(os.environ.get("DIP_FAST_CPP", ROOT / "build" / "cpp"))  # of make test-cpp


@pytest.mark.usefixtures("place", "small")
def test_tutorial(dip):
    """Command lines in this process, with a small network; Python as it stands; C++ where it is built."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)).save("photo.png")
    names, ran = {}, []
    for kind, block in re.findall(r"^```([a-z-]+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        ran.append(kind)
        if kind == "python":
            exec(compile(block, "docs/replay.md", "exec"), names)
            continue
        for line in block.splitlines():
            program, *arguments = shlex.split(line)
            if program == "dip-fast":
                few = ("--iterations", "5", "--threads", "1", "--quiet") if arguments[0] == "run" else ()
                ended = dip(*arguments, *few)
                assert not ended.code, ended.err
            elif program == "build/draw/draw":  # the lines before it build it, as make test-cpp does
                if "DIP_FAST_CPP" in os.environ or (BUILD / "examples/cpp/draw").exists():
                    arguments = [argument.replace("build/cpp", str(BUILD)) for argument in arguments]
                    subprocess.run([BUILD / "examples/cpp/draw", *arguments], check=True)
                    with Image.open("picture.ppm") as drawn, Image.open("runs/photo/result.png") as result:
                        off = np.abs(np.asarray(drawn).astype(int) - np.asarray(result).astype(int))
                    assert off.max() <= 1
            else:
                assert program == "cmake"
    assert {"bash", "python", "cpp-shell"} == set(ran)
    assert Path("again.png").read_bytes() == Path("runs/photo/result.png").read_bytes()
    with Image.open("by_hand.png") as by_hand, Image.open("runs/photo/result.png") as result:
        np.testing.assert_array_equal(np.asarray(by_hand), np.asarray(result))
    np.testing.assert_array_equal(names["image"], names["samples"])
    assert np.abs(names["another_picture"] - names["samples"]).mean() > 1
    # The network of a denoised picture corrects it, and may leave the range that samples are clipped to.
    np.testing.assert_allclose(names["picture"].numpy().clip(0, 255), names["samples"], rtol=0, atol=0.51)
