"""What the tests of `test_fitting` and its siblings share."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dip_fast import Identity
from dip_fast.fitting import Fit, fit
from dip_fast.fitting.stopping import MovingVariance, Variance
from dip_fast.presets import FitOptions, Recipe

OPTIONS = FitOptions(iterations=20, consolidation=2)


TINY = Recipe("skip", {"down": 8, "up": 8, "skip": 2, "scales": 2, "upsampling": "nearest"}, 4, "uniform", OPTIONS)


def target(height: int = 17, width: int = 21, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(seed))


def tiny_image() -> np.ndarray:
    """Fit here or in a process of its own: spawned processes can import this file, and no file of tests."""
    return fit(Identity(target()), TINY).image


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def averages(run: Fit) -> list[Tensor]:
    """Copies of the averages of weights and iterates."""
    return [value.clone() for value in run._steps.averages().values()]


def tiny(**options: object) -> Recipe:
    return replace(TINY, options=replace(OPTIONS, **options))  # type: ignore[arg-type]


def quiet_at_step_8(
    self: MovingVariance, iterate: Tensor, step: Tensor, weights: object, known: Variance, takes: Tensor
) -> Variance:
    value = (step - 8).abs() + 1.0
    better = value < known.best
    best, best_step = torch.where(better, value, known.best), torch.where(better, step, known.best_step)
    return Variance(known.variance, value, best, best_step)
