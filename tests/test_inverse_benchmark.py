"""The benchmark of inverse problems: comparison and bars; tests/test_benchmark_scripts.py runs the script."""

import importlib
import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("inverse")


@pytest.fixture
def cases(script):
    return importlib.import_module("inverse_cases")


def row(group, picture, width=288, seconds=9.0, quick=30.0, **others):
    found = {"quick": {"psnr": quick, "seconds": seconds, "steps": 1000}}
    return {"group": group, "picture": picture, "width": width, "height": width, "others": others, "presets": found}


def test_brightness_is_compared_without_the_edges(cases):
    clean = np.random.default_rng(0).random((20, 24, 3))
    image = clean.copy()
    image[:4], image[:, -4:] = 0, 1
    image[8, 8, 2] += 0.01
    case = cases.Case("set5 x4", "a", b"", ".png", [], clean, {}, edge=4)
    expected = -10 * np.log10((0.01 * 24.966 / 255) ** 2 / (12 * 16))
    assert case.psnr(image) == pytest.approx(expected, abs=1e-3)
    np.testing.assert_allclose(cases.brightness(np.ones((1, 1, 3))), 235 / 255)
    np.testing.assert_allclose(cases.brightness(np.ones((1, 1, 1))), 235 / 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_classical_methods_improve_what_was_damaged(cases, channels, place):
    rows, columns = np.mgrid[:48, :56] / 10
    clean = np.stack([0.5 + 0.3 * np.sin(4 * rows + i) * np.cos(3 * columns) for i in range(channels)], 2)
    clean = clean.astype(np.float32)
    case = cases.blurred("a", clean, 1.6, 2.0)
    assert (case.group, case.clean.shape) == ("blur 1.6, sigma 2", (36, 44, channels))
    damaged = tifffile.imread(io.BytesIO(case.file)).reshape(case.clean.shape)
    assert min(case.psnr(image) for image in case.others.values()) > case.psnr(damaged) + 1

    case = cases.compressed("b", clean, 10)
    assert 20 < case.psnr(case.others["decoded"]) < 40

    codes = np.rint(255 * clean).astype(np.uint8).squeeze()
    Image.fromarray(codes).save("set5_1.png")
    Image.fromarray(codes).resize((18, 16), Image.Resampling.BICUBIC).crop((0, 0, 18, 16)).save("set5_1_x3.png")
    case = cases.reduced(cases.Path("set5_1_x3.png"), 3)
    assert (case.group, case.clean.shape) == ("set5 x3", (48, 54, channels))
    assert np.isfinite(case.psnr(case.others["bicubic"]))


def test_bars_are_about_means_or_pictures(script):
    rows = [row("set5 x4", "a", quick=31.0, bicubic=29.0), row("set5 x4", "b", quick=29.5, bicubic=29.0)]
    rows += [row("blur 1.6, sigma 2", "c", Wiener=28.0, Lucy=28.9), row("JPEG quality 10", "d", decoded=29.5)]
    rows += [row("set14 x4", "e", width=512, seconds=361.0, bicubic=29.3)]
    results = script.check(rows)
    assert [line.partition(" dB")[2].split("; ")[1] for line, met in results[:4]] == [
        *("mean +1.25", "mean +0.70", "c +1.10", "d +0.50"),
    ]
    assert [met for _, met in results] == [True, False, True, False, False]
    assert results[-1][0] == "quick, e: in 360 seconds; 361"


def test_table_has_means_of_groups(script):
    rows = [row("set5 x4", "a", quick=31.0, bicubic=29.0), row("set5 x4", "b", quick=29.0, bicubic=28.0)]
    assert script.table(rows).splitlines() == [
        "| picture | bicubic | `quick` |",
        "|---|---|---|",
        "| a 288x288, set5 x4 | 29.00 | 31.00 (9 s) |",
        "| b 288x288, set5 x4 | 28.00 | 29.00 (9 s) |",
        "| **mean**, set5 x4 | 28.50 | 30.00 (9 s) |",
    ]


def test_pixels_are_missing_where_the_mask_says(cases):
    clean = np.random.default_rng(1).random((32, 40, 3)).astype(np.float32)
    known = np.random.default_rng(0).random(clean.shape[:2]) >= 0.5
    case = cases.holed("50% missing", "noise", clean, known, "diffusion", cases.diffused)
    with Image.open(io.BytesIO(case.file)) as picture, Image.open(io.BytesIO(case.mask)) as mask:
        known = np.asarray(mask) == 255
        shown = np.asarray(picture) / 255
    assert 0.4 < known.mean() < 0.6
    np.testing.assert_allclose(shown[known], clean[known], rtol=0, atol=0.51 / 255)
    assert not shown[~known].any()
    assert case.group == "50% missing"


def test_bar_of_one_picture_is_about_its_own_figure(script):
    rows = [
        {
            "group": "50% missing", "picture": name, "width": 512, "height": 512, "others": {"diffusion": 26.9},
            "presets": {"default": {"psnr": psnr, "seconds": 1.0, "steps": 3}},
        }
        for name, psnr in (("barbara", 31.4), ("other", 20.0))
    ]  # fmt: skip
    assert [met for _, met in script.check(rows)] == [False]
    rows[0]["presets"]["default"]["psnr"] = 31.5
    assert [met for _, met in script.check(rows)] == [True]


def test_scratches_cover_a_tenth_and_are_filled_in(cases):
    rows, columns = np.mgrid[:48, :56] / 10
    clean = np.stack([0.5 + 0.3 * np.sin(rows + columns)] * 3, 2).astype(np.float32)
    known = cases.unscratched(48, 56)
    assert 0.85 < known.mean() < 0.9
    case = cases.holed("scratches", "waves", clean, known, "biharmonic", cases.biharmonic)
    assert case.psnr(case.others["biharmonic"]) > case.psnr(np.where(known[..., None], clean, 0)) + 20
