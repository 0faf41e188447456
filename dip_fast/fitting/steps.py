"""The steps of a fit in tensors alone: all that they read, decide and change stays on the device.

A step never reads a tensor on the host, so it can be captured as a CUDA graph (`graphs`): numbers and flags are 0-dim
tensors, flags take the place of branches, and what the host is to know is written into a log that it reads now and
then.  On other devices such reads cost nothing, and the same function is called for each step.

The same seed gives the same bits: every operator here that PyTorch computes has one order of its sums, on a GPU too
(`reductions`; lerp, where and Adam have none; index_copy_ writes one row).  The same holds for a fused network; some of
PyTorch's own layers add in any order on a GPU.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dip_fast.fitting import graphs
from dip_fast.fitting.adam import Adam
from dip_fast.fitting.flat import flatten, unflatten
from dip_fast.fitting.muon import Muon
from dip_fast.fitting.problem import Problem
from dip_fast.fitting.reductions import mean_square
from dip_fast.fitting.results import State
from dip_fast.fitting.stopping import MovingVariance, Variance
from dip_fast.fitting.weight_noise import shaken
from dip_fast.networks import Network, crop
from dip_fast.networks.layers import Block
from dip_fast.presets import FitOptions

MAX_STEPS_BETWEEN_SYNCS = 50  # rows of the schedule and of the log
JUMP = 10.0  # a loss this many times its moving mean has lost the picture (10 dB)
SMALL = 3e-3  # but none that leaves a picture of 25 dB has: that of a flat one is nearly 0, and jumps about
RUNNING, STOPPED, FAULTY = 0.0, 1.0, 2.0  # status of a fit
PICTURE = "picture"  # name of the averaged iterate beside the averaged weights
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam, as torch names them


class Steps(ABC):
    """Steps that the host schedules in advance and hears of later.

    Parameters
    ----------
    device : device
        Where the steps are computed.
    columns : int
        Numbers that the schedule holds for a step.

    Attributes
    ----------
    schedule : Tensor, (MAX_STEPS_BETWEEN_SYNCS, columns)
        What each of the next steps is given; float64.
    row : Tensor, (1,)
        Row of the step that is made next; int64.
    home : device
        Where numbers lie: on the GPU, so that nothing waits for them, or on the CPU.
    """

    def __init__(self, device: torch.device, columns: int) -> None:
        self.device = device
        self.home = torch.device("cpu") if device.type == "mps" else device  # mps has no float64
        self.schedule = torch.zeros(MAX_STEPS_BETWEEN_SYNCS, columns, dtype=torch.float64, device=self.home)
        self.row = torch.zeros(1, dtype=torch.int64, device=self.home)
        self.captures = True
        self._make_one: Any = None

    def make(self, schedule: Sequence[Sequence[float]]) -> None:
        """Make a step for each row of a schedule."""
        self.schedule[: len(schedule)].copy_(torch.tensor(schedule, dtype=torch.float64))
        self.row.zero_()
        if self._make_one is None:
            self._make_one = graphs.repeatable(self.step, self.changed(), self.device) if self.captures else self.step
        for _ in schedule:
            self._make_one()

    def release(self) -> None:
        """Free the CUDA graph, with all the memory that a step takes; the next `make` captures another."""
        self._make_one = None

    @abstractmethod
    def step(self) -> None:
        """Make the step of the current row."""

    @abstractmethod
    def changed(self) -> list[Tensor]:
        """List all tensors that a step changes."""


class Numbers(NamedTuple):
    """The numbers of a fit: 0-dim float64 tensors in a step, floats on the host.

    Attributes
    ----------
    steps : Tensor or float
        Steps done.
    loss_level : Tensor or float
        Moving mean of the loss; NaN before the first.
    variance, value, best, best_step : Tensor or float
        See `stopping.Variance`.
    """

    steps: Any = 0.0
    loss_level: Any = math.nan
    variance: Any = 0.0
    value: Any = math.nan
    best: Any = math.inf
    best_step: Any = 0.0


def make_optimizer(network: Network, parameters: dict[str, Tensor], options: FitOptions) -> Adam:
    """Make the optimizer of a network's parameters, or of what takes their place.

    Parameters
    ----------
    network : Network
    parameters : dict of str to Tensor
        By the parameters' names.
    options : FitOptions
    """
    followed = {f"{name}.conv.weight" for name, module in network.named_modules() if isinstance(module, Block)}
    matrices = [i for i, name in enumerate(parameters) if name in followed]
    if options.optimizer == "adam" or not matrices:
        return Adam(list(parameters.values()))
    return Muon(list(parameters.values()), matrices, options.matrix_rate, fused=network.is_fused())


class FitSteps(Steps):
    """The steps of a fit: make the input, draw, compare, update the weights and their averages.

    A row of the schedule holds the learning rate and the weights of the newest values: in the averages, in the mean of
    the iterates, in the average of their variance.  A row of the log holds the loss, the averaged variance, and the
    mean squared error of the iterate against the reference.  A fit that has stopped, or whose loss went wrong, is held:
    further steps change nothing but their rows.

    Parameters
    ----------
    problem : Problem
    options : FitOptions
    reads_are_free : bool
        Whether a tensor can be read on the host without waiting, which saves work.

    Attributes
    ----------
    parameters : dict of str to Parameter
        The network's, moved into one piece of memory.
    weights : Tensor
        That piece of memory.
    iterate : Tensor
        The image of the last step, ``(1, C, H, W)``; without a value where steps draw no iterates.
    average, best : Tensor
        Averages of weights and iterates, flat; ``best`` as they were at the minimum of the variance, empty if the fit
        does not stop by itself.
    variance : MovingVariance
        The stopping statistic.
    numbers : Numbers
        What the host knows of the numbers, since the last `read`.
    status : float
        What the host knows of the status.
    """

    def __init__(self, problem: Problem, options: FitOptions, *, reads_are_free: bool) -> None:
        super().__init__(problem.device, 4)
        self.problem = problem
        self.share = options.share(problem.objective.networks)
        self.patience = options.patience * options.iterations if options.stop == "auto" else math.inf
        self.reads_are_free = reads_are_free
        self.weight_noise = options.weight_noise
        self.captures = problem.objective.captures

        self.parameters: dict[str, Tensor] = dict(problem.network.named_parameters())
        self.weights, places = flatten(self.parameters.values())
        with torch.no_grad():
            for parameter, place in zip(self.parameters.values(), places, strict=True):
                place.copy_(parameter)
                parameter.data = place
        self._trained = {name: value for name, value in self.parameters.items() if value.requires_grad}
        self.adam = make_optimizer(problem.network, self._trained, options)
        objective = problem.objective
        self.draws_iterates = objective.draws_iterates
        size = objective.size if self.draws_iterates else (0, 0)
        self.iterate = torch.zeros(1, objective.channels, *size, device=self.device)
        self.averaged = {**self.parameters, PICTURE: self.iterate}
        self.average, _ = flatten(self.averaged.values())
        self.best = self.average.new_zeros(self.average.numel() if math.isfinite(self.patience) else 0)
        self.variance = MovingVariance(self.iterate)

        self._numbers = torch.zeros(len(Numbers._fields) + 1, dtype=torch.float64, device=self.home)
        self._log = torch.zeros(MAX_STEPS_BETWEEN_SYNCS, 3, dtype=torch.float64, device=self.home)
        self._held = torch.zeros((), device=self.device)  # at 1 Adam skips the step, as if a gradient were infinite
        self._no_error = torch.full((), math.nan, dtype=torch.float64, device=self.home)
        self.write(Numbers(), RUNNING)

    def changed(self) -> list[Tensor]:
        """List all tensors that a step changes, but its row of the log."""
        buffers = list(self.problem.network.buffers())
        images = [self.iterate, self.variance.mean]
        averages = [self.average, self.best]
        return [self.weights, *self.adam.moments, *averages, *images, self._numbers, self.row, *buffers]

    def step(self) -> None:
        """Make the step of the current row."""
        rate, weight, *weights = self.schedule.index_select(0, self.row)[0].unbind()
        *numbers, status = self._numbers.unbind()
        known = Numbers(*numbers)
        step = known.steps + 1

        x, objective_loss = self._evaluate(step.long())
        gradients = torch.autograd.grad(objective_loss, self.adam.parameters, allow_unused=True)

        with torch.no_grad():
            loss = objective_loss.detach().to(step)
            # A level of 0 is of steps in which there was nothing to compare.
            level = torch.where(known.loss_level > 0, known.loss_level, loss)
            wrong = ~loss.isfinite() | ((loss > JUMP * level) & (loss > SMALL))
            running = status == RUNNING
            good = running & ~wrong  # all below changes nothing otherwise
            self._held.copy_(~good)
            since = step if self.problem.objective.networks == 1 else (step - 1).remainder(self.share) + 1
            self.adam.update(gradients, since.to(self._held), rate, self._held)
            after = Variance(*known[2:])
            if self.draws_iterates:
                self._copy_if(good, self.iterate, crop(x, *self.iterate.shape[2:]))
                after = self.variance.update(self.iterate, step, (weights[0], weights[1]), after, good)
            self.average_in(weight * good)
            if self.best.numel():  # a shape, which the host knows
                self._copy_if(good & (after.best_step == step), self.best, self.average)
            late = (after.best_step > 0) & (step - after.best_step >= self.patience)
            now = torch.stack((step, level + 0.1 * (loss - level), *after))
            self._log.index_copy_(0, self.row, torch.stack((loss, after.value, self.error()))[None])
            self._numbers[:-1].copy_(torch.where(good, now, self._numbers[:-1]))
            outcome = torch.where(wrong, FAULTY, torch.where(late, STOPPED, RUNNING))
            status.copy_(torch.where(running, outcome, status))
            self.row.add_(1)

    def _evaluate(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the image of a step and compute its loss; the input is freed by the backward pass that follows."""
        objective = self.problem.objective
        example = objective.example(step)
        weights = None if self.weight_noise == 0 else shaken(self.parameters, self.weight_noise, objective.seed, step)
        x = self.problem.draw(example.z, weights, objective.step_size)
        return x, objective.loss(x, example)

    @torch.no_grad()
    def average_in(self, weight: Tensor) -> None:
        """Bring the averages nearer to the weights and the iterate; by nothing at a weight of 0."""
        weight, weights = weight.to(self.average), self.weights.numel()
        self.average[:weights].lerp_(self.weights, weight)
        self.average[weights:][: self.iterate.numel()].lerp_(self.iterate.flatten(), weight)

    def error(self) -> Tensor:
        """Mean squared error of the iterate, clipped; NaN without a reference or without iterates."""
        if self.problem.reference is None or not self.draws_iterates:
            return self._no_error
        return mean_square(self.iterate.clamp(0, 1), self.problem.reference).to(self._no_error)

    @torch.no_grad()
    def restart(self, weights: Mapping[str, Tensor]) -> None:
        """Go on with the first weights of another network, by name."""
        for memory in (self.average, self.best, self.variance.mean, *self.adam.moments):
            memory.zero_()
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])
        self.write(Numbers(steps=self.numbers.steps), RUNNING)

    def read(self) -> None:
        """Read the numbers and the status on the host."""
        *numbers, self.status = self._numbers.tolist()
        self.numbers = Numbers(*numbers)

    def write(self, numbers: Numbers, status: float) -> None:
        """Set the numbers and the status."""
        self.numbers, self.status = numbers, status
        self._numbers.copy_(torch.tensor([*numbers, status], dtype=torch.float64))

    def log(self, rows: int) -> list[list[float]]:
        """Read the first rows of the log since the last `make`: loss, variance, error."""
        table: list[list[float]] = self._log[:rows].tolist()
        return table

    def averages(self) -> dict[str, Tensor]:
        """View the averages that the answer starts from: weights by name, and the picture as `PICTURE`."""
        return self._by_name(self.best if self.has_best() else self.average)

    def newest_averages(self) -> dict[str, Tensor]:
        """View the averages of the last step, by name as `averages`."""
        return self._by_name(self.average)

    def _by_name(self, memory: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.averaged, unflatten(memory, self.averaged.values()), strict=True))

    @torch.no_grad()
    def choose(self, step: int, averages: Mapping[str, Tensor]) -> None:
        """Let the answer start from the averages of an earlier step, by name as `averages`."""
        self.best = torch.zeros_like(self.average)
        for name, value in self._by_name(self.best).items():
            value.copy_(averages[name])
        self.write(self.numbers._replace(best_step=float(step)), self.status)

    def has_best(self) -> bool:
        """Whether averages were kept at a minimum of the variance."""
        return self.best.numel() > 0 and self.numbers.best_step > 0

    def state_dict(self) -> State:
        """Copy all that the next steps depend on."""
        tensors = {
            f"{group}.{name}": value
            for group, memory, like in self._groups()
            for name, value in zip(like, unflatten(memory.clone(), like.values()), strict=True)
        }
        if self.numbers.steps:
            tensors["variance.mean"] = self.variance.mean.clone()
        return State(tensors, {"numbers": [*self.numbers], "status": self.status})

    @torch.no_grad()
    def load_state_dict(self, state: State) -> None:
        """Set all that the next steps depend on, from a state of steps that were made in the same way."""
        self.write(Numbers(*state.numbers["numbers"]), state.numbers["status"])
        # What no step has given a value yet is zero.
        for memory in (self.average, self.best, self.variance.mean, *self.adam.moments):
            memory.zero_()
        for group, memory, like in self._groups():
            for name, value in zip(like, unflatten(memory, like.values()), strict=True):
                value.copy_(state.tensors[f"{group}.{name}"])
        if self.numbers.steps:
            self.variance.mean.copy_(state.tensors["variance.mean"])

    def _groups(self) -> list[tuple[str, Tensor, dict[str, Tensor]]]:
        """List the pieces of memory that hold something by now: name, memory, and what has its shapes by name."""
        groups = [("network", self.weights, self.parameters)]
        if self.numbers.steps:
            groups.append(("average", self.average, self.averaged))
            groups += [(name, memory, self._trained) for name, memory in zip(MOMENTS, self.adam.moments, strict=True)]
        if self.has_best():
            groups.append(("best", self.best, self.averaged))
        return groups

    def _copy_if(self, flag: Tensor, target: Tensor, source: Tensor) -> None:
        """Copy where the flag is true."""
        if not self.reads_are_free:
            torch.where(flag, source, target, out=target)
        elif flag:
            target.copy_(source)


class FurtherSteps(Steps):
    """Steps that fit weights further, to another objective than those before, with moments of their own.

    A row of the schedule holds the learning rate.

    Parameters
    ----------
    problem : Problem
        With the objective that is fitted now.
    weights : dict of str to Tensor
        By the parameters' names; they are copied.
    options : FitOptions

    Attributes
    ----------
    weights : dict of str to Tensor
        The weights that are fitted, by the parameters' names.
    """

    def __init__(self, problem: Problem, weights: dict[str, Tensor], options: FitOptions) -> None:
        super().__init__(problem.device, 1)
        self.problem = problem
        self.captures = problem.objective.captures
        self._memory, copies = flatten(weights.values())
        with torch.no_grad():
            for copy, value in zip(copies, weights.values(), strict=True):
                copy.copy_(value)
        self.weights = dict(zip(weights, copies, strict=True))
        for weight in copies:
            weight.requires_grad_()
        self._adam = make_optimizer(problem.network, self.weights, options)
        self._count = torch.zeros((), device=self.device)

    def changed(self) -> list[Tensor]:
        """List all tensors that a step changes."""
        return [self._memory, *self._adam.moments, self._count, self.row, *self.problem.network.buffers()]

    def step(self) -> None:
        """Make the step of the current row."""
        objective = self.problem.objective
        self._count.add_(1)
        example = objective.example(self._count.long())
        loss = objective.loss(self.problem.draw(example.z, self.weights, objective.step_size), example)
        gradients = torch.autograd.grad(loss, self._adam.parameters, allow_unused=True)
        rate = self.schedule.index_select(0, self.row)[0, 0]
        # Where the input has no structure the gradients overflow: each batch norm divides by a deviation of nothing.
        sums = torch.stack([gradient.sum() for gradient in gradients if gradient is not None])
        self._adam.update(gradients, self._count, rate, (~sums.sum().isfinite()).to(sums))
        self.row.add_(1)
