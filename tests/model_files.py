"""Pictures, networks and model files for tests: fixtures in the names of conftest.py, and functions."""

import json
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch

import dip_fast
from dip_fast.fitting import fit
from dip_fast.fitting.degradations import Mask
from dip_fast.models import exporting, onnx_format, torch_formats
from dip_fast.models.formats import FORMATS
from dip_fast.models.model import open_model
from dip_fast.models.packing import digest
from dip_fast.models.verifying import verify
from dip_fast.presets import PRESETS

SHORT = ("--threads", "1", "--iterations", "3", "--quiet")

SKIP = {"down": 8, "up": 8, "skip": 2, "scales": 2, "upsampling": "nearest"}
RECIPES = {
    "nearest": ("skip", SKIP, 4, "uniform"),
    "bilinear": ("skip", SKIP | {"upsampling": "bilinear"}, 4, "uniform"),
    "zeros": ("skip", SKIP | {"padding_mode": "zeros"}, 4, "uniform"),
    "replicate": ("skip", SKIP | {"padding_mode": "replicate", "upsampling": "bilinear"}, 4, "uniform"),
    "average": ("skip", SKIP | {"downsampling": "average"}, 4, "uniform"),
    "max": ("skip", SKIP | {"downsampling": "max"}, 4, "uniform"),
    "no-branch": ("skip", SKIP | {"skip": 0}, 4, "gaussian"),
    "no-1x1": ("skip", SKIP | {"conv1x1": False}, 4, "uniform"),
    "kernels": ("skip", SKIP | {"kernel_down": 5, "kernel_up": 5, "kernel_skip": 3}, 4, "uniform"),
    "hourglass": ("hourglass", {}, 3, "gaussian"),
    "decoder": ("decoder", {"depth": 3}, 8, "gaussian"),
    "coarse": ("coarse", SKIP, 4, "uniform"),
}
PICTURES = {
    "gray.png": ((33, 45), np.uint8),
    "rgb.png": ((45, 33, 3), np.uint8),
    "rgba.png": ((16, 19, 4), np.uint8),
    "la.png": ((18, 16, 2), np.uint8),
    "gray16.png": ((16, 17), np.uint16),
    "rgba16.png": ((17, 16, 4), np.uint16),
    "rgb16.tif": ((17, 16, 3), np.uint16),
    "float.tif": ((17, 23), np.float32),
    "range.tif": ((19, 16, 3), np.float32),
}


def pixels(*shape, dtype=np.uint8):
    """Slopes with noise on them; floats in [0, 1]."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] / max(shape[:2])
    planes = np.stack([0.2 + 0.5 * rows, 0.7 - 0.4 * columns, 0.3 + 0.4 * rows * columns, 0.9 - rows], axis=2)
    values = planes[..., : shape[2] if len(shape) == 3 else 1] + np.random.default_rng(0).normal(
        0, 0.05, (*shape[:2], 1)
    )
    values = np.clip(values, 0, 1).reshape(shape)
    return values.astype(dtype) if np.dtype(dtype).kind == "f" else (values * np.iinfo(dtype).max).astype(dtype)


def use(monkeypatch, name):
    """Let the quick preset be another network, of milliseconds a step."""
    network, options, channels, distribution = RECIPES[name]
    recipe = PRESETS["quick"].recipe
    recipe = replace(
        recipe,
        network=network,
        network_options=options,
        in_channels=channels,
        distribution=distribution,
        options=replace(recipe.options, consolidation=2),
    )
    monkeypatch.setitem(PRESETS._entries, "quick", replace(PRESETS["quick"], recipe=recipe))


def write(name, shape, dtype):
    samples = pixels(*shape, dtype=dtype)
    if name == "range.tif":
        samples = 300 * samples - 1000
    if name.endswith(".tif"):
        tifffile.imwrite(name, samples, photometric="rgb" if samples.ndim == 3 else "minisblack")
    else:
        Path(name).write_bytes(imagecodecs.png_encode(samples))
    return samples


def read(path):
    path = Path(path)
    samples = tifffile.imread(path) if path.suffix == ".tif" else imagecodecs.png_decode(path.read_bytes())
    return samples.reshape(*samples.shape[:2], -1)


def record(folder):
    return json.loads((Path(folder) / "run.json").read_text())


@pytest.fixture
def ran(dip, monkeypatch):
    """Run a picture through a network, into the folder ``run``, with all formats."""

    def run(recipe="nearest", name="rgb.png", *arguments, formats="onnx"):
        use(monkeypatch, recipe)
        samples = write(name, *PICTURES[name])
        ended = dip("run", name, *SHORT, "-o", "run", "--export", formats, *arguments)
        assert (ended.code, ended.err) == (0, "")
        return samples

    return run


@pytest.fixture
def model(ran):
    """A small ONNX file."""
    ran("nearest", "gray.png")
    return Path("run/model.onnx")


@pytest.fixture(scope="module")
def small_models(tmp_path_factory):
    """Bytes of a small model of each format, by suffix."""
    recipe = PRESETS["quick"].recipe
    recipe = replace(
        recipe,
        network_options={"down": 4, "up": 4, "skip": 2, "scales": 1, "upsampling": "nearest"},
        in_channels=2,
        options=replace(recipe.options, iterations=2, consolidation=0),
    )
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(1, 3, 16, 18, generator=generator)
    known = torch.rand(1, 1, 16, 18, generator=generator) < 0.5
    result = fit(Mask(target, known), recipe)
    folder = tmp_path_factory.mktemp("models")
    return {
        suffix: exporting.export(result, folder / f"model{suffix}").read_bytes() for suffix in (".onnx", ".pt", ".pt2")
    }


def check_formats(folder="run"):
    """Every file draws the result, each the bits that it recorded, all within the tolerance of one another."""
    (result,) = Path(folder).glob("result.*")
    outputs = {}
    for name, format_ in FORMATS.items():
        path = Path(folder) / f"model{format_.suffix}"
        if not path.exists():
            continue
        opened = open_model(path, trust=True)
        outputs[name] = output = opened.draw()
        assert verify(opened, output).text == "the same bits as at export, pixels and float output"
    samples = open_model(Path(folder) / "model.onnx").samples(outputs["onnx"])
    drawn = dip_fast.replay(Path(folder) / "model.onnx")
    np.testing.assert_array_equal(drawn, read(result))
    assert drawn.dtype == read(result).dtype
    assert digest(samples) == record(folder)["summary"]["sha256"]
    low, high = opened.kind.value_range
    for output in outputs.values():
        assert np.abs(output - outputs["onnx"]).max() <= 2e-5 * (high - low)
        if opened.kind.dtype == "uint8":
            steps = np.abs(opened.samples(output).astype(int) - samples.astype(int))
            assert steps.max() <= 1
            assert (steps > 0).mean() < 0.005
    return outputs


def broken(monkeypatch):
    """Let every file draw another picture than the network does."""
    original = onnx_format._layer

    def layer(graph, layer, inputs, arrays):
        name = original(graph, layer, inputs, arrays)
        if layer.kind == "conv" and layer.name == "head":
            graph.nodes[-1].input[2] = graph.constant("wrong/bias", arrays["head.bias"] + np.float32(0.01))
        return name

    monkeypatch.setattr(onnx_format, "_layer", layer)


def exported(program):
    return torch_formats.write_torchscript(program, {}, {})
