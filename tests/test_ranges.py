"""Samples that are no part of the scene: what they do to the range and to the fit; they come back as they were."""

import io

import numpy as np
import pytest
import tifffile
from picture_files import pillow, tiff
from run_cases import SHORT, read, texture, write

import dip_fast
from dip_fast.errors import UsageError
from dip_fast.pictures import encode_image, ranges, read_picture
from dip_fast.pictures.ranges import filled, find
from dip_fast.tasks import TASKS, Data

SIZE = (48, 40)


def scene(seed=0, noise=0.02):
    """Smooth values about 0.2 to 0.8, with noise."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return 0.5 + 0.15 * np.sin(y / 9) + 0.15 * np.cos(x / 7) + np.random.default_rng(seed).normal(0, noise, SIZE)


def dark():
    """A linear frame of 16 bits in which little light fell."""
    return np.rint(300 + 600 * scene()).astype(np.uint16)


def with_one(samples, value, place=(7, 9)):
    changed = samples.copy()
    changed[place] = value
    return changed


# ---- the range


def test_one_hot_pixel_leaves_a_dark_frame_its_range():
    alone, found = (find(samples[..., None], outliers=True) for samples in (dark(), with_one(dark(), 65535)))
    assert found.whole == alone.whole == (0, 1023)
    assert alone.outliers is None
    assert np.argwhere(found.outliers).tolist() == [[7, 9, 0]]
    assert find(with_one(dark(), 65535)[..., None]).whole == (0, 65535)  # for tasks that cannot carry it through


def test_of_a_large_picture_some_rows_tell_the_outliers(monkeypatch):
    samples = with_one(np.tile(dark(), (3, 4)), 65535, (100, 9))[..., None]
    whole = find(samples, outliers=True)
    monkeypatch.setattr(ranges, "SAMPLES", 2**9)
    found = find(samples, outliers=True)
    assert found.whole == whole.whole == (0, 1023)
    np.testing.assert_array_equal(found.outliers, whole.outliers)
    hidden = np.ones(samples.shape[:2], bool)
    hidden[-3:] = False  # of no row that is looked at
    assert find(samples, hidden, outliers=True).outliers is None


def test_a_dead_pixel_far_below_the_others_is_an_outlier_too():
    found = find(with_one(40_000 + dark(), 0)[..., None], outliers=True)
    assert np.argwhere(found.outliers).tolist() == [[7, 9, 0]]
    assert 40_000 < found.whole[0] < found.whole[1] < 41_100


def test_one_bright_patch_leaves_a_linear_float_frame_its_range():
    samples = with_one(scene(), 40, np.s_[4:10, 4:10])
    found = find(samples[..., None], outliers=True)
    assert found.whole == (0, 1)
    assert int(found.outliers.sum()) == 36


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_ordinary_pictures_have_no_outliers(dtype):
    lamps = np.where(scene(1) > 0.72, 1.0, scene() / 8).clip(0, 1)
    top = 1 if dtype == "float32" else np.iinfo(dtype).max
    for image in (lamps, scene(), texture(*SIZE, dtype="float64")):
        found = find((image * top).astype(dtype)[..., None], outliers=True)
        assert (found.whole, found.channels, found.outliers) == ((0, top), None, None)


def test_stars_are_outliers_and_the_noise_of_the_sky_is_none():
    sky = np.random.default_rng(0).normal(1000, 20, (200, 200))
    sky[::50, ::50] = 30_000
    found = find(np.rint(sky).astype(np.uint16)[..., None], outliers=True)
    assert int(found.outliers.sum()) == 16
    assert found.whole[1] < 1200


def test_text_on_a_page_is_no_outlier():
    page = np.random.default_rng(0).normal(60_000, 100, SIZE)
    page[10:30:4, 5:35] = 5000
    assert find(page.astype(np.uint16)[..., None], outliers=True).outliers is None


def test_channels_of_very_different_brightness_have_their_own_range():
    factors = 10 ** np.linspace(0, 3, 22)
    samples = np.stack([factor * scene(i) for i, factor in enumerate(factors)], axis=-1)
    samples[..., 5] = 7
    found = find(samples, outliers=True)
    spans = [(high - low) / factor for (low, high), factor in zip(found.channels, factors, strict=True)]
    assert found.channels[5] == (7, 7)
    assert all(0.5 < span < 1 for i, span in enumerate(spans) if i != 5)


def test_channels_of_a_photograph_share_one_range():
    rgb = np.stack([scene(), scene(1) / 4, scene(2) / 10], axis=-1)
    assert find(rgb, outliers=True).channels is None


def test_what_is_filled_in_is_like_its_surroundings():
    image = scene(noise=0).astype(np.float32)[..., None]
    off = np.zeros(image.shape, bool)
    off[20:26, 10:17] = off[0, 0] = True
    out = filled(np.where(off, 1000, image).astype(np.float32), off)
    assert np.abs(out - image).max() < 0.1
    np.testing.assert_array_equal(out[~off], image[~off])


# ---- arrays


@pytest.mark.parametrize("preset", ["default", "quick"])
def test_a_hot_pixel_is_carried_through_and_not_fitted(preset, small):
    frame, hot = dark(), with_one(dark(), 65535)
    restored, result = (dip_fast.denoise(each, iterations=6, preset=preset, noise=5) for each in (frame, hot))
    assert result[7, 9] == 65535
    rest = np.delete(result.ravel(), 7 * SIZE[1] + 9) - np.delete(restored.ravel(), 7 * SIZE[1] + 9).astype(float)
    assert np.sqrt((rest**2).mean()) < 30  # it was 6000 and more


def test_the_loss_does_not_ask_for_what_was_set_aside():
    import torch

    frame = scene().astype(np.float32)[..., None]
    off = np.zeros(frame.shape, bool)
    off[10:20, 10:20] = True
    losses = []
    for value in (0.0, 1.0):
        data = Data(np.where(off, value, frame).astype(np.float32), aside=off)
        job = dip_fast.runs.job.complete({"task": "denoise", "noise": "5", "seed": 1})
        objective = TASKS["denoise"].objective(data, job.options, job.recipe(SIZE), 1)
        example = objective.example(torch.tensor(1))
        outside = example.target != value
        losses.append(objective.loss(torch.where(outside, 0.5, 0.2), example))
        assert float((1 - example.z[:, 1:]).mean()) > 0.1  # of the others it asks for a fifth
    assert losses[0] == losses[1]


def test_noise_is_measured_beside_what_was_set_aside():
    import torch

    from dip_fast.fitting.noise_level import is_correlated, measure_noise

    y = torch.from_numpy(scene(noise=0.05)).float()[None, None].repeat(1, 1, 2, 2)
    known = torch.ones_like(y, dtype=torch.bool)
    known[..., :48] = False
    alike = 0.5 + 0.05 * torch.randn(1, 1, y.shape[2] // 2, 24, generator=torch.Generator().manual_seed(0))
    y[..., :48] = torch.nn.functional.interpolate(alike, size=(y.shape[2], 48), mode="bilinear")
    assert measure_noise(y).deviation < 0.01
    assert 0.04 < measure_noise(y, known=known).deviation < 0.06
    assert is_correlated(y)
    assert not is_correlated(y, known)


@pytest.mark.parametrize("value", [0, 77, 255])
def test_flat_pictures_come_back_as_they_are(value, small):
    for flat in (np.full((16, 16), value, np.uint8), np.full((16, 20), value / 255, np.float32)):
        np.testing.assert_array_equal(dip_fast.denoise(flat), flat)


def test_a_dead_channel_comes_back_as_it_is_and_the_others_are_restored(small):
    samples = np.stack([scene(), np.full(SIZE, 7.5), 1000 * scene(1)], axis=-1)
    result = dip_fast.denoise(samples, iterations=2, channel_axis=-1)
    assert (result[..., 1] == 7.5).all()
    assert 0.2 < result[..., 0].mean() < 0.8
    assert 200 < result[..., 2].mean() < 800
    assert (result[..., ::2] != samples[..., ::2]).mean() > 0.9


def test_a_dead_channel_does_not_change_the_noise_of_the_others():
    """It made the noise grow with the value, from none at its own: 21 channels gained 0.2 dB."""
    from dip_fast.tasks.denoise import _noise

    living = np.stack([np.tile(scene(n, 0.05), (3, 3)) for n in range(4)], axis=-1).astype(np.float32)
    with_dead = np.concatenate((living, np.full((*living.shape[:2], 1), 0.01, np.float32)), axis=-1)
    alone, beside = (_noise(Data(image), {"noise": "auto"}) for image in (living, with_dead))
    assert (beside.a, beside.b) == (alone.a, alone.b)
    assert 0.04 < alone.deviation < 0.06


@pytest.mark.parametrize("factor", [1e-300, -1e-12, 1, -1e6, 1e300])
def test_floats_of_any_magnitude_and_sign(factor, small):
    plain = dip_fast.denoise(2 * scene(), iterations=2)
    np.testing.assert_allclose(
        dip_fast.denoise(abs(factor) * 2 * scene(), iterations=2), abs(factor) * plain, rtol=1e-5
    )
    assert np.sign(dip_fast.denoise(factor * scene(), iterations=2).mean()) == np.sign(factor)


@pytest.mark.parametrize("dtype", ["bool", "int8", "int16", "int32", "uint32", "int64", "uint64", ">i4"])
def test_arrays_of_any_integers_come_back_in_their_dtype(dtype, small):
    signed = np.dtype(dtype).kind == "i"
    samples = (scene() > 0.5) if dtype == "bool" else ((scene() - 0.5 * signed) * 200).astype(dtype)
    result = dip_fast.denoise(samples, iterations=2, noise=5)
    assert result.dtype == samples.dtype
    assert abs(result.astype(float).mean() - samples.mean()) < (0.5 if dtype == "bool" else 60)


# ---- files


@pytest.mark.slow
def test_left_half_three_stops_darker_keeps_its_brightness():
    frame = scene()
    frame[:, :20] /= 8
    assert find(frame[..., None], outliers=True).whole == (0, 1)
    result = dip_fast.denoise(frame.astype(np.float32), iterations=60, noise=5)
    for half in (np.s_[:, :20], np.s_[:, 20:]):
        assert abs(result[half].mean() / frame[half].mean() - 1) < 0.05


def test_magenta_under_alpha_0_is_neither_fitted_nor_lost():
    rgba = np.dstack([texture(*SIZE, 3) // 8 + 100, np.full(SIZE, 255, np.uint8)])
    rgba[:, :20] = 255, 0, 255, 0
    picture = read_picture(pillow(rgba, "PNG"), aside=("hidden",))
    assert abs(picture.image[:, :20] - picture.image[:, 20:].mean(axis=(0, 1))).max() < 0.06
    assert "50.00% of the pixels are hidden under alpha 0" in picture.notes[0]
    np.testing.assert_array_equal(
        read_picture(encode_image(picture.image, picture.kind, picture.extras)).samples, rgba[..., :3]
    )
    whole = np.dstack([rgba[..., :3], np.zeros(SIZE, np.uint8)])
    assert read_picture(pillow(whole, "PNG"), aside=("hidden",)).extras.aside is None  # such an alpha says nothing


def test_a_colour_painted_on_a_dark_frame_still_marks_what_is_unknown():
    rgb = np.dstack([dark()] * 3)
    rgb[5:9, 5:9] = 65535, 0, 65535
    picture = read_picture(tiff(rgb), aside=TASKS["inpaint"].aside)
    assert picture.extras.aside is not None
    data = Data(picture.image, picture=picture, aside=picture.extras.aside[0])
    known = TASKS["inpaint"].read("mask", "#ff00ff", data, {"mask_white": "known"})
    assert np.argwhere(~known).tolist() == [[y, x] for y in range(5, 9) for x in range(5, 9)]
    extras = TASKS["inpaint"].result_extras(picture.extras, Data(picture.image, {"mask": known}))
    assert not extras.aside[0].any()


@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("hot.png", with_one(dark(), 65535)),
        ("patch.tif", with_one(scene().astype(np.float32), 40, np.s_[4:10, 4:10])),
        ("flat.png", np.zeros((16, 16), np.uint8)),
        ("gray.tif", np.full((*SIZE, 3), 0.3, np.float32)),
        ("alpha.png", np.dstack([texture(*SIZE, 3), 255 * (texture(*SIZE) > 99).astype(np.uint8)])),
        ("deep.tif", with_one(np.rint(1e4 * scene()).astype(np.int32), 2**31 - 1)),
        ("channels.tif", np.stack([scene(), 500 * scene(1), with_one(scene(2), 1e9)], -1).astype(np.float32)),
    ],
    ids=["hot pixel", "patch", "zeros", "flat float", "alpha 0", "int32", "channels"],
)
def test_a_run_and_its_replay_carry_through_what_was_set_aside(dip, small, tmp_path, monkeypatch, name, samples):
    monkeypatch.chdir(tmp_path)
    write(name, samples)
    done = dip("run", name, "-o", "run", *SHORT[:2], "--iterations", "6", "--quiet", "--noise", "20")
    assert done.code == 0, done.err
    result = read(tmp_path / "run" / f"result{name[-4:]}")
    assert dip("replay", "run", "--verify", "-o", f"again{name[-4:]}").code == 0
    assert (tmp_path / f"again{name[-4:]}").read_bytes() == (tmp_path / "run" / f"result{name[-4:]}").read_bytes()
    assert (result.dtype, result.shape) == (samples.dtype, samples.shape)
    aside = read_picture(name, aside=("hidden", "outliers")).extras.aside
    if aside is None:
        np.testing.assert_allclose(result, samples, rtol=1e-6)
    else:
        off, kept = aside
        np.testing.assert_array_equal(result.reshape(*SIZE, -1)[..., : off.shape[2]][off], kept[off])
        assert (result != samples).mean() > 0.2


def test_floats_that_32_bits_cannot_tell_apart_are_refused_by_name():
    with pytest.raises(UsageError, match=r"too close to each other for 32-bit float; subtract"):
        read_picture(tiff(1e9 + scene()))
    file = io.BytesIO()
    tifffile.imwrite(file, 1e9 + 1e6 * scene())
    assert read_picture(file.getvalue()).kind.dtype == "float64"
