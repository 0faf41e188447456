"""Denoised pictures of one scene, averaged along its motion (`dip_fast.fitting.along_time`)."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dip_fast.fitting import along_time

DEVIATION = 0.02
ERROR = DEVIATION**2 / along_time.AGREE  # of the combination, before the patches


def ended(work: Generator[None, int | None, Tensor], enough: int | None = None) -> tuple[Tensor, int]:
    """Run it to its end, and count what it yields."""
    passes = 0
    try:
        next(work)
        while True:
            passes += 1
            work.send(enough)
    except StopIteration as end:
        return end.value, passes


def smooth(height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 4, width // 4, generator=generator)
    return interpolate(coarse, size=(height, width), mode="bicubic")


def panned(frames: int = 6, *, right: int = 2) -> Tensor:
    """A scene that moves to the left."""
    scene = smooth(64, 120, 0)
    return torch.cat([scene[..., right * n : right * n + 80] for n in range(frames)])


def with_errors(clean: Tensor) -> Tensor:
    return clean + DEVIATION * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))


def mean_square(x: Tensor) -> float:
    return float(x.square().mean())


def test_a_scene_that_moves_has_less_error_and_flicker() -> None:
    clean = panned()
    z = with_errors(clean)
    made, _ = ended(along_time.average(z, [ERROR] * len(z)))
    # Four to seven pictures of one error: a fourth of it at the ends, a seventh in the middle.
    assert mean_square(made - clean) < 0.3 * mean_square(z - clean)
    wrong = made - clean
    assert mean_square(wrong[1:, ..., :-2] - wrong[:-1, ..., 2:]) < 0.2 * mean_square(z[1:] - clean[1:])


def test_what_has_moved_is_found_where_it_went() -> None:
    here, there = panned(2, right=5)[:1], panned(2, right=5)[1:]
    found = along_time._moved(here, there)
    assert torch.equal(found[..., 8:], here[..., 8:])  # but for what has left the picture
    assert not torch.equal(there, here)


def test_other_scenes_stay_bit_for_bit() -> None:
    z = torch.cat([smooth(64, 80, seed) for seed in range(3)])
    made, _ = ended(along_time.average(z, [ERROR] * 3))
    assert torch.equal(made, z)


def test_a_part_that_differs_is_not_averaged() -> None:
    z = with_errors(panned(right=0))
    z[3, :, 20:50, 20:50] = 1 - z[3, :, 20:50, 20:50]
    made, _ = ended(along_time.average(z, [ERROR] * len(z)))
    inside = (slice(None), slice(25, 45), slice(25, 45))
    assert torch.equal(made[3][inside], z[3][inside])
    assert mean_square(made[2][inside] - z[2][inside]) > 0.1 * DEVIATION**2  # of the others


def test_pieces_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    z = with_errors(panned(4))
    whole, passes = ended(along_time.average(z, [ERROR] * 4))
    assert passes == along_time.kind_of_passes((64, 80), 4).number == 4
    monkeypatch.setattr("dip_fast.fitting.pieces.LARGEST_WHOLE", 1000)
    monkeypatch.setattr("dip_fast.fitting.pieces.SIDE", 32)
    made, passes = ended(along_time.average(z, [ERROR] * 4))
    assert passes == along_time.kind_of_passes((64, 80), 4).number == 4 * 6
    assert torch.equal(made, whole)


def test_pictures_without_error_stay_as_they_are() -> None:
    """Where no noise was found; they became NaN."""
    z = panned(3, right=0)
    made, _ = ended(along_time.average(z, [0.0] * 3))
    torch.testing.assert_close(made, z, rtol=0, atol=1e-6)


def test_in_brief_pictures_stay_as_they_are() -> None:
    z = with_errors(panned(2))
    made, passes = ended(along_time.average(z, [ERROR] * 2), enough=1)
    assert made is z
    assert passes == 1


def test_bits_do_not_depend_on_threads() -> None:
    z, made = with_errors(panned(3)), {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            made[threads], _ = ended(along_time.average(z, [ERROR] * 3))
        finally:
            torch.set_num_threads(1)
    assert torch.equal(made[1], made[2])
