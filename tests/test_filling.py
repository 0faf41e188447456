"""Scattered holes: known pixels that the network does not see teach it how holes are filled."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from masked_cases import RECIPE, clean

import dip_fast
from dip_fast.fitting import Fit, MaskedFilling, masked_filling, prepare
from dip_fast.runs import checkpoints
from dip_fast.tasks.inpaint import are_scattered

LONGER = replace(RECIPE, options=replace(RECIPE.options, iterations=250, consolidation=20))


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


def test_what_scattered_holes_are() -> None:
    random = np.random.default_rng(0)
    for share in (0.5, 0.1):
        assert are_scattered(random.random((64, 64)) < share)
    assert are_scattered(random.random((64, 64)) < 0.98)  # dust
    scratch = np.ones((64, 64), bool)
    scratch[:, 30:36] = False
    assert not are_scattered(scratch)
    hole = np.ones((64, 64), bool)
    hole[20:40, 20:40] = False
    assert not are_scattered(hole)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("scattered", "asked", "masked"),
    [(True, {}, True), (False, {}, False), (True, {"preset": "quick"}, False), (True, {"composite": False}, False)],
)
def test_objective_is_chosen_by_the_shape_of_the_holes(scattered: bool, asked: dict, masked: bool) -> None:
    seen = known(40, 40)[0, 0].numpy() if scattered else ~np.pad(np.ones((12, 12), bool), 14)
    kinds = []
    image = clean(40, 40)[0].permute(1, 2, 0).numpy()
    look = [lambda fit: kinds.append(type(fit.objective))]
    dip_fast.inpaint(image, seen, iterations=3, channel_axis=-1, callbacks=look, **asked)
    assert {kind is MaskedFilling for kind in kinds} == {masked}


def test_estimates_of_objectives_are_exported() -> None:
    assert issubclass(MaskedFilling, dip_fast.fitting.MaskedPrediction)
