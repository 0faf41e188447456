"""Losses that compare what an operator made with what was measured, by name; sums do not depend on threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dip_fast.fitting.reductions import mean_square, total

LEAST_RATE = 1e-6  # of the mean of y: what A(x) counts as where it is less, so that its logarithm is finite


def squares(made: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
    """Mean squared error of each entry, summed: Gaussian noise."""
    return torch.stack([mean_square(m, t).float() for m, t in zip(made, y, strict=True)]).sum()


def absolute(made: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
    """Mean absolute error of each entry in units of the mean magnitude of y, summed: outliers."""
    errors = torch.stack([total((m - t).abs()).float() / t.numel() for m, t in zip(made, y, strict=True)])
    return errors.sum() / _mean_magnitude(y)


def poisson(made: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
    """Deviance of counts, ``2 (m - y + y log(y / m))``, in units of the mean of y: the likelihood, least at 0.

    y may be counts times any gain, which changes nothing.
    """
    level = _mean_magnitude(y)
    terms = []
    for m, t in zip(made, y, strict=True):
        rate = m / level
        # Below the least rate a line goes on, so that there is a gradient that leads back.
        safe = rate.clamp(min=LEAST_RATE)
        count = t / level
        deviance = safe - count + torch.xlogy(count, count) - count * safe.log()
        terms.append(2 * total(deviance + (rate - safe).abs()).float() / t.numel())
    return torch.stack(terms).sum()


def _mean_magnitude(y: Sequence[Tensor]) -> Tensor:
    magnitude = torch.stack([total(t.abs()) / t.numel() for t in y]).mean()
    return torch.where(magnitude > 0, magnitude, 1.0)


LOSSES: dict[str, Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]] = {
    "squares": squares,
    "absolute": absolute,
    "poisson": poisson,
}
