"""Patches estimated once more from those that are like them, against the formula of the paper in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dip_fast.fitting import similar_patches
from dip_fast.fitting.noise_model import NoiseModel

NOISE = NoiseModel(0.1**2)


def scene(height: int, width: int, channels: int = 3) -> Tensor:
    """Make waves, which hold many patches that are alike."""
    y, x = torch.meshgrid(torch.arange(height) / 3.0, torch.arange(width) / 4.0, indexing="ij")
    return torch.stack([0.5 + 0.3 * torch.sin(y + x / (c + 1)) for c in range(channels)])[None]


def estimates(height: int, width: int, channels: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Make a noisy picture and a first estimate with a third of its noise."""
    generator = torch.Generator().manual_seed(seed)
    clean = scene(height, width, channels)
    y, x = (clean + s * torch.randn(clean.shape, generator=generator) for s in (0.1, 0.03))
    return y, x


def made(y: Tensor, x: Tensor, noise: NoiseModel = NOISE) -> Tensor:
    """Estimate to the end."""
    work = similar_patches.estimate(y, x, noise)
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def of_the_paper(y: np.ndarray, x: np.ndarray, s2: float) -> np.ndarray:
    """Compute the estimate group by group, with the covariance matrix as it stands, all in float64."""
    side, reach, (_, height, width) = similar_patches.SIDE, similar_patches.REACH, y.shape
    tops, lefts = (range(0, n - side + 1, similar_patches.STRIDE) for n in (height, width))
    sums, count = np.zeros_like(y), np.zeros(y.shape[1:])

    def patch(image: np.ndarray, i: int, j: int) -> np.ndarray:
        return image[:, i : i + side, j : j + side].ravel()

    for i in tops:
        for j in lefts:
            places = [
                (k, m)
                for k in range(max(i - reach, 0), min(i + reach, height - side) + 1)
                for m in range(max(j - reach, 0), min(j + reach, width - side) + 1)
            ]
            places.sort(key=lambda place: np.square(patch(x, *place) - patch(x, i, j)).sum())
            places = places[: similar_patches.ALIKE]
            of_x, of_y = (np.stack([patch(image, *place) for place in places]) for image in (x, y))
            mean, C = of_x.mean(0), np.cov(of_x.T)
            weights = C @ np.linalg.inv(C + s2 * np.eye(len(C)))
            for (k, m), restored in zip(places, mean + (of_y - mean) @ weights.T, strict=True):
                sums[:, k : k + side, m : m + side] += restored.reshape(-1, side, side)
                count[k : k + side, m : m + side] += 1
    return sums / count


@pytest.mark.parametrize("channels", [1, 3])
def test_an_estimate_is_that_of_the_paper(channels: int) -> None:
    y, x = estimates(20, 23, channels)
    assert (y.shape[2] - similar_patches.SIDE) % similar_patches.STRIDE == 0
    found = made(y, x)
    paper = of_the_paper(y[0].double().numpy(), x[0].double().numpy(), NOISE.a)
    assert float((found[0].double() - torch.from_numpy(paper)).abs().max()) < 2e-6


def test_a_second_estimate_has_less_noise() -> None:
    y, x = estimates(48, 40)
    found = made(y, x)
    before, after = ((image - scene(48, 40)).square().mean() for image in (x, found))
    assert after < 0.5 * before


def test_noise_that_differs_between_channels_is_weighed_for_each() -> None:
    """Poisson noise of a dark and a bright channel is that of each at its own level."""
    clean = scene(40, 40, 2)
    clean[:, 0] *= 0.05
    noise = NoiseModel(0.0, 0.02)
    generator = torch.Generator().manual_seed(0)
    y = noise.noisy(clean, torch.randn(clean.shape, generator=generator))
    x = clean + 0.3 * (y - clean).roll(7, 3)
    found = made(y, x, noise)
    alike = made(y, x, NoiseModel(noise.deviation**2))
    for channel in (0, 1):
        errors = [float((image - clean)[:, channel].square().mean()) for image in (x, found, alike)]
        assert errors[1] < errors[0]
    assert errors[1] < 1.02 * errors[2]


@pytest.mark.parametrize("size", [(1, 9), (5, 40), (6, 6), (7, 6), (9, 30)])
def test_pictures_of_any_size_have_an_estimate(size: tuple[int, int]) -> None:
    y, x = estimates(*size)
    found = made(y, x)
    assert found.shape == y.shape
    assert found.isfinite().all()
    assert torch.equal(found, x) == (min(size) <= similar_patches.SIDE)


def test_a_flat_picture_stays_flat() -> None:
    y = torch.full((1, 1, 30, 30), 0.25)
    assert torch.allclose(made(y, y, NoiseModel(0.0)), y, atol=1e-6)


def test_the_bits_are_those_of_any_number_of_threads() -> None:
    y, x = estimates(64, 50)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(made(y, x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_picture_without_noise_comes_back_however_strong_its_contrast() -> None:
    """The matrices of a group are close to singular then, which Cholesky's factorization in float32 did not survive."""
    y = (torch.rand((1, 3, 48, 48), generator=torch.Generator().manual_seed(0)) > 0.5).float()
    y[..., 24:] = y[..., :24].repeat_interleave(2, 2)[..., :48, :]
    found = made(y, y, NoiseModel(0.0))
    assert float((found - y).abs().max()) < 1e-4


@pytest.mark.parametrize("size", [(5, 40), (6, 7), (64, 50), (300, 40), (40, 300), (256, 256)])
def test_it_can_be_interrupted_as_often_as_it_says(size: tuple[int, int]) -> None:
    y, x = estimates(*size, channels=1)
    assert len(list(similar_patches.estimate(y, x, NOISE))) == similar_patches.passes(size)


def test_pictures_of_one_scene_help_each_other() -> None:
    """Patches are looked for in the neighbours too: three frames that move are estimated better than each alone."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.cat([scene(40, 44).roll(2 * n, 3) for n in range(3)])
    y, x = (clean + s * torch.randn(clean.shape, generator=generator) for s in (0.1, 0.03))
    together, alone = made(y, x), torch.cat([made(y[n : n + 1], x[n : n + 1]) for n in range(3)])
    errors = [float((found - clean).square().mean()) for found in (together, alone)]
    assert errors[0] < 0.9 * errors[1]


def test_a_large_picture_is_estimated_in_pieces_without_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = estimates(90, 100)
    whole = made(y, x)
    assert similar_patches.passes((90, 100)) == 1
    monkeypatch.setattr("dip_fast.fitting.pieces.LARGEST_WHOLE", 0)
    monkeypatch.setattr("dip_fast.fitting.pieces.SIDE", 40)
    assert len(list(similar_patches.estimate(y, x, NOISE))) == similar_patches.passes((90, 100)) == 9
    pieces, clean = made(y, x), scene(90, 100)
    at_seams = torch.tensor([39, 40, 79, 80])
    errors = [(image - clean).square().mean((0, 1, 2)) for image in (whole, pieces)]
    assert float(errors[1].mean()) == pytest.approx(float(errors[0].mean()), rel=0.05)
    assert float(errors[1][at_seams].mean()) < 1.2 * float(errors[0].mean())
