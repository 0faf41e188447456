"""Scattered holes: known pixels that the network does not see teach it how holes are filled."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from masked_cases import RECIPE, clean
from torch.nn.functional import max_pool2d

import dip_fast
from dip_fast.fitting import Fit, MaskedFilling, filling, masked_filling, prepare
from dip_fast.runs import checkpoints
from dip_fast.tasks.inpaint import are_small

LONGER = replace(RECIPE, options=replace(RECIPE.options, iterations=250))


def known(height: int = 37, width: int = 45, share: float = 0.5) -> torch.Tensor:
    return torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(1)) < share


def made(channels: int = 3, recipe=RECIPE, size: tuple[int, int] = (37, 45), between: int | None = None) -> Fit:
    objective = masked_filling(clean(*size, channels), known(*size), recipe, seed=3)
    return prepare(objective, recipe, seed=3, steps_between_syncs=between)


@pytest.mark.parametrize("hidden", [0.0, 0.5, 7.0])
def test_nothing_depends_on_what_unknown_pixels_hold(hidden: float) -> None:
    y, seen = clean(), known()
    objective = masked_filling(torch.where(seen, y, torch.full_like(y, hidden)), seen, RECIPE, seed=3)
    plain = masked_filling(y, seen, RECIPE, seed=3)
    assert torch.equal(objective.z.tensor(), plain.z.tensor())
    step = torch.tensor(5)
    one, other = objective.example(step), plain.example(step)
    assert torch.equal(one.z, other.z)
    asked = one.target[:, 3:]
    assert torch.equal(one.target[:, :3] * asked, other.target[:, :3] * asked)


def test_network_is_asked_for_known_pixels_that_it_does_not_see() -> None:
    y, seen = clean(64, 64), known(64, 64)
    shares = []
    for step in range(1, 9):
        example = masked_filling(y, seen, RECIPE, seed=3).example(torch.tensor(step))
        kept, asked = example.z[:, 3:], example.target[:, 3:]
        assert not (kept * asked).any()
        shares.append((kept.mean().item(), asked.mean().item()))
        picture = example.target[:, :3]
        assert torch.equal(torch.where(kept > 0, example.z[:, :3], picture), picture)
    assert np.mean(shares, axis=0) == pytest.approx([0.5 * 0.8, 0.5 * 0.2], abs=0.02)


def text(height: int = 64, width: int = 64, side: int = 5) -> torch.Tensor:
    """What is known around a few squares."""
    seen = torch.ones(1, 1, height, width, dtype=torch.bool)
    for i in range(4, height, 20):
        seen[..., i : i + side, i : i + side] = False
    return seen


def test_wide_holes_hide_known_pixels_in_their_own_shapes() -> None:
    """Single pixels were hidden, which is far easier to fill: kate's text was 43 dB, and said to be 54."""
    y, seen = clean(64, 64), text()
    objective = masked_filling(y, seen, RECIPE, seed=3)
    hidden = []
    for step in range(1, 9):
        example = objective.example(torch.tensor(step))
        lost = 1 - example.z[:, 3:]  # squares, and those of the edges that are cut off
        squares = max_pool2d(-max_pool2d(-lost[..., 8:-8, 8:-8], 5, 1, 2), 5, 1, 2)
        inner = slice(6, -6)
        assert torch.equal(squares[..., inner, inner], lost[..., 8:-8, 8:-8][..., inner, inner])
        hidden.append(example.target[:, 3:].mean().item())
        assert not (example.z[:, 3:] * example.target[:, 3:]).any()
    assert 0.1 < np.mean(hidden) < 0.3  # about as much as the recipe says


@pytest.mark.parametrize(
    ("share", "copies"), [(0.5, 0), (0.69, 1), (0.8, 1), (0.9, 2), (0.957, 5), (0.999, 8), (1.0, 0)]
)
def test_holes_are_laid_over_the_picture_as_often_as_hides_a_fifth(share: float, copies: int) -> None:
    assert filling.copies(0.8, share) == copies
    assert filling.copies(0.0, share) == 0


def test_loss_is_that_of_the_pixels_that_are_asked_for() -> None:
    objective = masked_filling(clean(), known(), RECIPE, seed=3)
    example = objective.example(torch.tensor(1))
    asked = example.target[:, 3:].expand(-1, 3, -1, -1) > 0
    x = torch.rand_like(example.target[:, :3])
    expected = (x - example.target[:, :3]).double().square()[asked].mean()
    assert objective.loss(x, example).item() == pytest.approx(expected.item(), rel=1e-5)
    x[asked] = example.target[:, :3][asked]
    assert objective.loss(x, example) == 0


@pytest.mark.parametrize("share", [0.02, 0.0])
def test_squares_without_a_pixel_to_ask_for_do_not_end_the_fit(share: float) -> None:
    """The mean over no pixel was NaN, again and again: few pixels are known, or a square lies within a hole."""
    seen = known(64, 64, share)
    seen[..., :3, :3] = True
    objective = masked_filling(clean(64, 64), seen, RECIPE, seed=3)
    asked = [objective.example(torch.tensor(step)).target[:, 3:].sum() for step in range(1, 41)]
    assert share > 0 or 0 in asked
    run = prepare(objective, RECIPE, seed=3)
    run.run()
    assert run.stop_reason == "iterations"
    assert not run.events
    assert np.isfinite(run.result().image).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_holes_are_filled_and_known_pixels_kept(channels: int, tmp_path) -> None:
    run = made(channels, LONGER, (96, 96))
    run.run()
    result = run.result()
    truth, seen = clean(96, 96, channels)[0].permute(1, 2, 0).numpy(), known(96, 96)[0, 0].numpy()
    np.testing.assert_array_equal(result.image[seen], truth[seen])
    error = np.square(result.image - truth)[~seen].mean()
    assert error < 1e-3  # 4e-4 or less; a mean of the neighbours leaves 1e-3 to 2e-3 of what these waves have
    assert result.estimated_psnr == pytest.approx(-10 * np.log10(error / 2), abs=1.5)
    path = dip_fast.export(result, tmp_path / "model.onnx")
    assert np.abs(dip_fast.replay(path) - result.image).max() < 2e-5


def test_estimate_is_that_of_wide_holes() -> None:
    truth = clean(96, 96) + 0.05 * torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(5))
    run = prepare(masked_filling(truth, text(96, 96), LONGER, seed=3), LONGER, seed=3)
    run.run()
    error = (run.draw() - truth).square().mean().item()
    assert run.objective.estimated_psnr == pytest.approx(-10 * np.log10(error), abs=1.0)


@pytest.mark.parametrize("stop", ["step 17", "pass 4", "pass 11"])
def test_resumed_bit_for_bit(stop: str, tmp_path) -> None:
    whole = made()
    whole.run()

    def interrupt(run: Fit) -> None:
        kind, number = stop.split()
        if {"step": run.steps, "pass": run.passes}[kind] >= int(number):
            run.interrupt()

    first = made(between=7)
    first.run([interrupt])
    assert np.isfinite(first.result().image).all()  # in brief
    first = made(between=7)
    first.run([interrupt])
    (tmp_path / "checkpoint").write_bytes(checkpoints.dump(first, "run"))
    second = made(between=7)
    checkpoints.load(tmp_path / "checkpoint", second, "run")
    second.run()
    np.testing.assert_array_equal(second.result().image, whole.result().image)


def test_same_bits_for_any_number_of_threads() -> None:
    images = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        run = made(size=(70, 90))
        run.run()
        images.append(run.result().image)
    torch.set_num_threads(2)
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])


def test_large_pictures_are_filled_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dip_fast.fitting.objectives.LARGEST_WHOLE", 64)
    run = made()
    assert run.objective.is_large
    run.run()
    assert np.isfinite(run.result().image).all()
    stopped = made()
    stopped.run([lambda fit: fit.interrupt() if fit.steps == 20 else None])
    assert np.isfinite(stopped.result().image).all()


def test_which_holes_are_small() -> None:
    random = np.random.default_rng(0)
    for share in (0.5, 0.1):
        assert are_small(random.random((64, 64)) < share)
    assert are_small(random.random((64, 64)) < 0.98)  # dust
    for width, small in ((6, True), (16, True), (17, False)):
        scratch = np.ones((64, 64), bool)
        scratch[:, 20 : 20 + width] = False
        assert are_small(scratch) == small


@pytest.mark.parametrize(
    ("scattered", "asked", "masked"),
    [(True, {}, True), (False, {}, False), (True, {"preset": "quick"}, False), (True, {"composite": False}, False)],
)
def test_objective_is_chosen_by_the_shape_of_the_holes(scattered: bool, asked: dict, masked: bool) -> None:
    seen = known(40, 40)[0, 0].numpy() if scattered else ~np.pad(np.ones((18, 18), bool), 11)
    kinds = []
    image = clean(40, 40)[0].permute(1, 2, 0).numpy()
    look = [lambda fit: kinds.append(type(fit.objective))]
    dip_fast.inpaint(image, seen, iterations=3, channel_axis=-1, callbacks=look, **asked)
    assert {kind is MaskedFilling for kind in kinds} == {masked}


def test_estimates_of_objectives_are_exported() -> None:
    assert issubclass(MaskedFilling, dip_fast.fitting.MaskedPrediction)
