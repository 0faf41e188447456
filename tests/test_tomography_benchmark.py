"""The benchmark of few views: its rays are scikit-image's; tests/test_benchmark_scripts.py runs the script."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.transform import radon


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module("tomography")


@pytest.mark.parametrize("size", [32, 33])
def test_rays_are_those_of_scikit_image(script, size):
    truth = np.where(script.circle(size), np.random.default_rng(0).random((size, size)), 0).astype(np.float32)
    degrees = np.linspace(0, 180, 7, endpoint=False)
    made = script.Rays(size, degrees)(torch.from_numpy(truth)[None, None]).numpy()
    np.testing.assert_allclose(made, radon(truth, theta=degrees), atol=1e-4)


def test_filter_is_the_best_and_nothing_outside_of_the_circle_counts(script):
    truth = script.true_picture("phantom", 32)
    degrees = np.linspace(0, 180, 30, endpoint=False)
    sums = radon(truth, theta=degrees)
    found = script.back_projected(sums, truth, degrees)
    assert found["filter"] in script.FILTERS
    assert found["psnr"] > 15
    near = np.where(truth > 0.5, truth - 0.01, truth + 0.01)
    assert script.psnr(np.where(script.circle(32), near, 1), truth) == pytest.approx(40, abs=0.01)


def test_bars_are_about_both_methods_where_both_are_there(script):
    others = {script.BACK_PROJECTION: {"psnr": 20.0, "filter": "hann"}, script.DEEPINV: {"psnr": 23.5}}
    row = {"picture": "phantom", "size": 32, "views": 30, "presets": {"quick": {"psnr": 23.1, "seconds": 2.0}}}
    assert script.check([{**row, "others": others}]) == [
        ("quick, phantom: +3.10 dB over filtered back-projection, at least 3", True),
        ("quick, phantom: -0.40 dB over deepinv DIP, at least 0", False),
    ]
    del others[script.DEEPINV]
    assert len(script.check([{**row, "others": others}])) == 1
    assert "| phantom 32x32, 30 views | 20.00 (hann) | 23.10 (2 s) |" in script.table([{**row, "others": others}])
