"""What the tests of `test_stepping` and its siblings share."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dip_fast.fitting import DeepImagePrior, Example, Fit, Objective, deep_image_prior, prepare
from dip_fast.fitting.degradations import Degradation, Identity
from dip_fast.fitting.results import Result
from dip_fast.fitting.stopping import MovingVariance, Variance
from dip_fast.presets import FitOptions, Recipe

OPTIONS = FitOptions(iterations=130, consolidation=7, warmup=20)


RECIPE = Recipe("skip", {"down": 4, "up": 4, "skip": 2, "scales": 2, "upsampling": "nearest"}, 2, "uniform", OPTIONS)


LENGTHS = [1, 7, 50]  # of the steps between two syncs


def target(seed: int = 0) -> Tensor:
    noise = torch.rand(1, 3, 17, 13, generator=torch.Generator().manual_seed(seed))
    return 0.2 * noise + torch.linspace(0.2, 0.6, 13)


class Tripped(DeepImagePrior):
    """Multiplies the losses of some steps, the first time that they are made, without a read on the host."""

    def arm(self, faults: dict[int, float]) -> None:
        self.at = torch.tensor(list(faults), dtype=torch.int64)
        self.factors = torch.tensor(list(faults.values()))
        self.armed = torch.ones(len(faults), dtype=torch.bool)

    def example(self, step: Tensor) -> Example:
        return super().example(step)._replace(target=step)

    def loss(self, x: Tensor, example: Example) -> Tensor:
        trips = self.armed & (self.at == example.target)
        self.armed &= ~trips
        return super().loss(x, example) * torch.where(trips, self.factors, 1.0).prod()


def tripped(faults: dict[int, float], **options: Any) -> Fit:
    prior = deep_image_prior(Identity(target()), RECIPE, seed=3)
    objective = Tripped(prior.degradation, prior.z, perturbation=prior.perturbation, seed=prior.seed)
    objective.arm(faults)
    return make(target_=objective, **options)


def make(
    recipe: Recipe = RECIPE,
    target_: Degradation | Objective | None = None,
    engine: str = "auto",
    between: int | None = None,
) -> Fit:
    """Prepare a fit that makes so many steps between two syncs, as a GPU does."""
    return prepare(
        target_ or Identity(target()),
        recipe,
        seed=3,
        engine=engine,
        reference=target(1),
        steps_between_syncs=between,
    )


def quiet_at_step_83(monkeypatch: pytest.MonkeyPatch) -> None:
    """And quieter at the step after the last one, at which the fit is held."""
    original = MovingVariance.update

    def update(
        self: MovingVariance, iterate: Tensor, step: Tensor, weights: Any, known: Variance, takes: Tensor
    ) -> Any:
        after = original(self, iterate, step, weights, known, takes)
        value = torch.where(step == 104, 0.0, (step - 83).abs() + 1)
        better = value < known.best
        best, best_step = torch.where(better, value, known.best), torch.where(better, step, known.best_step)
        return Variance(after.variance, value, best, best_step)

    monkeypatch.setattr(MovingVariance, "update", update)


def whenever(fit: Fit) -> None:
    """Callback that wants to look at no step in particular."""


whenever.every = 0  # type: ignore[attr-defined]


def same(mine: Result, theirs: Result) -> None:
    """Compare all bits."""
    np.testing.assert_array_equal(mine.image, theirs.image)
    for name, values in theirs.history.items():
        np.testing.assert_array_equal(mine.history[name], values, err_msg=name)
    for a, b in zip(mine.network.parameters(), theirs.network.parameters(), strict=True):
        assert torch.equal(a, b)
    for name in ("steps", "best_step", "stop_reason", "events"):
        assert getattr(mine, name) == getattr(theirs, name), name


def finished(fit: Fit) -> Result:
    fit.run([whenever])
    return fit.result()
