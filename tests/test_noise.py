"""The noise of a picture: the model of what clipping does, and its measurement."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dip_fast.fitting import NoiseModel, measure_noise
from dip_fast.fitting.blur import blur
from dip_fast.fitting.error_map import error_map
from dip_fast.fitting.noise_level import correlated_noise, is_correlated
from dip_fast.fitting.noise_model import cut_off


def picture(height: int = 192, width: int = 160) -> Tensor:
    """Make smooth levels from 0.02 to 0.98, with a textured quarter, ``(1, 3, H, W)``."""
    rows, columns = np.mgrid[:height, :width]
    smooth = 0.5 + 0.48 * np.sin(rows / 30) * np.cos(columns / 41 + np.arange(3)[:, None, None])
    texture = np.random.default_rng(7).normal(0, 0.1, smooth.shape) * ((rows < height // 2) & (columns < width // 2))
    return torch.tensor(np.clip(smooth + texture, 0, 1)[None])


def noisy(clean: Tensor, model: NoiseModel, seed: int = 0) -> Tensor:
    normal = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed), dtype=clean.dtype)
    return model.noisy(clean, normal)


@pytest.mark.parametrize("value", [0.0, 0.03, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(
    "model",
    [
        NoiseModel(0.01),
        NoiseModel(0.01, low=True, high=True),
        NoiseModel(0.04, low=True),
        NoiseModel(0.001, 0.02, high=True),
    ],
    ids=str,
)
def test_variance_is_that_of_samples_that_are_cut_off(model: NoiseModel, value: float) -> None:
    samples = noisy(torch.full((400_000,), value, dtype=torch.float64), model)
    found = model.variance_at_mean(samples.mean()[None])
    assert found.item() == pytest.approx(samples.var().item(), rel=0.02)


@pytest.mark.parametrize("model", [NoiseModel(0.01), NoiseModel(1e-4, low=True, high=True), NoiseModel(0.001, 0.02)])
def test_table_of_variances_at_equal_steps_has_them(model: NoiseModel) -> None:
    table, low, high = model.variances(torch.device("cpu"))
    means = torch.linspace(-0.1, 1.1, 4001, dtype=torch.float64)
    place = ((means - low) * (len(table) - 1) / (high - low)).clamp(0, len(table) - 1)
    found = np.interp(place.numpy(), np.arange(len(table)), table.numpy())
    np.testing.assert_allclose(found, model.variance_at_mean(means), rtol=1e-3)


def test_variance_beyond_the_range_is_that_at_its_end() -> None:
    model = NoiseModel(0.01, low=True, high=True)
    ends = model.variance_at_mean(torch.tensor([-0.5, 0.0, 1.0, 1.5], dtype=torch.float64))
    assert ends[0] == ends[1]
    assert ends[2] == ends[3]
    assert ends[0].item() == pytest.approx(0.0034, rel=0.01)  # half of the samples are 0: (1/2 - 1/(2 pi)) s^2


@pytest.mark.parametrize("sigma", [2, 5, 10, 25, 50])
@pytest.mark.parametrize("cut", [True, False])
def test_deviation_is_measured_beside_texture_and_clipping(sigma: float, cut: bool) -> None:
    y = noisy(picture(), NoiseModel((sigma / 255) ** 2, low=cut, high=cut)).float()
    model = measure_noise(y)
    assert 255 * model.deviation == pytest.approx(sigma, rel=0.05)
    assert model.b == 0
    if sigma >= 10:
        assert (model.low, model.high) == (cut, cut)


@pytest.mark.parametrize("peak", [30, 100])
def test_variance_that_grows_is_found_and_measured(peak: float) -> None:
    counts = np.random.default_rng(0).poisson(picture(384, 320).numpy() * peak) / peak
    y = torch.tensor(counts, dtype=torch.float32).clamp(0, 1)
    for model in (measure_noise(y), measure_noise(y, grows=True)):
        assert model.a < 0.1 * model.b
        assert 1 / model.b == pytest.approx(peak, rel=0.12)


def test_noise_of_few_photons_above_a_black_level_is_measured() -> None:
    """Its variance is ``b (x - black)``: a line through 0 made it a third of what it is."""
    photons = 40 * picture(384, 320).numpy()
    y = (
        100 + 12 * np.random.default_rng(0).poisson(photons) + np.random.default_rng(1).normal(0, 6, photons.shape)
    ) / 1000
    model = measure_noise(torch.tensor(y).float())
    for value in (0.15, 0.3, 0.5):
        true = (36 + 12 * (1000 * value - 100)) / 1e6
        found = model.variance_at_mean(torch.tensor([value])).item()
        assert found == pytest.approx(true, rel=0.15)


def test_equal_noise_is_not_said_to_grow() -> None:
    y = noisy(picture(), NoiseModel(0.01)).float()
    assert measure_noise(y, grows=False).b == 0
    forced = measure_noise(y, grows=True)
    assert (forced.a, forced.b > 0) == (0, True)


@pytest.mark.parametrize("size", [(16, 16), (16, 17), (33, 16)])
def test_least_pictures_are_measured(size: tuple[int, int]) -> None:
    y = noisy(torch.full((1, 1, *size), 0.5), NoiseModel(0.01)).float()
    assert 0.03 < measure_noise(y).deviation < 0.3


def test_flat_picture_has_no_noise() -> None:
    assert measure_noise(torch.full((1, 3, 32, 32), 0.25)).deviation == 0


def test_line_drawing_has_no_noise_of_rounding() -> None:
    """It was said to have ``noise about 6.5e-24 of 255``."""
    drawing = torch.ones(1, 1, 96, 96)
    drawing[..., 40] = 0
    drawing[0, 0, torch.arange(96), torch.arange(96) * 3 % 96] = 0
    assert measure_noise(drawing) == NoiseModel(0.0, low=True, high=True)
    assert not is_correlated(drawing)  # what predictions from afar leave of its lines was taken for noise


def test_samples_pile_up_where_they_are_cut_off() -> None:
    clean = picture()
    assert cut_off(noisy(clean, NoiseModel(0.01, low=True)), 0.1) == (True, False)
    assert cut_off(noisy(clean, NoiseModel(0.01)), 0.1) == (False, False)


def test_description_is_in_levels_of_8_bits() -> None:
    assert str(NoiseModel((25 / 255) ** 2)) == "noise about 25 of 255"
    assert str(NoiseModel(0, 1 / 30)) == "noise about 15 of 255 in the shadows, 44 in the lights"


@pytest.mark.parametrize("deviation", [2.0, 5.0, (0.0, 3.0), (3.0, 0.0)])
def test_blur_is_the_convolution_with_a_mirrored_gaussian(deviation: float | tuple[float, float]) -> None:
    image = np.random.default_rng(0).random((1, 2, 9, 31))
    expected = image
    for axis, along in zip((2, 3), deviation if isinstance(deviation, tuple) else (deviation, deviation), strict=True):
        reach = math.ceil(3 * along)
        window = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * along**2)) if along else np.ones(1)
        widths = [(0, 0)] * axis + [(reach, reach)] + [(0, 0)] * (3 - axis)
        padded = np.pad(expected, widths, mode="reflect")
        expected = np.apply_along_axis(np.convolve, axis, padded, window / window.sum(), "valid")
    np.testing.assert_allclose(blur(torch.tensor(image), deviation), expected, atol=1e-12)


def test_bias_of_clipping_is_known() -> None:
    model = NoiseModel(0.01, low=True, high=True)
    means = torch.stack([noisy(torch.full((200_000,), v), model).mean() for v in (0.0, 0.05, 0.5, 0.97)])
    torch.testing.assert_close(model.value_at_mean(means), torch.tensor([0.0, 0.05, 0.5, 0.97]), atol=2e-3, rtol=0)
    assert torch.equal(NoiseModel(0.01).value_at_mean(means), means)


# --- the error of a prediction -------------------------------------------------------------------------------------


def test_error_map_finds_regions_edges_and_lines() -> None:
    """Errors of 0.02 everywhere, 0.1 in a square, at an edge of the picture and in its first column."""
    generator = torch.Generator().manual_seed(4)
    clean = torch.zeros(1, 3, 128, 128)
    clean[..., 64:] = 0.6
    true = torch.full((1, 1, 128, 128), 0.02)
    true[..., 80:120, 10:50] = true[..., 63:65] = true[..., :1] = 0.1
    A = clean + true * torch.randn(clean.shape, generator=generator)
    y = clean + 0.1 * torch.randn(clean.shape, generator=generator)
    own = torch.full_like(y, 0.01)
    v = error_map((y - A).square() - own, own, A).sqrt()[0, 0]
    assert v[90:110, 20:40].mean().item() == pytest.approx(0.1, rel=0.1)
    assert v[20:100, 80:120].mean().item() == pytest.approx(0.02, abs=0.012)
    assert v[:, 0].mean() > 0.07
    assert v[:, 2:6].mean() < 0.06
    assert v[:70, 63:65].mean() > 0.06


# --- correlated noise ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [5, 25])
def test_white_noise_is_not_correlated(sigma: float) -> None:
    assert not is_correlated(noisy(picture(), NoiseModel((sigma / 255) ** 2)).float())


def test_noise_of_enlarged_pictures_is_correlated() -> None:
    y = noisy(picture(96, 80), NoiseModel(0.01)).float()
    larger = torch.nn.functional.interpolate(y, scale_factor=2, mode="bilinear")
    assert is_correlated(larger)
    assert not is_correlated(torch.full((1, 3, 64, 64), 0.5))  # there is none at all


def test_detail_that_fades_with_its_size_is_no_correlated_noise() -> None:
    """Fur without noise came back at 33.8 dB: at half scale it has 4.5 times as much of what was taken for noise."""
    rows, columns = torch.fft.fftfreq(128)[:, None], torch.fft.rfftfreq(128)
    spectrum = torch.fft.rfft2(torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)))
    smooth = torch.fft.irfft2(spectrum / (rows.square() + columns.square() + 1e-4) ** 1.3)
    fur = 0.5 + 0.2 * smooth / smooth.std()
    for image in (fur, torch.nn.functional.avg_pool2d(fur, 2)):
        assert measure_noise(image).deviation < 0.0005  # 0.001 and 0.002 where it is taken for noise
    assert not is_correlated(fur)


def test_correlated_noise_is_measured_where_the_residual_is_least() -> None:
    generator = torch.Generator().manual_seed(1)
    y = 0.5 + 0.02 * torch.randn(1, 3, 64, 64, generator=generator)
    y[..., 40:] += 0.2 * torch.randn(1, 3, 64, 24, generator=generator)
    model = correlated_noise(y, torch.full_like(y, 0.5))
    assert model.deviation == pytest.approx(0.04, rel=0.25)


def test_what_a_prediction_misses_of_a_picture_is_no_correlated_noise() -> None:
    """A clean picture came back at 38.6 dB: its detail was taken for noise that is alike."""
    y = picture(96, 80).float()
    quiet = 0.5 + 0.004 * torch.randn(1, 1, 48, 80, generator=torch.Generator().manual_seed(0))
    y[..., :48, :] = quiet
    assert correlated_noise(y, y + 0.05).deviation == pytest.approx(0.012, rel=0.3)


@pytest.mark.parametrize("sigma", [2, 5])
def test_noise_of_few_levels_is_measured_within_a_step_of_eight_bits(sigma: float) -> None:
    """The median of samples of 8 bits was a multiple of half a level: 5.2 for 5."""
    y = (255 * noisy(picture(), NoiseModel((sigma / 255) ** 2))).round() / 255
    true = (sigma**2 + 1 / 12) ** 0.5
    assert 255 * measure_noise(y).deviation == pytest.approx(true, rel=0.025)


@pytest.mark.parametrize("sigma", [5, 10])
def test_texture_everywhere_is_not_taken_for_noise(sigma: float) -> None:
    """Rows of bricks: no square of four pixels is without structure, but the rows are alike."""
    rows, columns = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    texture = 0.5 + 0.1 * torch.sin(2.1 * rows) * torch.sin(1.9 * columns) + 0.1 * torch.sin(1.3 * rows + 2.3 * columns)
    y = noisy(texture[None, None].double(), NoiseModel((sigma / 255) ** 2))
    assert 255 * measure_noise(y).deviation == pytest.approx(sigma, rel=0.05)


@pytest.mark.parametrize(("sigma", "power"), [(2, 0.7), (2, 0.8), (5, 0.7), (20, 0.7)])
def test_texture_as_fine_as_noise_is_told_from_it(sigma: float, power: float) -> None:
    """Grass and gravel were measured as noise of 8 to 11 levels, and came back up to 9 dB worse than they were.

    The power of this texture falls with the frequency, so its bands differ; 2 and 5 levels were 3 to 5 and 6.7.
    """
    generator = torch.Generator().manual_seed(2)
    rows, columns = torch.fft.fftfreq(256)[:, None], torch.fft.rfftfreq(256)
    spectrum = torch.fft.rfft2(torch.randn(1, 1, 256, 256, generator=generator))
    texture = torch.fft.irfft2(spectrum / (rows.square() + columns.square() + 1e-4) ** power)
    y = noisy(0.5 + 0.13 * texture / texture.std(), NoiseModel((sigma / 255) ** 2))
    assert 255 * measure_noise(y).deviation == pytest.approx(sigma, rel=0.16)


@pytest.mark.parametrize("seed", [0, 1])
def test_noise_that_is_cut_off_in_places_is_not_measured_too_low(seed: int) -> None:
    """The example: an eighth of its samples lie at the ends, and patches beside them have less noise."""
    with Image.open(Path(__file__).parents[1] / "examples" / "clean.png") as image:
        clean = np.asarray(image.convert("RGB")) / 255
    y = (clean + np.random.default_rng(seed).normal(0, 25 / 255, clean.shape)).clip(0, 1)
    assert 255 * measure_noise(torch.from_numpy(y).movedim(2, 0)[None]).deviation == pytest.approx(25, rel=0.025)


@pytest.mark.parametrize("sigma", [5, 25])
def test_noise_that_all_channels_share_is_not_missed(sigma: float) -> None:
    """A gray picture saved in colour: its channels together hold no noise in many directions."""
    gray = noisy(picture(), NoiseModel((sigma / 255) ** 2))[:, :1]
    alone, shared = (measure_noise(y).deviation for y in (gray, gray.expand(1, 3, -1, -1)))
    assert 255 * alone == pytest.approx(sigma, rel=0.05)
    assert shared == pytest.approx(alone, rel=0.01)


def test_a_dead_channel_does_not_make_the_noise_less() -> None:
    y = noisy(picture(256, 256), NoiseModel((10 / 255) ** 2))
    y[:, 2] = 0.5
    assert 255 * measure_noise(y).deviation == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("sigma", [5, 25])
def test_noise_of_few_patches_is_not_measured_too_low(sigma: float) -> None:
    """The least of 63 bands that scatter were 8% too low at 64x64: one half of the picture chooses for the other."""
    found = [
        255 * measure_noise(noisy(torch.full((1, 1, 64, 64), 0.5), NoiseModel((sigma / 255) ** 2), seed)).deviation
        for seed in range(8)
    ]
    assert sum(found) / 8 == pytest.approx(sigma, rel=0.03)


@pytest.mark.parametrize("shown", [0.9, 0.5, 0.05])
def test_noise_is_measured_where_few_pixels_are_known(shown: float) -> None:
    """Patches of 8x8, 4x4 and 2x2 pixels that are all known; of 5% no four are, and all pixels count."""
    clean = picture(256, 256)
    known = torch.rand(clean.shape[2:], generator=torch.Generator().manual_seed(1)) < shown
    y = torch.where(known, noisy(clean, NoiseModel((10 / 255) ** 2)), clean.mean())
    measured = 255 * measure_noise(y, known=known.expand_as(y)).deviation
    assert measured == pytest.approx(10, rel=0.15) if shown > 0.1 else measured > 0
