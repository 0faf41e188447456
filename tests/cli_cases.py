"""What the tests of `test_cli` and its siblings share."""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ONE = ("--threads", "1")


SHORT = (*ONE, "--iterations", "3")


# Of the preset's own network at 2x2 pixels in its deepest scale: unfitted, two engines differ by 2.5e-5 of the range.
FITTED = (*ONE, "--iterations", "20")


KEYS = {"result", "steps", "best_step", "stop_reason", "seconds", "device", "engine", "precision", "seed", "psnr"}


PROGRAM = [sys.executable, "-m", "dip_fast"]


def encoded(samples, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(samples).save(file, kind)
    return file.getvalue()


def gray(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width), np.uint8)


def decoded(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def assert_refused(outcome, *words, code=2):
    """One line on standard error that holds the words, nothing on standard output, nothing written."""
    assert outcome.code == code
    assert outcome.out == b""
    (line,) = outcome.err.splitlines()
    assert line.startswith("dip-fast: ")
    for word in words:
        assert word in line
    assert not Path("runs").exists()


def assert_not_resumed(outcome, *words):
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith("dip-fast: ")
    for word in ("cannot resume", *words):
        assert word in line
