"""A model of the noise: its variance as a function of the true value, and what clipping makes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dip_fast import large

POINTS = 4097  # of the tables: the values between are interpolated, to 1e-5 of the deviation


@dataclass(frozen=True)
class NoiseModel:
    """Independent normal noise of variance ``a + b (x - black)`` at the true value x, cut off at the ends of the range.

    ``a`` is the variance of Gaussian noise, which is all there is below the black level; b that of Poisson noise, for a
    black level of 0 the reciprocal of the counts at x = 1.  Where noise is cut off at 0 or at 1, the samples have
    another mean than x, and less variance: at x = 1 and deviation s, a mean of ``1 - 0.4 s`` and a variance of
    ``0.34 s^2``.

    Attributes
    ----------
    a, b : float
        At least 0, in units of the range [0, 1].
    low, high : bool
        Whether samples are cut off at 0, and at 1.
    black : float
        The value that stands for no light.
    """

    a: float
    b: float = 0.0
    low: bool = False
    high: bool = False
    black: float = 0.0

    @property
    def deviation(self) -> float:
        """The standard deviation in the middle of the range, without clipping."""
        return math.sqrt(float(self._variance(torch.tensor(0.5, dtype=torch.float64))))

    def _variance(self, x: Tensor) -> Tensor:
        """Compute the variance at true values, without clipping."""
        return self.a + self.b * (x - self.black).clamp(min=0)

    def noisy(self, x: Tensor, normal: Tensor) -> Tensor:
        """Make samples of true values: with standard normal numbers for the noise, cut off as the noise is."""
        deviation = self._variance(x).sqrt() if self.b else math.sqrt(self.a)
        low, high = 0.0 if self.low else -math.inf, 1.0 if self.high else math.inf
        return (x + deviation * normal).clamp(low, high)

    def __str__(self) -> str:
        """Describe it for a user."""
        if not self.b:
            return f"noise about {255 * self.deviation:.2g} of 255"
        low, high = (255 * self._variance(torch.tensor([0.1, 0.9], dtype=torch.float64)).sqrt()).tolist()
        return f"noise about {low:.2g} of 255 in the shadows, {high:.2g} in the lights"

    @cached_property
    def _columns(self) -> dict[int, Tensor]:
        """What `_by_mean` has made."""
        return {}

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tabulate true values, and the mean and the variance of a sample at each."""
        x = torch.linspace(0.0 if self.low else -1.0, 1.0 if self.high else 2.0, POINTS, dtype=torch.float64)
        s2 = self._variance(x).clamp(min=1e-12)
        s = s2.sqrt()
        ends = []  # the distribution function and the density at both ends, and the density times the place
        for end, cut in ((0.0, self.low), (1.0, self.high)):
            t = (end - x) / s if cut else torch.full_like(x, math.copysign(math.inf, end - 0.5))
            density = torch.exp(-t * t / 2) / math.sqrt(2 * math.pi)
            ends.append((torch.special.ndtr(t), density, torch.where(density > 0, t * density, 0.0)))
        (below, low, t_low), (within, high, t_high) = ends
        # The moments of a normal variable that is cut off at 0 and at 1.
        mean = 1 - within + x * (within - below) - s * (high - low)
        square = 1 - within + (x * x + s2) * (within - below) - s2 * (t_high - t_low) - 2 * x * s * (high - low)
        return x, mean, (square - mean * mean).clamp(min=0)

    def variance_at_mean(self, mean: Tensor) -> Tensor:
        """Compute the variance of samples whose mean, after clipping, is known."""
        return self._look_up(mean, 2)

    def variances(self, device: torch.device) -> tuple[Tensor, float, float]:
        """Tabulate `variance_at_mean` in float64, at equal steps of the mean, and return the first and last mean."""
        if not (self.b or self.low or self.high):
            return torch.full((2,), self.a, dtype=torch.float64, device=device), 0.0, 1.0
        low, high = self._ends
        return self._by_mean(2).to(device), low, high

    def value_at_mean(self, mean: Tensor) -> Tensor:
        """Compute the true value of samples whose mean, after clipping, is known."""
        return self._look_up(mean, 0) if self.low or self.high else mean

    def slope_at_mean(self, mean: Tensor) -> Tensor:
        """Compute by how much the true value changes with the mean of samples that are cut off."""
        step = 1e-3
        return (self.value_at_mean(mean + step) - self.value_at_mean(mean - step)) / (2 * step)

    @property
    def _ends(self) -> tuple[float, float]:
        """The first and the last mean of the table."""
        low, high = self._tables[1][[0, -1]].tolist()
        return low, high

    def _by_mean(self, column: int) -> Tensor:
        """Interpolate a column of the table at equal steps of the mean, where it can be looked up without a search."""
        if column not in self._columns:
            means, values = self._tables[1], self._tables[column]
            at = torch.linspace(*self._ends, 4 * POINTS, dtype=torch.float64)
            right = torch.searchsorted(means, at).clamp(1, len(means) - 1)
            left = right - 1
            part = (at - means[left]) / (means[right] - means[left]).clamp(min=1e-12)
            self._columns[column] = torch.lerp(values[left], values[right], part.clamp(0, 1))
        return self._columns[column]

    def _look_up(self, mean: Tensor, column: int) -> Tensor:
        """Interpolate a column of the table at means; beyond its ends it has the values at its ends."""
        values, (low, high) = self._by_mean(column).to(mean), self._ends
        place = ((mean - low) * ((len(values) - 1) / (high - low))).clamp(0, len(values) - 1)
        left = place.long().clamp(max=len(values) - 2)
        return torch.lerp(values[left], values[left + 1], place - left)


def cut_off(y: Tensor, deviation: float) -> tuple[bool, bool]:
    """Find whether the noise of a picture was cut off at 0, and at 1.

    Samples pile up there then: more lie at the end itself than within a quarter of the deviation beside it.

    Parameters
    ----------
    y : Tensor
        The noisy picture.
    deviation : float
        Of its noise.
    """
    near = deviation / 4

    def piled(end: float, inward: int) -> bool:
        at, beside, samples = 0, 0, y.flatten()
        for place in large.bands(samples.shape):
            distance = inward * (samples[place] - end)
            if bool((distance < 0).any()):
                return False
            at += int((distance == 0).sum())
            beside += int(((distance > 0) & (distance <= near)).sum())
        return at > max(16, beside)

    return piled(0.0, 1), piled(1.0, -1)
