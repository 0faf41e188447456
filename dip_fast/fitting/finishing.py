"""What follows the steps of a fit: the objective's picture, and one network that draws it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dip_fast import large, networks
from dip_fast.device.precision import products
from dip_fast.fitting import redrawing
from dip_fast.fitting.callbacks import call_those_due
from dip_fast.fitting.steps import PICTURE, FurtherSteps
from dip_fast.networks import frozen
from dip_fast.networks.network_input import NetworkInput

if TYPE_CHECKING:
    from dip_fast.fitting.loop import Fit

BRIEF_PASSES, BRIEF_STEPS = 16, 20  # at most, for what an interrupted fit still has to do for its answer


class Finishing:
    """The way from the weights that the steps have left to the answer.

    An average of weights draws a somewhat worse picture than the average of the iterates' pictures.  So a few dozen
    steps of *consolidation* fit the network, at a fixed input, to that picture: one network that draws it.  A network
    that is shown the picture which it is to draw (`Objective.shows_answer`), and corrects what it is shown, needs none:
    its correction is lessened until it draws the picture.  docs/notes/2026-11-presets.md and docs/notes/masked.md have
    the figures.  A large picture (`Objective.is_large`) is not drawn at once, and by a network that is frozen.

    All of it starts from the averages alone, so what was interrupted is made anew when the fit is resumed.

    Attributes
    ----------
    passes, consolidated : int
        Passes of the objective's estimate, and steps of consolidation, that are done.
    weights : dict of str to Tensor
        The consolidated weights, by name; empty before.
    z : NetworkInput or None
        The fixed input that the answer is drawn from; None before.
    pictures : Tensor or None
        What the objective made, where it has several pictures.
    frozen : Network or None
        What draws a large picture.
    network : Network or None
        What the weights are of, where the objective has one that draws the answer.
    """

    def __init__(self) -> None:
        self.passes = 0
        self.consolidated = 0
        self.weights: dict[str, Tensor] = {}
        self.z: NetworkInput | None = None
        self.pictures: Tensor | None = None
        self.frozen: networks.Network | None = None
        self.network: networks.Network | None = None

    def run(self, fit: Fit, callbacks: Sequence[Callable[[Fit], None]]) -> None:
        """Let the objective make its picture, and the network draw it.

        Several pictures are the answer as they are, since the network has one fixed input.  Where there are no iterates
        an interrupted fit has no answer but the end of this way, so it takes the shortest one from where it is.
        """
        work, enough = fit.objective.finish(partial(self.image, fit), fit.averages()[PICTURE]), None
        while not (fit.interrupted and fit.objective.draws_iterates):
            started = time.perf_counter()
            try:
                with fit.at_work():
                    work.send(enough)
            except StopIteration as end:
                self._consolidate(fit, end.value, steps_to_learn(fit), callbacks)
                return
            fit.count_time(time.perf_counter() - started)
            self.passes += 1
            call_those_due(callbacks, fit, self.passes)
            enough = BRIEF_PASSES if fit.interrupted else None

    def redraw(self, fit: Fit, n: int) -> None:
        """Let the network draw one of several pictures, from the weights that the steps have left."""
        assert self.pictures is not None, "there are several, and they are made"
        self.weights, self.z, self.frozen = {}, None, None
        self._teach(fit, self.pictures[n : n + 1], steps_to_learn(fit))

    def has_answer(self, fit: Fit) -> bool:
        """Whether the weights draw a picture at the fixed input, which those of steps without iterates do not."""
        return fit.objective.draws_iterates or self.z is not None or self.pictures is not None

    def in_brief(self, fit: Fit) -> None:
        """Make an answer in seconds, for a fit without iterates that was interrupted in its steps."""
        with fit.at_work():
            draw = partial(self.image, fit)
            pictures = [fit.objective.brief(draw, BRIEF_PASSES, n) for n in range(fit.objective.pictures)]
        self._consolidate(fit, large.joined(pictures), min(BRIEF_STEPS, steps_to_learn(fit)))

    def draw(self, fit: Fit, z: NetworkInput) -> Tensor:
        """Draw the answer so far at a network input, in float32: ``(1, C, H, W)``."""
        if self.frozen is not None:
            return frozen.draw(self.frozen, z, fit.objective.size).to(fit.device)
        problem = replace(fit.problem, network=self.network or fit.network, precision="fp32")
        with torch.no_grad(), products("fp32", fit.device):
            return problem.draw(z.tensor(fit.device), fit.answer())

    @torch.no_grad()
    def image(self, fit: Fit, z: Tensor, network: int | None = None) -> Tensor:
        """Draw the image of a network input of any size, as a step does.

        With the weights of the answer so far, or with those of one of the networks that were fitted.
        """
        weights = fit.answer() if network is None or network == len(fit.fitted) else fit.fitted[network]
        return fit.problem.draw(z, weights, (z.shape[2], z.shape[3]))

    def _consolidate(
        self, fit: Fit, pictures: Tensor, steps: int, callbacks: Sequence[Callable[[Fit], None]] = ()
    ) -> None:
        """Let the network draw the picture, if there is one; several are the answer as they are."""
        if fit.objective.pictures > 1:
            self.pictures = pictures
            return
        self._teach(fit, pictures, steps, callbacks)

    def _teach(self, fit: Fit, picture: Tensor, steps: int, callbacks: Sequence[Callable[[Fit], None]] = ()) -> None:
        """Let the network of the answer draw a picture."""
        drawing, self.consolidated = fit.objective.drawing(picture), 0
        network, weights = fit.network, fit.answer()
        if fit.objective.redrawer is not None:
            network = copy.deepcopy(fit.objective.redrawer).to(fit.device)  # others draw with it too
            weights = dict(network.named_parameters())
        problem = replace(fit.problem, network=network, objective=drawing.to(fit.device))
        if steps:
            further = FurtherSteps(problem, weights, fit.options)
            if not self._learn(fit, further, steps, callbacks):
                return
            weights = further.weights
        with fit.at_work():
            if fit.objective.shows_answer and network.corrects:
                weights = redrawing.lessened(problem, weights)
            if fit.objective.is_large:
                self.frozen = frozen.freeze(network, weights, drawing.windows())
        self.weights, self.z, self.network = weights, drawing.z, network

    def _learn(self, fit: Fit, further: FurtherSteps, steps: int, callbacks: Sequence[Callable[[Fit], None]]) -> bool:
        """Make steps of consolidation; return whether what they have made of the weights is to be the answer."""
        highest = fit.options.consolidation_learning_rate
        while self.consolidated < steps:
            if fit.interrupted:
                if fit.objective.draws_iterates:  # the averages are an answer
                    return False
                # The rate of the steps that are left falls to nothing all the same.
                steps = min(steps, self.consolidated + BRIEF_STEPS)
            started, done = time.perf_counter(), self.consolidated
            numbers = range(done, done + fit.steps_until_sync(callbacks, done, steps))
            with fit.at_work():
                further.make([(consolidation_rate(number, steps, highest),) for number in numbers])
                if fit.device.type == "cuda":
                    torch.cuda.synchronize(fit.device)
            self.consolidated += len(numbers)
            fit.count_time(time.perf_counter() - started, len(numbers))
            call_those_due(callbacks, fit, self.consolidated)
        return True


def steps_to_learn(fit: Fit) -> int:
    """Count the steps of consolidation that a picture needs."""
    network = fit.objective.redrawer or fit.network
    return 0 if fit.objective.shows_answer and network.corrects else fit.options.consolidation_steps


def consolidation_rate(done: int, steps: int, highest: float) -> float:
    """Learning rate of the next of some steps: it grows for five of them and falls to nothing, both linearly."""
    return highest * min(1.0, (done + 1) / 5) * (1 - done / steps)
