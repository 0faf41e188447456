"""The benchmark of denoising: noise, yardsticks, bars and table; tests/test_benchmark_scripts.py runs the script."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dip_fast.tasks.denoise import parse_noise

ROOT = Path(__file__).parents[1]


@pytest.fixture
def scripts(monkeypatch):
    """The modules of benchmarks/ that measure denoising."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    names = ("denoising", "figure_tables", "yardsticks")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def reached(decibels, **more):
    return {"psnr": decibels, "ssim": 0.9, **more}


def row(picture="F16", kind="picture", sigma=25, peak=None, bm3d=31.0, **presets):
    """A row of the script, with the PSNR of each preset."""
    found = {
        name: reached(decibels, seconds=20.0, estimated_psnr=decibels, estimated_error=0.0, levels=0.5)
        for name, decibels in presets.items()
    }
    return {
        **{"picture": picture, "kind": kind, "width": 256, "height": 256, "sigma": sigma, "peak": peak},
        "noise": f"sigma {sigma}" if sigma else "no noise",
        **{"noisy": reached(20.0), "nlm": reached(29.0), "presets": found},
        "bm3d": None if bm3d is None else reached(bm3d, seconds=9.0),
    }


def missed(scripts, *rows):
    """Return the lines of the bars that rows miss."""
    return [line for line, met in scripts.denoising.check([*rows]) if not met]


# --- noise and yardsticks -----------------------------------------------------------------------------------------


def test_noise_is_that_of_the_benchmark_pictures(scripts):
    clean = np.random.default_rng(1).random((20, 30, 3))
    gaussian = np.clip(clean + np.random.default_rng(0).normal(0, 25 / 255, clean.shape), 0, 1).astype(np.float32)
    poisson = np.clip(np.random.default_rng(0).poisson(clean * 30) / 30, 0, 1).astype(np.float32)
    np.testing.assert_array_equal(scripts.yardsticks.Noise(25.0).on(clean), gaussian)
    np.testing.assert_array_equal(scripts.yardsticks.Noise(0.0, 30.0).on(clean), poisson)
    np.testing.assert_array_equal(scripts.yardsticks.Noise(0.0).on(clean), clean.astype(np.float32))


@pytest.mark.parametrize(
    ("sigma", "peak", "text", "variance"),
    [
        (25.0, None, "sigma 25", ((25 / 255) ** 2, 0)),
        (0.0, 30.0, "Poisson noise of peak 30", (0, 1 / 30)),
        (10.0, 30.0, "Poisson noise of peak 30, sigma 10", ((10 / 255) ** 2, 1 / 30)),
    ],
)
def test_true_noise_is_an_option_of_the_task(scripts, sigma, peak, text, variance):
    noise = scripts.yardsticks.Noise(sigma, peak)
    assert str(noise) == text
    assert parse_noise(noise.option) == pytest.approx(variance)


@pytest.mark.parametrize(("mean", "sigma"), [(2.0, 0.0), (10.0, 0.0), (30.0, 0.0), (10.0, 3.0)])
def test_anscombe_transform_makes_noise_normal(scripts, mean, sigma):
    rng = np.random.default_rng(0)
    counts = rng.poisson(mean, 10**5) + rng.normal(0, sigma, 10**5)
    transformed = scripts.yardsticks.anscombe(counts, sigma)
    assert transformed.std() == pytest.approx(1, abs=0.05)
    assert scripts.yardsticks.from_anscombe(transformed.mean(), sigma) == pytest.approx(mean, abs=0.05)


@pytest.mark.parametrize("channels", [1, 3])
def test_non_local_means_has_its_best_strength(scripts, channels):
    rows, columns = np.mgrid[:40, :50] / 50
    clean = np.stack([0.5 + 0.3 * np.sin(4 * rows + i) * np.cos(3 * columns) for i in range(channels)], 2)
    noise = scripts.yardsticks.Noise(25.0)
    noisy = noise.on(clean)
    filtered = scripts.yardsticks.non_local_means(noisy, clean, noise)
    assert filtered.shape == clean.shape
    assert np.square(filtered - clean).mean() < np.square(noisy - clean).mean() / 8


FAKE = """
import numpy as np
def bm3d(image, sigma):
    assert image.ndim == 2 and image.dtype == np.float64
    return np.full_like(image, image.mean() + sigma)
def bm3d_rgb(image, sigma):
    return np.stack([bm3d(image[..., c], sigma) for c in range(3)], 2)
"""


@pytest.mark.parametrize("channels", [1, 3])
def test_bm3d_runs_where_it_is_installed(scripts, channels, tmp_path, monkeypatch):
    (tmp_path / "bm3d.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    bm3d = scripts.yardsticks.find_bm3d(sys.executable)
    noise, clean = scripts.yardsticks.Noise(51.0), np.full((16, 16, channels), 0.5)
    image, seconds = bm3d(noise.on(clean), noise)
    np.testing.assert_allclose(image, 0.5 + 51 / 255, atol=0.05)
    assert seconds >= 0
    noise = scripts.yardsticks.Noise(0.0, 30.0)
    noisy = noise.on(clean)
    flat = scripts.yardsticks.anscombe(30.0 * noisy, 0.0).mean() + 1  # the fake adds the noise's deviation
    image, _ = bm3d(noisy, noise)
    np.testing.assert_allclose(image, scripts.yardsticks.from_anscombe(flat, 0.0) / 30, atol=0.05)


def test_bm3d_is_optional(scripts, tmp_path, monkeypatch, capsys):
    without = tmp_path / "python"
    without.write_text("#!/bin/sh\nexit 1\n")
    without.chmod(0o755)
    with pytest.raises(SystemExit, match="has no package bm3d"):
        scripts.yardsticks.find_bm3d(str(without))
    monkeypatch.setattr(sys, "executable", str(without))
    assert scripts.yardsticks.find_bm3d(None) is None
    assert "--bm3d-python" in capsys.readouterr().err


# --- records ------------------------------------------------------------------------------------------------------


def test_records_are_not_measured_again(scripts, tmp_path):
    measured = []

    def get(commit):
        def measure():
            measured.append(commit)
            return reached(30.0)

        of = {"picture": "F16", "noise": "sigma 25", "method": "fast", "commit": commit}
        assert scripts.denoising.Records(tmp_path / "records").get(of, measure) == reached(30.0)

    for commit in ("abc", "abc", "def", "def, modified", "def, modified", "def"):
        get(commit)
    assert measured == ["abc", "def", "def, modified", "def, modified"]


# --- bars ---------------------------------------------------------------------------------------------------------


def test_bars_that_are_met(scripts):
    rows = [row(fast=30.0, default=31.2, best=31.5), row("House", fast=30.0, default=30.9, best=31.4)]
    results = scripts.denoising.check([*rows, row(sigma=50, best=31.0), row("grass", "texture", default=30.9)])
    assert len(results) == 5 + 3 + 2 + 1  # at sigma 25, of estimates there, at sigma 50, on texture
    assert all(met for _, met in results)


def test_bars_that_are_missed_are_named(scripts):
    low, high = row(fast=28.9, default=30.7, best=30.9), row("House", fast=30.0, default=31.1, best=31.5)
    lines = missed(scripts, low, high)
    assert lines == [
        "default, sigma 25: mean at least BM3D's; mean -0.10",
        "default, sigma 25: at most 0.2 dB below BM3D; F16 -0.30",
        "best, sigma 25: mean 0.4 dB above BM3D's; mean +0.20",
        "best, sigma 25: at least BM3D; F16 -0.10",
        "fast, sigma 25: better than non-local means; F16 -0.10",
    ]


def test_bar_without_its_yardstick_is_missed(scripts):
    lines = missed(scripts, row(bm3d=None, default=31.1))
    assert lines[0] == "default, sigma 25: mean at least BM3D's; mean not measured"


def test_estimates_have_a_bar(scripts):
    found = row("grass", "texture", sigma=10, fast=30.0)
    found["presets"]["fast"]["estimated_error"] = -0.4
    assert missed(scripts, found) == ["fast, sigma 10: estimated within 0.3 dB; grass -0.40"]


def test_results_are_never_worse_than_the_input(scripts):
    worse, changed = row(sigma=5, default=20.2), row(sigma=0, default=40.0)
    changed["presets"]["default"]["levels"] = 1.5
    slow = row("flat", "flat", sigma=0, default=60.0)
    assert missed(scripts, worse, changed, slow) == [
        "default, sigma 5: 0.3 dB better than the input; F16 +0.20",
        "default, no noise: within one level of itself; F16 -1.50",
        "default, no noise: in 10 seconds; flat -20.00",
    ]


def test_poisson_noise_has_a_bar(scripts):
    assert missed(scripts, row(sigma=0, peak=30, default=31.4))[0].endswith("mean 0.5 dB above BM3D's; mean +0.40")


# --- the table ----------------------------------------------------------------------------------------------------


def test_table_has_means_of_pictures_with_the_same_noise(scripts):
    rows = [row(default=31.0), row("House", default=33.0), row("grass", "texture", bm3d=None, default=23.0)]
    lines = scripts.figure_tables.denoising_table(rows).splitlines()
    assert lines == [
        "| picture, noise | noisy | NLM | BM3D | `default` | estimated |",
        "|---|---|---|---|---|---|",
        "| F16 256x256, sigma 25 | 20.00 | 29.00 | 31.00 (9 s) | 31.00 (20 s) | 31.00 |",
        "| House 256x256, sigma 25 | 20.00 | 29.00 | 31.00 (9 s) | 33.00 (20 s) | 33.00 |",
        "| **mean**, sigma 25 | 20.00 | 29.00 | 31.00 (9 s) | 32.00 (20 s) | 32.00 |",
        "| grass 256x256, sigma 25 | 20.00 | 29.00 | - | 23.00 (20 s) | 23.00 |",
    ]


def test_table_shows_how_far_a_clean_picture_is_changed(scripts):
    table = scripts.figure_tables.denoising_table([row(sigma=0, bm3d=None, default=50.0)])
    assert table.splitlines()[-1] == "| F16 256x256, no noise | - | - | - | 0.50 levels off (20 s) | 50.00 |"


def test_pairs_of_a_camera_are_an_exposure_and_what_it_is_compared_with(scripts, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    clean = rng.integers(60, 200, (24, 20, 3)).astype(np.uint8)
    noise = rng.normal(0, 5, clean.shape).round().astype(int)
    for part, samples in (("mean", clean), ("real", clean + noise)):
        Image.fromarray(samples.astype(np.uint8)).save(tmp_path / f"wall_{part}.png")
    (case,) = scripts.denoising.camera_cases(tmp_path)
    np.testing.assert_allclose(255 * case.noisy(), clean + noise, atol=1e-3)
    np.testing.assert_allclose(255 * case.clean, clean, atol=1e-3)
    assert (case.picture, case.kind, str(case.noise)) == ("wall", "camera", "noise of a camera")
    assert case.noise.sigma == pytest.approx(noise.std())
    tried = []

    def bm3d(noisy, noise):
        tried.append(noise.sigma / case.noise.sigma)
        return (case.clean if len(tried) == 4 else noisy), 1.0

    assert scripts.denoising.by_bm3d(case, case.noisy(), bm3d)["psnr"] > 60  # the best of those that it tries
    assert tried == [0.5, 0.75, 1.0, 1.5, 2.0]


def test_pairs_of_a_camera_have_bars_for_their_mean(scripts):
    good = row("wall", "camera", 5.0, default=23.0, bm3d=22.0) | {"noise": "noise of a camera"}
    poor = row("door", "camera", 4.0, default=20.5, bm3d=22.0) | {"noise": "noise of a camera"}
    assert not missed(scripts, good, good | {"picture": "door"})
    lines = missed(scripts, good, poor)
    assert len(lines) == 1
    assert "mean at least BM3D's" in lines[0]  # 1.75 dB above the input, 0.25 below BM3D
