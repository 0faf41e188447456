"""What README.md and docs/replay.md show, run."""

import os
import re
import shlex
import shutil
import subprocess
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dip_fast
from dip_fast.presets import PRESETS

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


README = re.sub(r"<!-- figures.*?<!-- /figures -->", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)


@pytest.mark.usefixtures("place", "small")
def test_readme(dip, monkeypatch):
    """Python as it stands, in a namespace of its own; each command line, with a small network and few steps."""
    recipe = PRESETS["default"].recipe
    recipe = replace(recipe, options=replace(recipe.options, iterations=3))
    for name in ("default", "best"):
        monkeypatch.setitem(PRESETS._entries, name, replace(PRESETS[name], recipe=recipe))
    shutil.copy(ROOT / "examples" / "noisy.png", "whole.png")
    with Image.open("whole.png") as whole:
        for name in ("photo.png", "holed.png", "small.png", "blurred.png", "photo.jpg", "dark.png", "flash.png"):
            whole.crop((0, 0, 56, 40)).convert("RGB").save(name)
    for folder in ("photos", "frames"):
        Path(folder).mkdir()
        for name in ("1.png", "2.png"):
            shutil.copy("photo.png", Path(folder, name))
    mask = Image.new("L", (56, 40), 255)
    mask.paste(0, (8, 8, 20, 16))
    mask.save("mask.png")
    code = [textwrap.dedent(block) for block in re.findall(r"^    import dip_fast\n(?:(?:    .*)?\n)+", README, re.M)]
    code += re.findall(r"`(dip_fast\.\w+\(.*?\))`", README)
    quick = PRESETS["quick"].with_(iterations=3)
    monkeypatch.setitem(PRESETS._entries, "quick", quick)
    names = {"model": dip_fast.UpsampleConv2d(2, 2), "physics": torch.nn.Identity(), "y": torch.rand(1, 3, 24, 24)}
    for block in code:
        exec(compile(block, "README.md", "exec"), names)
    with Image.open("photo.png") as noisy, Image.open("restored.png") as restored:
        assert (noisy.size, noisy.mode) == (restored.size, restored.mode)
    lines = re.findall(r"^    (dip-fast .*)$|`(dip-fast .*?)`", README, re.M)
    verbs = []
    served = []
    monkeypatch.setattr("dip_fast.ui.server.serve", lambda *given: served.append(given))  # it would not end
    for _, *arguments in (shlex.split(line or cell) for line, cell in lines):
        verbs.append(arguments[0])
        if arguments[0] == "run":
            few = ["--threads", "1", "--quiet"] + ["--overwrite"] * ("--resume" not in arguments)
            arguments += few
        elif arguments[0] in {"stack", "compare"}:
            arguments += ["--iterations", "3", "--threads", "1", "--quiet"]
        elif arguments[0] == "batch":
            arguments += ["--dry-run"]  # it starts processes, which make all steps
        ended = dip(*arguments)
        if "cuda" in arguments and ended.code == 2:
            assert "--device cuda: " in ended.err  # why not, on this machine
        else:
            assert ended.code == 0, (arguments, ended.err)
    assert {"run", "stack", "compare", "batch", "replay", "report", "ui"} == set(verbs)
    assert len(served) == 1
    assert len(code) >= 2
