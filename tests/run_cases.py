"""What the tests of `test_runs` and its siblings share."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from safetensors import safe_open

from dip_fast.runs import checkpoints
from dip_fast.runs.progress import Progress

ONE = ("--threads", "1")


SHORT = (*ONE, "--iterations", "6", "--quiet")


def texture(*shape, dtype=np.uint8):
    """Independent samples over the whole range of the dtype; floats in [0, 1)."""
    rng = np.random.default_rng(len(shape))
    return (
        rng.random(shape, dtype) if np.dtype(dtype).kind == "f" else rng.integers(0, np.iinfo(dtype).max, shape, dtype)
    )


def write(path, samples):
    """Write a PNG or a TIFF file."""
    if path.endswith(".png") and samples.dtype == np.uint8:
        Image.fromarray(samples).save(path)
    elif path.endswith(".png"):
        import imagecodecs

        Path(path).write_bytes(imagecodecs.png_encode(samples))
    else:
        tifffile.imwrite(path, samples, photometric="rgb" if samples.ndim == 3 else "minisblack")


def read(path):
    """Read a file's samples, whatever their kind."""
    import imagecodecs

    return tifffile.imread(path) if path.suffix == ".tif" else imagecodecs.png_decode(path.read_bytes())


def record(folder):
    return json.loads((Path(folder) / "run.json").read_text())


def answer(folder):
    """All tensors of the checkpoint, and the numbers but for the clock's."""
    with safe_open(Path(folder) / "checkpoint.safetensors", framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        numbers = {key: json.loads(value) for key, value in file.metadata().items() if key in checkpoints.WHICH}
    for state in numbers.values():
        del state["seconds"]
    return tensors, dict(sorted(numbers.items()))


def assert_same_run(one, other):
    """Same bits in the result, the history, the snapshots and the weights."""
    for name in ("result.png", "history.csv", *(p.relative_to(one) for p in Path(one).glob("snapshots/*.png"))):
        assert (Path(one) / name).read_bytes() == (Path(other) / name).read_bytes(), name
    (tensors, numbers), (others, other_numbers) = answer(one), answer(other)
    assert tensors.keys() == others.keys()
    for name in tensors:
        np.testing.assert_array_equal(tensors[name], others[name], err_msg=name)
    assert str(numbers) == str(other_numbers)  # as text, in which NaN equals NaN


def after(monkeypatch, condition, action):
    """Do something in a run after the first step for which a condition holds."""
    original, done = Progress.__call__, []

    def call(self, fit):
        original(self, fit)
        if not done and condition(fit):
            done.append(fit.steps)
            action()

    monkeypatch.setattr(Progress, "__call__", call)


def signal_after(monkeypatch, condition, number=signal.SIGINT):
    after(monkeypatch, condition, lambda: os.kill(os.getpid(), number))
