"""What the parts of a fit cost, in units of one of its steps: how much is done, and how long the rest will take."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from dip_fast.networks.layers import Network

if TYPE_CHECKING:
    from dip_fast.fitting.loop import Fit

# Measured at 192x192 on a CPU: presets default, quick and paper draw in 0.29 to 0.32 of the time of a step, and a pixel
# of the patches of a picture in RGB takes 1.4 times as long as one of a step of default, of a gray one 0.9 times.
DRAWING = 0.31
ALIKE, ALIKE_CHANNELS = 1.5, 3
# Steps of paper, with twelve times the parameters of default, take 5.5 times as long; those of quick 0.73 times.
PARAMETERS, POWER = 181e3, 2 / 3


class Part(NamedTuple):
    """Steps, or passes of one kind, or steps of consolidation: how many are done, of how many, at what cost each."""

    done: int
    total: int
    cost: float


def parts(fit: Fit) -> list[Part]:
    """List the parts of a fit, in order."""
    objective, passes = fit.objective, fit.passes
    steps = fit.steps if fit.stop_reason else fit.options.iterations
    weight, pixels = _weight(fit.network), math.prod(objective.step_size)
    found = [Part(fit.steps, steps, 1.0)]
    for kind in objective.kinds_of_passes:
        done = min(passes, kind.number)
        passes -= done
        alike = ALIKE * kind.alike * (1 + objective.channels) / (1 + ALIKE_CHANNELS)
        found.append(Part(done, kind.number, (DRAWING * kind.drawn + alike / weight) / pixels))
    return [*found, Part(fit.consolidated, fit.consolidation_steps, math.prod(objective.drawing_size) / pixels)]


def _weight(network: Network) -> float:
    """Estimate the cost of a step with a network beside that of preset default, for as many pixels."""
    return max(sum(parameter.numel() for parameter in network.parameters()) / PARAMETERS, 1e-3) ** POWER


class Forecast:
    """Foretells how long a fit will go on, from what its parts cost and how long those took that are done.

    Parameters
    ----------
    fit : Fit
        Before its first step, or resumed.
    now : float
        The time, in seconds.

    Attributes
    ----------
    fraction : float
        Of the whole cost, what is done.
    seconds_left : float or None
        None before anything is done.
    """

    def __init__(self, fit: Fit, now: float) -> None:
        self._at = -1
        self._begun, self._before = now, math.inf  # what was done when the forecast began says nothing of the time
        self._before = self.update(fit, now)

    def update(self, fit: Fit, now: float) -> float:
        """Take in what is done now, and return its cost.

        A unit of cost takes what it took on average.  In the present part it takes what it took there, with the average
        as one more step or pass.
        """
        found = parts(fit)
        at = max((number for number, part in enumerate(found) if part.done), default=0)
        # A part that another one has followed is over, also where an interrupt has cut it short.
        costs = [part.cost * (part.total if number < at else part.done) for number, part in enumerate(found)]
        done, whole = sum(costs), sum(part.total * part.cost for part in found)
        if at != self._at:
            self._at, self._part_begun, self._part_before = at, now, costs[at]
        self.fraction = done / whole
        self.seconds_left: float | None = None
        if done > self._before:
            mean, part = (now - self._begun) / (done - self._before), found[at]
            here = part.cost * (part.total - part.done)
            own = (mean * part.cost + now - self._part_begun) / (part.cost + costs[at] - self._part_before or 1.0)
            self.seconds_left = own * here + mean * (whole - done - here)
        return done
