"""What of a run is worth a look, and how it is prepared."""

from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import pixels
from PIL import Image

from dip_fast.runs import charts, views
from dip_fast.runs.contact_sheet import sheet_of
from dip_fast.tasks import Baseline


def test_windows_are_the_most_changed_the_most_detailed_and_the_flattest():
    rng = np.random.default_rng(0)
    result = np.full((600, 800, 3), 0.5, np.float32)
    result += rng.normal(0, 0.02, result.shape).astype(np.float32)
    result[:192, 192:384] = 0.5  # flat
    result[:192, 576:768] = 0  # flat, but black: no grain would show there
    result[384:576, :192] += rng.normal(0, 0.2, (192, 192, 3)).astype(np.float32)
    before = result.copy()
    before[384:576, 576:768] += 0.3
    found = {window.name: (window.top, window.left, window.side) for window in views.collect(before, result).windows}
    assert found == {"most changed": (384, 576, 192), "most detailed": (384, 0, 192), "flattest": (0, 192, 192)}


@pytest.mark.parametrize("shape", [(16, 16, 1), (17, 400, 3), (95, 31, 3)])
def test_windows_lie_within_small_pictures(shape):
    shown = views.collect(pixels(*shape, dtype=np.float32), pixels(*shape, dtype=np.float32, seed=1))
    for window in shown.windows:
        part = window.of(shown.result.image)
        assert part.shape[:2] == (window.side, window.side)
    assert 1 <= len(shown.windows) <= 3


def test_input_of_another_size_gives_way_to_the_classical_method():
    small, large = pixels(16, 18, 3, dtype=np.float32), pixels(32, 36, 3, dtype=np.float32)
    assert views.collect(small, large, baseline=Baseline("bicubic", large)).before.name == "bicubic"
    repeated = views.collect(small, large).before
    assert repeated.name == "input, pixels repeated"
    np.testing.assert_array_equal(repeated.image, small.repeat(2, axis=0).repeat(2, axis=1))
    gray = views.collect(small[..., :1], large[..., :1]).before.image
    assert gray.shape == (32, 36, 1)


def test_differences_are_gray_where_there_is_none_and_not_cut_where_there_is():
    before = np.full((64, 64, 1), 0.4, np.float32)
    result = before.copy()
    result[:, 32:] += 0.02
    shown = views.collect(before, result)
    drawn = shown.difference(before, result)
    assert shown.gain == 16
    np.testing.assert_allclose(drawn[:, :32], 0.5)
    np.testing.assert_allclose(drawn[:, 32:], 0.5 + 16 * 0.02, atol=1e-5)
    assert views.collect(before, 1 - before * 0).gain == 1


def test_histograms_count_each_sample_once():
    image = np.zeros((1500, 1000, 3), np.float32)  # two bands
    image[:750, :, 1] = 1
    image[:, :, 2] = 2  # outside of the range: at its end
    counted = views.collect(image, image).histograms
    assert counted.shape == (2, 3, views.BINS)
    np.testing.assert_allclose(counted.sum(axis=2), 1)
    np.testing.assert_allclose(counted[0, :, 0], (1, 0.5, 0))
    np.testing.assert_allclose(counted[1, :, -1], (0, 0.5, 1))
    assert [chart.name for chart in charts.histograms(counted)] == ["red", "green", "blue"]


def test_rounding_is_that_of_a_result():
    values = np.linspace(-0.5, 1.5, 4001, dtype=np.float32).reshape(1, -1, 1)
    values[0, 0] = np.nan
    expected = np.rint(np.clip(np.nan_to_num(values), 0, 1) * 255).astype(np.uint8)
    np.testing.assert_array_equal(views.eight_bits(values), expected)


def test_snapshots_are_chosen_evenly_and_damaged_ones_left_out(tmp_path):
    paths = {step: tmp_path / f"{step}.png" for step in range(1, 41)}
    for path in paths.values():
        Image.fromarray(pixels(16, 18)).save(path)
    paths[1].write_bytes(b"no picture")
    paths[40].unlink()
    image = pixels(16, 18, 1, dtype=np.float32)
    shown = views.collect(image, image, snapshots=paths).iterates
    assert len(shown) == views.MAX_ITERATES - 2
    assert all(picture.shape == (16, 18, 1) for picture in shown.values())


def test_sheet_compares_first_then_shows_crops_then_iterates():
    image = pixels(40, 60, 3, dtype=np.float32)
    shown = views.collect(image, image, reference=image)
    rows, columns = 1 + len(shown.windows), 4
    assert sheet_of(shown).shape == (rows * (256 + 24 + 8) + 8, columns * (256 + 8) + 8, 3)


def test_curves_of_many_steps_are_short_and_mark_the_answer():
    steps = np.arange(1, 10_001.0)
    history = {"step": steps, "loss": 1 / steps, "variance": steps * np.nan, "psnr": steps / 1000}
    loss, psnr = charts.curves(history, 5001)
    assert (loss.name, loss.logarithmic, psnr.logarithmic) == ("loss", True, False)
    assert loss.path.count("L") < charts.MAX_POINTS
    assert psnr.chosen == pytest.approx(charts.WIDTH / 2, abs=0.1)
    assert (psnr.lowest, psnr.highest, psnr.last) == ("0.00 dB", "10.00 dB", 10_000)
    assert charts.curves({}, 1) == []
    drawing = ElementTree.fromstring(charts.plot(history, 5001))
    assert [text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text")][:2] == [
        f"{curve.name}: {curve.lowest} to {curve.highest}{', on a logarithmic scale' * curve.logarithmic}; steps "
        f"{curve.first} to {curve.last}"
        for curve in (loss, psnr)
    ]
    (flat,) = charts.curves({"step": steps[:1], "loss": np.zeros(1)}, 1)
    assert "nan" not in flat.path
