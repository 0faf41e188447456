"""The loop and its parts: input, degradations, averages, stopping, states, trouble."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fit_cases import TINY, averages, number, quiet_at_step_8, target, tiny
from torch import Tensor

from dip_fast.fitting import deep_image_prior, fit, masked_prediction, prepare
from dip_fast.fitting.averaging import weight_of_newest
from dip_fast.fitting.degradations import Identity, Mask, Operator
from dip_fast.fitting.finishing import consolidation_rate
from dip_fast.fitting.noise_model import NoiseModel
from dip_fast.fitting.stopping import ALPHA, IGNORED_STEPS, MovingVariance, Variance
from dip_fast.presets import PRESETS, FitOptions

# --- degradations ------------------------------------------------------------------------------------------------


def test_identity_compares_every_value() -> None:
    y, x = target(seed=1), target(seed=2)
    assert Identity(y).data_term(x).item() == pytest.approx(((x - y) ** 2).mean().item(), rel=1e-6)


def test_mask_compares_known_pixels_only_and_puts_them_back() -> None:
    y, x = target(seed=1), target(seed=2)
    known = torch.rand(1, 1, 17, 21, generator=torch.Generator().manual_seed(3)) < 0.4
    degradation = Mask(y, known)
    expected = ((x - y) ** 2)[known.expand_as(x)].mean().item()
    assert degradation.data_term(x).item() == pytest.approx(expected, rel=1e-6)
    result = degradation.composite(x)
    assert torch.equal(result[known.expand_as(x)], y[known.expand_as(x)])
    assert torch.equal(result[~known.expand_as(x)], x[~known.expand_as(x)])
    assert Mask(y, known, composite=False).composite(x) is x
    x.requires_grad_()
    degradation.data_term(x).backward()
    assert not x.grad[~known.expand_as(x)].any()


def test_operator_of_the_user_is_fitted_through() -> None:
    def halve(x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, 2)

    y = halve(target(32, 24))
    result = fit(Operator(halve, y, (32, 24)), tiny(iterations=2, consolidation=0))
    assert result.image.shape == (32, 24, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Identity(torch.zeros(3, 16, 16)), r"target must be \(1, C, H, W\), got \(3, 16, 16\)"),
        (lambda: Mask(target(), torch.ones(1, 1, 17, 20, dtype=torch.bool)), r"known must be bool \(1, 1, 17, 21\)"),
        (lambda: Mask(target(), torch.zeros(1, 1, 17, 21, dtype=torch.bool)), "at least one known pixel"),
    ],
)
def test_wrong_degradations_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


# --- averages and stopping ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_targets_of_other_floats_are_fitted_as_float32(dtype: torch.dtype) -> None:
    """A float64 target gave a float64 image, a bfloat16 one an error after the last step."""
    y = target(16, 18).to(dtype)
    known = torch.rand(1, 1, 16, 18, generator=torch.Generator().manual_seed(0)) < 0.5
    for degradation in (Identity(y), Mask(y, known), Operator(torch.nn.AvgPool2d(2), y, (32, 36))):
        assert degradation.target.dtype == torch.float32
    recipe = tiny(iterations=2)
    result = fit(Mask(y, known), recipe)
    assert result.image.dtype == np.float32
    np.testing.assert_array_equal(result.image, fit(Mask(y.float(), known), recipe).image)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_targets_of_integers_are_refused_at_once(dtype: torch.dtype) -> None:
    """Their range is nowhere stated, and a network draws from 0 to 1."""
    y = torch.ones(1, 1, 16, 18, dtype=dtype)
    with pytest.raises(TypeError, match=rf"target must hold floats from 0 to 1, got {dtype}; divide it by"):
        Identity(y)
    recipe = PRESETS["fast"].recipe
    with pytest.raises(TypeError, match=rf"y must hold floats from 0 to 1, got {dtype}; divide it by"):
        masked_prediction(y, NoiseModel(0.01, 0.0), recipe)


def test_targets_of_the_masked_objective_may_be_of_any_floats() -> None:
    y = torch.rand(1, 1, 16, 18, generator=torch.Generator().manual_seed(0))
    recipe = PRESETS["fast"].recipe
    for dtype in (torch.float64, torch.float16):
        objective = masked_prediction(y.to(dtype), NoiseModel(0.01, 0.0), recipe)
        example = objective.example(torch.zeros((), dtype=torch.int64))
        assert all(value.dtype == torch.float32 for value in example if isinstance(value, Tensor))


def test_weights_of_the_average() -> None:
    weights = [weight_of_newest(0.8, 5, t) for t in (1, 2, 5, 20, 21, 1000)]
    assert weights == pytest.approx([1, 5 / 7, 1 / 2, 1 / 5, 1 / 5, 1 / 5])


def test_averages_follow_their_formula() -> None:
    run = prepare(Identity(target()), tiny(averaging=0.8, averaging_window=5))
    expected: list[Tensor] = []
    for t in range(1, 26):
        run.step()
        newest = [value.detach().double() for value in (*run.network.parameters(), run.iterate)]
        share = 1 - min(0.8, t / (t + 5))
        expected = newest if t == 1 else [a + share * (b - a) for a, b in zip(expected, newest, strict=True)]
        for mine, average in zip(averages(run), expected, strict=True):
            torch.testing.assert_close(mine.double(), average, rtol=0, atol=1e-6)


def test_variance_follows_its_recurrence_and_finds_its_minimum() -> None:
    generator = torch.Generator().manual_seed(4)
    iterates = [torch.rand(1, 1, 4, 5, generator=generator, dtype=torch.float64) for _ in range(IGNORED_STEPS + 100)]
    for i, x in enumerate(iterates):  # quietest about 30 steps after the ignored ones
        x.mul_(0.1 + abs(i - IGNORED_STEPS - 30) / 30)
    statistic = MovingVariance(iterates[0])
    known = Variance(*(number(value) for value in (0.0, math.nan, math.inf, 0.0)))
    mean, variance, averaged, values = iterates[0], 0.0, math.nan, {}
    for step, x in enumerate(iterates, start=1):
        alpha, share = (number(weight) for weight in MovingVariance.weights(step))
        before = statistic.mean.clone()
        statistic.update(x, number(step), (alpha, share), known, torch.tensor(False))
        assert torch.equal(statistic.mean, before)
        known = statistic.update(x, number(step), (alpha, share), known, torch.tensor(True))
        if step > 1:
            variance = (1 - ALPHA) * (variance + ALPHA * ((x - mean) ** 2).mean().item())
            mean = mean + ALPHA * (x - mean)
            share = min(0.995, step / (step + 3))
            averaged = variance if step == 2 else share * averaged + (1 - share) * variance
            assert known.value.item() == pytest.approx(averaged, rel=1e-12)
            values[step] = averaged
    late = {step: value for step, value in values.items() if step > IGNORED_STEPS}
    assert known.best_step.item() == min(late, key=late.__getitem__)
    assert known.best.item() == pytest.approx(min(late.values()), rel=1e-12)
    assert IGNORED_STEPS + 10 < known.best_step.item() < IGNORED_STEPS + 100


def test_learning_rates() -> None:
    options = FitOptions(iterations=100, learning_rate=0.02, warmup=10)
    rates = [options.learning_rate_at(step) for step in (1, 5, 10, 100)]
    assert rates == pytest.approx([0.002, 0.01, 0.02, 0.02])
    assert FitOptions(iterations=5).learning_rate_at(1) == FitOptions(iterations=5).learning_rate
    options = FitOptions(iterations=100, learning_rate=0.02, warmup=10, decay="cosine")
    rates = [options.learning_rate_at(step) for step in (1, 5, 51, 100)]
    assert rates == pytest.approx([0.002, 0.01 * (1 + math.cos(0.04 * math.pi)) / 2, 0.01, 4.93e-6], rel=1e-2)
    rates = [consolidation_rate(done, 50, 0.1) for done in (0, 4, 25, 49)]
    assert rates == pytest.approx([0.02, 0.092, 0.05, 0.002])
    assert FitOptions(iterations=100, consolidation=50).consolidation_steps == 10


# --- the noise of a picture ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_noise_is_estimated_from_known_pixels(sigma: float) -> None:
    generator = torch.Generator().manual_seed(5)
    smooth = torch.linspace(0.2, 0.8, 65).expand(1, 3, 63, 65)
    y = smooth + sigma * torch.randn(1, 3, 63, 65, generator=generator)
    assert Identity(y).noise() == pytest.approx(sigma, rel=0.1)
    known = torch.rand(1, 1, 63, 65, generator=generator) < 0.8
    assert Mask(torch.where(known, y, 5.0), known).noise() == pytest.approx(sigma, rel=0.15)
    checkered = (torch.arange(63)[:, None] + torch.arange(65)) % 2 == 0
    assert Mask(y, checkered[None, None]).noise() == 0


@pytest.mark.parametrize(("sigma", "perturbation"), [(0.0, 0.01), (0.06, 0.02), (0.3, 1 / 30)])
def test_perturbation_follows_the_noise_where_it_is_not_given(sigma: float, perturbation: float) -> None:
    y = 0.5 + sigma * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(6))
    objective = deep_image_prior(Identity(y), tiny(perturbation=None))
    assert objective.perturbation == pytest.approx(perturbation, rel=0.05)
    assert deep_image_prior(Identity(y), tiny(perturbation=0.5)).perturbation == 0.5


# --- the fit -----------------------------------------------------------------------------------------------------


def test_same_seed_same_bits_and_another_seed_others() -> None:
    first, second, other = (fit(Identity(target()), TINY, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.image, second.image)
    for name, values in first.history.items():
        np.testing.assert_array_equal(values, second.history[name])
    assert not np.array_equal(first.image, other.image)


def test_random_state_of_the_caller_is_left_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    fit(Identity(target()), tiny(iterations=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_result_is_what_its_network_draws_at_the_unperturbed_input() -> None:
    result = fit(Identity(target()), TINY)
    with torch.no_grad():
        output = result.network(result.z.tensor())
    top, left = (output.shape[2] - 17) // 2, (output.shape[3] - 21) // 2
    image = output[0, :, top : top + 17, left : left + 21].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(result.image, image)
    assert result.image.dtype == np.float32
    assert result.steps == result.best_step == 20
    assert result.stop_reason == "iterations"


def test_fit_learns() -> None:
    y = target(16, 16).mul(0.05).add(torch.linspace(0.2, 0.8, 16))
    result = fit(Identity(y), tiny(iterations=120, averaging=0.9), reference=y)
    assert result.history["loss"][-1] < 0.1 * result.history["loss"][0]
    assert result.history["psnr"][-1] > result.history["psnr"][0] + 8
    error = np.mean((result.image - y[0].permute(1, 2, 0).numpy()) ** 2)
    assert -10 * math.log10(error) > 20


def test_perturbation_is_fresh_at_each_step() -> None:
    still = fit(Identity(target()), tiny(iterations=1, perturbation=0.0))
    moved = fit(Identity(target()), tiny(iterations=1))
    assert still.history["loss"][0] != moved.history["loss"][0]
    one = prepare(Identity(target()), tiny(learning_rate=0.0, consolidation=0))
    one.run()
    assert len({row[1] for row in one.rows}) == len(one.rows)  # the weights rest, the loss does not


def test_consolidation_brings_the_network_to_the_averaged_picture() -> None:
    def distance(consolidation: int) -> float:
        run = prepare(Identity(target()), tiny(iterations=200, consolidation=consolidation, stop="never"))
        run.run()
        picture = averages(run)[-1]
        return torch.nn.functional.mse_loss(run.draw(), picture).item()

    assert distance(20) < 0.5 * distance(0)


def test_variance_stops_the_fit_and_chooses_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MovingVariance, "update", quiet_at_step_8)
    recipe = tiny(iterations=40, patience=0.25, consolidation=0)
    seen: dict[int, list[Tensor]] = {}
    run = prepare(Identity(target()), recipe)
    run.run([lambda one: seen.setdefault(one.steps, averages(one))])
    result = run.result()
    assert (result.steps, result.best_step, result.stop_reason) == (18, 8, "variance")
    for value, expected in zip(result.network.parameters(), seen[8], strict=False):
        assert torch.equal(value, expected)

    never = fit(Identity(target()), replace(recipe, options=replace(recipe.options, stop="never")))
    assert (never.steps, never.best_step, never.stop_reason) == (40, 40, "iterations")
