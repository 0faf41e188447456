"""What follows the steps of a fit: the objective's picture, and one network that draws it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dip_fast import networks
from dip_fast.device.precision import products
from dip_fast.fitting.callbacks import call_those_due
from dip_fast.fitting.objectives import Polish
from dip_fast.fitting.steps import PICTURE, PolishSteps
from dip_fast.networks import frozen
from dip_fast.networks.network_input import NetworkInput

if TYPE_CHECKING:
    from dip_fast.fitting.loop import Fit

BRIEF_PASSES, BRIEF_STEPS, BRIEF_RATE = 16, 40, 0.01  # for an interrupted fit, whose network draws no answer yet


class Finishing:
    """The way from the weights that the steps have left to the answer.

    An average of weights draws a somewhat worse picture than the average of the iterates' pictures, or than what an
    objective without iterates makes of many drawings (`Objective.finish`).  So a few dozen steps of *consolidation* fit
    the network, at the fixed input, to that picture: one network that draws it.  docs/notes/2026-11-presets.md has the
    figures.  A large picture (`Objective.is_large`) is not drawn at once; its network is frozen in place of that.

    All of it starts from the averages alone, so what was interrupted is made anew when the fit is resumed.

    Attributes
    ----------
    passes, polish_steps : int
        Passes of the objective's estimate, and steps of `Polish` and consolidation, that are done.
    weights : dict of str to Tensor
        The weights that were fitted further, by name; empty before.
    pictures : Tensor or None
        What the objective made, where it has several pictures.
    frozen : Network or None
        What draws a large picture.
    """

    def __init__(self) -> None:
        self.passes = 0
        self.polish_steps = 0
        self.weights: dict[str, Tensor] = {}
        self.pictures: Tensor | None = None
        self.frozen: networks.Network | None = None

    def run(self, fit: Fit, callbacks: Sequence[Callable[[Fit], None]]) -> None:
        """Let the objective make its picture, and the network draw it.

        Several pictures are the answer as they are, since the network has one fixed input.
        """
        work = fit.objective.finish(partial(self.image, fit), fit.averages()[PICTURE])
        while not fit.interrupted:
            started = time.perf_counter()
            try:
                with fit.at_work():
                    polish = next(work)
            except StopIteration as end:
                if fit.objective.pictures > 1:
                    self.pictures = end.value
                if fit.consolidation_steps:
                    drawing, rate = fit.objective.drawing(end.value), fit.options.consolidation_learning_rate
                    self._polish(fit, Polish(drawing, fit.consolidation_steps, rate), callbacks)
                self._freeze(fit)
                return
            fit.count_time(time.perf_counter() - started)
            if polish is not None:
                self._polish(fit, polish, callbacks)
                continue
            self.passes += 1
            call_those_due(callbacks, fit, self.passes)

    def has_answer(self, fit: Fit) -> bool:
        """Whether the weights draw a picture at the fixed input, which those of steps without iterates do not."""
        if fit.objective.draws_iterates:
            return True
        return self.frozen is not None if fit.objective.is_large else bool(self.weights)

    def in_brief(self, fit: Fit) -> None:
        """Make an answer in seconds, for a fit without iterates that was interrupted."""
        if not self.weights:
            with fit.at_work():
                picture = fit.objective.brief(partial(self.image, fit), BRIEF_PASSES)
            self._polish(fit, Polish(fit.objective.drawing(picture), BRIEF_STEPS, BRIEF_RATE))
        self._freeze(fit)

    def draw(self, fit: Fit, z: NetworkInput) -> Tensor:
        """Draw the answer so far at a network input, in float32: ``(1, C, H, W)``."""
        if self.frozen is not None:
            return frozen.draw(self.frozen, z, fit.objective.size).to(fit.device)
        problem = replace(fit.problem, precision="fp32")
        with torch.no_grad(), products("fp32", fit.device):
            return problem.draw(z.tensor(fit.device), fit.answer())

    @torch.no_grad()
    def image(self, fit: Fit, z: Tensor, network: int | None = None) -> Tensor:
        """Draw the image of a network input of any size, as a step does.

        With the weights of the answer so far, or with those of one of the networks that were fitted.
        """
        weights = fit.answer() if network is None or network == len(fit.fitted) else fit.fitted[network]
        return fit.problem.draw(z, weights, (z.shape[2], z.shape[3]))

    def _freeze(self, fit: Fit) -> None:
        """Freeze the network of a large picture."""
        if fit.objective.is_large:
            with fit.at_work():
                self.frozen = frozen.freeze(fit.network, fit.answer(), fit.objective.windows())

    def _polish(self, fit: Fit, polish: Polish, callbacks: Sequence[Callable[[Fit], None]] | None = None) -> None:
        """Fit the weights to something else; if that is interrupted, they stay as they were.

        Without callbacks nothing interrupts it.
        """
        problem = replace(fit.problem, objective=polish.objective.to(fit.device))
        steps = PolishSteps(problem, fit.answer(), fit.options)
        first, done = self.polish_steps, 0
        while done < polish.steps and not (fit.interrupted and callbacks is not None):
            started = time.perf_counter()
            numbers = range(done + 1, done + 1 + fit.steps_until_sync(callbacks or (), done, polish.steps))
            with fit.at_work():
                steps.make([(polish.rate_at(step),) for step in numbers])
                if fit.device.type == "cuda":
                    torch.cuda.synchronize(fit.device)
            done += len(numbers)
            self.polish_steps = first + done
            fit.count_time(time.perf_counter() - started, len(numbers))
            call_those_due(callbacks or (), fit, done)
        if done == polish.steps:
            self.weights = steps.weights
