"""The masked objective: what a step sees, the estimate, and fits that are resumed, exported and drawn again."""

from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from masked_cases import LEARNING, NOISE, RECIPE, SIGMA, clean, noisy
from PIL import Image
from torch import Tensor

import dip_fast
from dip_fast.fitting import Fit, MaskedPrediction, fit, loop, masked, masked_prediction, objectives, prepare, start
from dip_fast.fitting.combining import combine
from dip_fast.fitting.finishing import Finishing
from dip_fast.presets import PRESETS, Recipe
from dip_fast.runs import checkpoints


def made(engine: str = "auto", recipe: Recipe = RECIPE, y: Tensor | None = None, between: int | None = None) -> Fit:
    objective = masked_prediction(noisy() if y is None else y, NOISE, recipe, seed=3)
    return prepare(objective, recipe, seed=3, engine=engine, steps_between_syncs=between)


# --- steps ---------------------------------------------------------------------------------------------------------


def test_only_dropped_samples_are_compared() -> None:
    objective = masked_prediction(noisy(), NOISE, RECIPE)
    example = objective.example(torch.tensor(5))
    assert example.z.shape == (1, 6, 32, 32)
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2), requires_grad=True)
    loss = objective.loss(x, example)
    loss.backward()
    kept = example.z[:, 3:].bool()
    assert not x.grad[kept].any()
    assert x.grad[~kept].all()
    expected = (x - example.target)[~kept].square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_network_does_not_see_what_it_is_compared_with() -> None:
    y = noisy()
    objective = masked_prediction(y, NOISE, RECIPE)
    step = torch.tensor(5)
    example = objective.example(step)
    # All crops of a step show one mask, so what they drop can be found by a change that they do not show.
    changed = masked_prediction(torch.where(y > 0.5, y, y + 1), NOISE, RECIPE).example(step)
    dropped = example.z[:, 3:] == 0
    assert (changed.target != example.target)[dropped].any()
    assert torch.equal(changed.z[:, 3:], example.z[:, 3:])


@pytest.mark.parametrize("size", [(16, 16), (5, 61), (37, 45), (200, 180)])
def test_squares_are_those_that_the_network_reads(size: tuple[int, int]) -> None:
    recipe = PRESETS["default"].recipe
    objective = masked_prediction(noisy(*size), NOISE, recipe)
    side = objective.step_size[0]
    assert side % 32 == 0
    assert side >= 64
    assert objective.example(torch.tensor(1)).z.shape == (1, 6, side, side)


def test_engines_begin_alike() -> None:
    fused, plain = made("fused"), made("plain")
    for run in (fused, plain):
        run.step()
    np.testing.assert_allclose(fused.rows[0][1], plain.rows[0][1], rtol=1e-5)


# --- the estimate --------------------------------------------------------------------------------------------------


def test_combination_takes_more_of_the_noisy_samples_where_the_prediction_is_worse() -> None:
    c = clean(160, 160)
    generator = torch.Generator().manual_seed(1)
    y = c + SIGMA * torch.randn(c.shape, generator=generator)
    errors = torch.full((160, 160), 0.02)
    errors[:, 80:] = 0.12
    A = c + errors * torch.randn(c.shape, generator=generator)
    x, _, predicted, combined = combine(y, A, NOISE)

    def psnr(image: Tensor) -> float:
        return -10 * float((image - c).square().mean().log10())

    assert psnr(x) > psnr(A) + 1
    assert psnr(x) > psnr(y) + 3
    assert predicted == pytest.approx(psnr(A), abs=0.2)
    assert combined == pytest.approx(psnr(x), abs=0.2)
    assert ((x - A).abs().mean((0, 1, 2))[100:] > 10 * (x - A).abs().mean((0, 1, 2))[20:60].mean()).all()


def test_prediction_is_made_of_dropped_samples() -> None:
    y = noisy()
    objective = masked_prediction(y, NOISE, replace(RECIPE, masking=replace(RECIPE.masking, passes=64)))
    work = objective.finish(lambda z: z[:, :3] + z[:, 3:], y)  # a network that draws kept samples 1 too bright
    assert [next(work) for _ in range(65)] == [None] * 65
    with pytest.raises(StopIteration) as end:
        next(work)
    assert end.value.value.max() < 1.3


def test_sample_that_no_mask_drops_is_predicted_from_beside_it() -> None:
    """It kept its noise: `fast`, with 3 in a hundred of them, was 0.7 dB worse in x than its masks allow."""
    y = noisy()
    objective = masked_prediction(y, NOISE, replace(RECIPE, masking=replace(RECIPE.masking, passes=2)))
    work = objective._predict([lambda z: z[:, :3]], 0)  # a network that draws what it sees
    assert [next(work) for _ in range(2)] == [None] * 2
    with pytest.raises(StopIteration) as end:
        next(work)
    assert int((end.value.value == y).sum()) < 10  # two thirds


def test_estimated_psnr_is_near_the_true_one(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(RECIPE, options=replace(RECIPE.options, iterations=300))
    recipe = replace(recipe, masking=replace(RECIPE.masking, passes=32))
    monkeypatch.setattr(masked, "LEARNED", 0.1)  # so small a network learns little of the noise
    monkeypatch.setattr(masked.MaskedPrediction, "_rounds", 0)  # the estimate is that of x
    made_of = []
    monkeypatch.setattr(Finishing, "_consolidate", lambda self, fit, picture, *more: made_of.append(picture))
    run = made(recipe=recipe, y=noisy(96, 96))
    run.run()
    true = -10 * float((made_of[0] - clean(96, 96)).square().mean().log10())
    assert true > 20 + 6  # dB; the noisy picture has 20
    assert run.objective.estimated_psnr == pytest.approx(true, abs=0.5)
    estimated = run.history()["estimated_psnr"]
    assert len(estimated) == 300
    assert estimated[-1] > estimated[20] + 3


# --- whole fits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["fused", "plain"])
@pytest.mark.parametrize("stop", ["step 17", "pass 4", "consolidation 2"])
@pytest.mark.parametrize("between", [None, 7])
def test_resumed_bit_for_bit(engine: str, stop: str, between: int | None, tmp_path) -> None:
    recipe = LEARNING if "consolidation" in stop else RECIPE
    whole = made(engine, recipe)
    whole.run()
    expected = whole.result()

    def interrupt(run: Fit) -> None:
        kind, number = stop.split()
        if {"step": run.steps, "pass": run.passes, "consolidation": run.consolidated}[kind] >= int(number):
            run.interrupt()

    first = made(engine, recipe, between=between)
    first.run([interrupt])
    assert first.interrupted
    (tmp_path / "checkpoint").write_bytes(checkpoints.dump(first, "run"))
    second = made(engine, recipe, between=between)
    checkpoints.load(tmp_path / "checkpoint", second, "run")
    second.run()
    result = second.result()
    np.testing.assert_array_equal(result.image, expected.image)
    for name, values in expected.history.items():
        np.testing.assert_array_equal(result.history[name], values, err_msg=name)
    assert result.estimated_psnr == expected.estimated_psnr


@pytest.fixture
def three_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 steps are those of 3 networks: 14, 14 and 12; states are kept in each of them."""
    monkeypatch.setattr(loop, "KEEP_EVERY", 8)
    monkeypatch.setattr(start, "STEPS_A_PIXEL", 0.0)
    monkeypatch.setattr(start, "FEWEST_STEPS", 13)


@pytest.mark.usefixtures("three_networks")
def test_each_of_several_networks_has_weights_and_learning_rates_of_its_own() -> None:
    run, firsts = made(), []
    name, weight = next(iter(run.problem.network.named_parameters()))
    for _ in range(3):
        firsts.append(weight.detach().clone())
        steps = run.steps
        while len(run.fitted) == len(firsts) - 1 and not run.stop_reason:
            run.step()
        rates = run.history()["learning_rate"][steps:]
        assert rates[0] == pytest.approx(0.02 / 5)
        assert rates.argmax() == 4
        assert rates[11] < 0.02 / 5
    assert run.steps == 40
    assert not torch.equal(firsts[0], firsts[1])
    assert not torch.equal(firsts[1], firsts[2])
    assert len(run.fitted) == 2
    assert not torch.equal(run.fitted[0][name], run.fitted[1][name])


@pytest.mark.usefixtures("three_networks")
def test_prediction_is_the_mean_of_all_networks() -> None:
    run = made(recipe=replace(RECIPE, masking=replace(RECIPE.masking, passes=24)))
    while not run.stop_reason:
        run.step()
    drawn: list[int] = []
    work = run.objective.finish(lambda z, network: drawn.append(network) or z[:, :3], noisy())  # type: ignore[func-returns-value]
    for _ in work:
        pass
    assert [network for network, _ in groupby(drawn)] == [0, 1, 2]  # eight passes each


@pytest.mark.usefixtures("three_networks")
@pytest.mark.parametrize("stop", [5, 14, 17, 28, 39])
def test_several_networks_are_resumed_bit_for_bit(stop: int, tmp_path) -> None:
    whole = made("fused")
    whole.run()
    expected = whole.result()
    first = made("fused")
    first.run([lambda run: run.interrupt() if run.steps == stop else None])
    (tmp_path / "checkpoint").write_bytes(checkpoints.dump(first, "run"))
    second = made("fused")
    checkpoints.load(tmp_path / "checkpoint", second, "run")
    second.run()
    np.testing.assert_array_equal(second.result().image, expected.image)


@pytest.mark.usefixtures("three_networks")
def test_interrupted_fit_draws_with_the_last_network_that_is_fitted() -> None:
    run = made()
    while run.steps < 20:
        run.step()
    assert run.answer() is run.fitted[0]


def test_same_bits_for_any_number_of_threads() -> None:
    images = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        run = made("fused", y=noisy(70, 90))
        run.run()
        images.append(run.result().image)
    torch.set_num_threads(2)
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])


@pytest.mark.parametrize("channels", [1, 3])
def test_answer_is_one_network_at_one_input(channels: int, tmp_path) -> None:
    y = noisy(channels=channels)
    result = fit(masked_prediction(y, NOISE, RECIPE, seed=3), RECIPE, seed=3)
    assert result.image.shape == (37, 45, channels)
    assert [part.codes.dtype for part in result.z.parts] == [torch.uint16, torch.uint8]
    for suffix, trust in ((".onnx", False), (".pt", True), (".pt2", True)):
        path = dip_fast.export(result, tmp_path / f"model{suffix}")
        drawn = dip_fast.replay(path, trust=trust)
        assert np.abs(drawn - result.image).max() < 2e-5


@pytest.mark.parametrize("pictures", [1, 2])
@pytest.mark.parametrize("large", [False, True])
def test_answer_is_the_picture_that_was_made(monkeypatch, large: bool, pictures: int) -> None:
    """With noise of 2 of 255 it was drawn 0.9 dB worse, so that less was left than in the noisy picture."""
    monkeypatch.setattr(objectives, "LARGEST_WHOLE", 60 * 70 - 1 if large else 10**6)
    made_of = []
    drawing = MaskedPrediction.drawing
    monkeypatch.setattr(MaskedPrediction, "drawing", lambda self, x: made_of.append(x) or drawing(self, x))
    run = made(y=torch.cat([noisy(60, 70)] * pictures))
    run.run()
    image = run.result(0 if pictures > 1 else None).image
    distance = image - made_of[0].clamp(0, 1)[0].permute(1, 2, 0).numpy()
    assert np.sqrt(np.mean(distance**2)) < 2 / 65535


def test_network_of_the_answer_corrects_in_proportion() -> None:
    """Where hardly anything is left of it, too: nothing else of the network has changed."""
    run = made()
    run.run()
    z = run.z.tensor()
    whole, part = (
        run.problem.draw(z, weights, (37, 45)) - z[:, :3]
        for weights in (run.averages(), run.network.lessened(run.averages(), 0.1))
    )
    assert float((part - 0.1 * whole).abs().max()) < 0.002 < 0.02 < float(whole.abs().max())


def test_interrupted_fit_has_an_answer_and_goes_on_as_if_nothing_was() -> None:
    y, recipe = noisy(96, 96), replace(RECIPE, options=replace(RECIPE.options, iterations=200))
    whole = made(recipe=recipe, y=y)
    whole.run()
    run = made(recipe=recipe, y=y)
    run.run([lambda fit: fit.interrupt() if fit.steps == 150 else None])
    state, result = run.state(), run.result()
    assert result.stop_reason == "interrupted"
    image = torch.from_numpy(result.image).permute(2, 0, 1)[None]
    assert -10 * float((image - clean(96, 96)).square().mean().log10()) > 20 + 2  # dB; the noisy picture has 20
    again = made(recipe=recipe, y=y)
    again.load_state(state)
    again.run()
    np.testing.assert_array_equal(again.result().image, whole.result().image)


@pytest.mark.parametrize(("stop", "passes"), [("passes 3", 17), ("passes 24", 25), ("consolidated 1", 25)])
def test_fit_interrupted_near_its_end_goes_the_rest_of_its_way_in_brief(monkeypatch, stop: str, passes: int) -> None:
    """It threw a nearly finished answer away, and made one of 16 masks anew."""
    run = made(recipe=replace(LEARNING, masking=replace(RECIPE.masking, passes=24)))
    monkeypatch.setattr(MaskedPrediction, "brief", lambda *_: pytest.fail("made anew"))
    name, number = stop.split()
    run.run([lambda fit: fit.interrupt() if getattr(fit, name) == int(number) else None])
    assert (run.passes, run.consolidated) == (passes, run.consolidation_steps)
    assert run.result().stop_reason == "interrupted"
    assert np.abs(run.result().image - clean()[0].permute(1, 2, 0).numpy()).mean() < SIGMA / 2


def test_a_loss_below_the_noise_says_nothing_of_the_quality() -> None:
    """The noise of a small picture was taken for a little more than it was, and a run said "about 144.5 dB"."""
    run = made()
    assert isinstance(run.objective, MaskedPrediction)
    variance = run.objective.noise_variance
    run.rows = [(1, variance + 0.01, 0.1, np.nan, np.nan), (2, variance - 0.5, 0.1, np.nan, np.nan)]
    assert run.estimated_psnr(1) == pytest.approx(20)
    assert run.estimated_psnr() is None
    np.testing.assert_allclose(run.history()["estimated_psnr"], [20, np.nan])


def test_iterate_is_a_picture_without_noise() -> None:
    """It was the image of the noisy picture without holes, which the network has never seen: noisier than the input."""
    run = made(recipe=replace(RECIPE, options=replace(RECIPE.options, iterations=200)), y=noisy(96, 96))
    run.advance(50)
    assert run.iterate.shape == (1, 3, 96, 96)
    assert -10 * float((run.iterate - clean(96, 96)).square().mean().log10()) > 20 + 2  # dB; the noisy picture has 20


def test_objective_is_exported() -> None:
    assert isinstance(masked_prediction(noisy(), NOISE, RECIPE), MaskedPrediction)


def test_correlated_noise_drops_squares_of_all_channels() -> None:
    y = noisy(96, 96)
    objective = masked_prediction(y, NOISE, RECIPE, block=3, seed=3)
    kept = objective.example(torch.tensor(1)).z[0, 3:]
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(kept[0], kept[2])
    changes = (kept[0].diff(dim=1) != 0).float().mean()
    assert changes < 0.2  # 0.32 if each sample were dropped by itself
    run = prepare(objective, RECIPE, seed=3)
    run.run()
    assert run.result().image.shape == (96, 96, 3)
    assert "neighbouring" in objective.notes[0]
    assert run.result().estimated_psnr is None  # 62 dB were said of pictures of cameras with 37
    assert "estimated_psnr" not in run.history()


@pytest.mark.slow
def test_nothing_of_a_sample_leaks_into_its_own_prediction() -> None:
    """5,000 steps of the default preset: the loss on dropped samples never falls below the noise."""
    photo = np.asarray(Image.open(Path(__file__).parents[1] / "examples" / "clean.png").convert("RGB"))[64:192, 64:192]
    y = torch.from_numpy(photo / 255 + np.random.default_rng(0).normal(0, SIGMA, photo.shape)).float()
    recipe = PRESETS["default"].recipe.with_(iterations=5000)
    run = prepare(masked_prediction(y.permute(2, 0, 1)[None], NOISE, recipe, seed=3), recipe, seed=3)
    while not run.stop_reason:
        run.advance(run.options.iterations)
    losses = run.history()["loss"].reshape(-1, 100).mean(1)
    sampling = (2 / y.numel()) ** 0.5  # of the variance of so many samples
    assert losses.min() > SIGMA**2 * (1 - 3 * sampling)
