"""The steps of a fit in tensors alone: all that they read, decide and change stays on the device.

No value is looked at in a step, so that a GPU repeats it without the host (`graphs`): numbers and flags are
0-dim tensors, what cannot go on is held by flags in place of branches, and what the host wants to know is written into
a table that it reads now and then.  On other devices a look costs nothing, and the same function is called each time.

The same seed gives the same bits: every operator here that PyTorch computes has one order of its sums, on a GPU too
(`reductions`; lerp, where and Adam have none; index_copy_ writes one row).  Of the network that holds where it
is fused; some of PyTorch's own layers add in any order there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dip_fast import networks
from dip_fast.device.precision import drawing
from dip_fast.fitting import graphs
from dip_fast.fitting.degradations import Degradation
from dip_fast.fitting.reductions import mean_square
from dip_fast.fitting.stopping import MovingVariance, Variance
from dip_fast.networks.layers import full
from dip_fast.networks.network_input import NetworkInput

MOST = 50  # steps between two looks of the host
JUMP = 10.0  # a loss this many times its moving mean has lost the picture (10 dB)
ALIGNMENT = 16  # values between the beginnings of tensors in one piece of memory: 64 bytes, as PyTorch's own
RUNNING, STOPPED, FAULTY = 0.0, 1.0, 2.0  # how it stands with a fit


def together(like: Iterable[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Give zeros in one piece of memory, and in it a tensor of the shape of each of some: one kernel does for all."""
    like = list(like)
    starts, end = [], 0
    for tensor in like:
        starts.append(end)
        end += -(-tensor.numel() // ALIGNMENT) * ALIGNMENT
    memory = like[0].detach().new_zeros(end)
    return memory, apart(memory, like)


def apart(memory: Tensor, like: Iterable[Tensor]) -> list[Tensor]:
    """Give the tensors in a piece of memory that is laid out as `together` does."""
    tensors, start = [], 0
    for tensor in like:
        tensors.append(memory[start : start + tensor.numel()].view(tensor.shape))
        start += -(-tensor.numel() // ALIGNMENT) * ALIGNMENT
    return tensors


class Adam:
    """Adam as PyTorch computes it, with rate and number of the step in tensors, and a flag that holds it.

    The constructor of ``torch.optim.Adam``, which calls the same operator, imports ``torch._dynamo``: a second and
    70 MB.

    Parameters
    ----------
    parameters : sequence of Tensor

    Attributes
    ----------
    moments : tuple of Tensor
        First and second, in one piece of memory each.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        first, self._first = together(self.parameters)
        second, self._second = together(self.parameters)
        self.moments = first, second

    @torch.no_grad()
    def update(self, gradients: Sequence[Tensor | None], step: Tensor, rate: Tensor, held: Tensor | None) -> None:
        """Make step number ``step``, float32, unless ``held``, float32, is 1; a parameter without a gradient rests."""
        taken = [i for i, gradient in enumerate(gradients) if gradient is not None]
        if self.parameters[0].device.type != "cpu":
            rate = rate.to(step)  # its kernels read float32 there
        torch._fused_adam_(
            [self.parameters[i] for i in taken],
            [gradients[i].contiguous() for i in taken],  # type: ignore[union-attr]
            [self._first[i] for i in taken],
            [self._second[i] for i in taken],
            [],
            [step] * len(taken),
            lr=rate,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
            found_inf=held,
        )


class Steps(ABC):
    """Steps that are made without a look: each reads a row of what it is told, and writes one of what it tells.

    Attributes
    ----------
    told : Tensor, (MOST, columns)
        Float64.
    place : Tensor, (1,)
        Number of the row, int64.
    home : device
        Of the numbers: the GPU, so that nothing waits for them, or the CPU.
    """

    def __init__(self, device: torch.device, columns: int) -> None:
        self.device = device
        self.home = torch.device("cpu") if device.type == "mps" else device  # mps has no float64
        self.told = torch.zeros(MOST, columns, dtype=torch.float64, device=self.home)
        self.place = torch.zeros(1, dtype=torch.int64, device=self.home)
        self._repeat: Any = None

    def make(self, rows: Sequence[Sequence[float]]) -> None:
        """Make a step for each row that it is told."""
        self.told[: len(rows)].copy_(torch.tensor(rows, dtype=torch.float64))
        self.place.zero_()
        if self._repeat is None:
            self._repeat = graphs.repeatable(self.step, self.state(), self.device)
        for _ in rows:
            self._repeat()

    def release(self) -> None:
        """Give up the graph, with all the memory that a step takes; the next `make` captures another."""
        self._repeat = None

    @abstractmethod
    def step(self) -> None:
        """Make a step."""

    @abstractmethod
    def state(self) -> list[Tensor]:
        """Give all that a step changes."""


class Numbers(NamedTuple):
    """The numbers of a fit: 0-dim float64 tensors in a step, floats on the host.

    Attributes
    ----------
    steps : Tensor or float
        Done.
    loss_level : Tensor or float
        Moving mean of the loss; NaN before the first.
    variance, value, best, best_step : Tensor or float
        See `dip_fast.fitting.stopping.Variance`.
    """

    steps: Any = 0.0
    loss_level: Any = math.nan
    variance: Any = 0.0
    value: Any = math.nan
    best: Any = math.inf
    best_step: Any = 0.0


@dataclass(frozen=True)
class Task:
    """What is fitted, to what, and how.

    Attributes
    ----------
    network : Network
    z : NetworkInput
    degradation : Degradation
    perturbation : float
        Standard deviation.
    seed : int
        Of the perturbations.
    patience : float
        Steps without a new minimum of the variance that end the fit; infinity where it does not.
    reference : Tensor or None
    precision : {"fp32", "tf32", "bf16"}
    device : device
    """

    network: networks.Network
    z: NetworkInput
    degradation: Degradation
    perturbation: float
    seed: int
    patience: float
    reference: Tensor | None
    precision: str
    device: torch.device


def draw(task: Task, z: Tensor, weights: dict[str, Tensor] | None = None) -> Tensor:
    """Draw an image of the picture's size, in the precision of the task, with weights in place of the network's own.

    Returns
    -------
    Tensor
        ``(1, C, H, W)``, in float32 at least.
    """
    if task.precision == "bf16":
        z = z.bfloat16()
    with drawing(task.precision, task.device):
        output = task.network(z) if weights is None else torch.func.functional_call(task.network, weights, (z,))
    return full(networks.crop(output, *task.degradation.size))


class FitSteps(Steps):
    """The steps of a fit: perturb z, draw, compare, update the weights and what is known of them.

    What it is told of a step are the learning rate and the weights of what is new: in the averages, in the mean of the
    iterates, in the average of their variance.  What it tells are loss, averaged variance and the iterate's mean
    squared error against the reference.  A fit that has stopped, or whose loss went wrong, is held: further steps
    change nothing but their rows.

    Parameters
    ----------
    task : Task

    Attributes
    ----------
    parameters : dict of str to Parameter
        Of the network, moved into one piece of memory.
    codes : Tensor
    denominator : float
        z is their quotient.
    iterate : Tensor
        ``(1, C, H, W)``.
    average, best : Tensor
        Averages of weights and iterates, in one piece of memory; ``best`` as they were at the minimum of the variance,
        empty if the fit does not stop by itself.
    looks : bool
        Whether a look at a value costs nothing, and may save work.
    """

    def __init__(self, task: Task) -> None:
        from dip_fast.ops import perturbation  # here, since it loads or builds the extension

        super().__init__(task.device, 4)
        self.task = task
        self.looks = task.device.type != "cuda"
        self._perturbation = perturbation
        self.codes, self.denominator = task.z.codes.to(self.device), float(task.z.denominator)
        self._z = None if task.perturbation else task.z.tensor(self.device)

        self.parameters: dict[str, Tensor] = dict(task.network.named_parameters())
        self.weights, places = together(self.parameters.values())
        with torch.no_grad():
            for parameter, place in zip(self.parameters.values(), places, strict=True):
                place.copy_(parameter)
                parameter.data = place
        self._trained = [parameter for parameter in self.parameters.values() if parameter.requires_grad]
        self.adam = Adam(self._trained)
        target = task.degradation.target
        self.iterate = target.new_zeros(1, task.degradation.channels, *task.degradation.size)
        self.averaged = [*self.parameters.values(), self.iterate]
        self.average, _ = together(self.averaged)
        self.best = self.average.new_zeros(self.average.numel() if math.isfinite(task.patience) else 0)
        self.variance = MovingVariance(self.iterate)

        self._numbers = torch.zeros(len(Numbers._fields) + 1, dtype=torch.float64, device=self.home)
        self._tells = torch.zeros(MOST, 3, dtype=torch.float64, device=self.home)
        self._held = torch.zeros((), device=self.device)  # 1 holds Adam, as if a gradient had overflown
        self.write(Numbers(), RUNNING)
        self._no_error = torch.full((), math.nan, dtype=torch.float64, device=self.home)

    def state(self) -> list[Tensor]:
        """Give all that a step changes, but its row."""
        buffers = list(self.task.network.buffers())
        images = [self.iterate, self.variance.mean]
        return [self.weights, *self.adam.moments, self.average, self.best, *images, self._numbers, self.place, *buffers]

    def step(self) -> None:
        """Make a step."""
        task = self.task
        rate, weight, *weights = self.told.index_select(0, self.place)[0].unbind()
        *numbers, status = self._numbers.unbind()
        known = Numbers(*numbers)
        step = known.steps + 1

        x = draw(task, self._input(step))
        data_term = task.degradation.data_term(x)
        gradients = torch.autograd.grad(data_term, self._trained, allow_unused=True)

        with torch.no_grad():
            loss = data_term.detach().to(step)
            wrong = ~loss.isfinite() | (loss > JUMP * known.loss_level)
            running = status == RUNNING
            good = running & ~wrong  # all below changes nothing otherwise
            self._held.copy_(~good)
            self.adam.update(gradients, step.to(self._held), rate, self._held)
            self._copy_if(good, self.iterate, x)
            self.take_into_averages(weight * good)
            before = Variance(*known[2:])
            after = self.variance.update(self.iterate, step, (weights[0], weights[1]), before, good)
            if self.best.numel():  # which the host knows
                self._copy_if(good & (after.best_step == step), self.best, self.average)
            late = (after.best_step > 0) & (step - after.best_step >= task.patience)
            level = torch.where(known.loss_level.isnan(), loss, known.loss_level)
            now = torch.stack((step, level + 0.1 * (loss - level), *after))
            told = torch.stack((loss, after.value, self.error()))
            self._tells.index_copy_(0, self.place, told[None])
            self._numbers[:-1].copy_(torch.where(good, now, self._numbers[:-1]))
            outcome = torch.where(wrong, FAULTY, torch.where(late, STOPPED, RUNNING))
            status.copy_(torch.where(running, outcome, status))
            self.place.add_(1)

    @torch.no_grad()
    def take_into_averages(self, weight: Tensor) -> None:
        """Bring the averages nearer to the weights and the iterate; by nothing at a weight of 0."""
        weight, weights = weight.to(self.average), self.weights.numel()
        self.average[:weights].lerp_(self.weights, weight)
        self.average[weights:][: self.iterate.numel()].lerp_(self.iterate.flatten(), weight)

    def error(self) -> Tensor:
        """Mean squared error of the iterate, clipped; NaN without a reference."""
        if self.task.reference is None:
            return self._no_error
        return mean_square(self.iterate.clamp(0, 1) - self.task.reference).to(self._no_error)

    def read(self) -> tuple[Numbers, float]:
        """Give the numbers, and how it stands with the fit."""
        *numbers, status = self._numbers.tolist()
        return Numbers(*numbers), status

    def write(self, numbers: Numbers, status: float) -> None:
        """Set the numbers, and how it stands with the fit."""
        self._numbers.copy_(torch.tensor([*numbers, status], dtype=torch.float64))

    def tells(self, rows: int) -> list[list[float]]:
        """Give what the first steps since the last `make` told, a row a step."""
        table: list[list[float]] = self._tells[:rows].tolist()
        return table

    def _input(self, step: Tensor) -> Tensor:
        """Give z of a step, perturbed."""
        if self._z is not None:
            return self._z
        task, number = self.task, step.long()
        return self._perturbation.perturb(
            self.codes, task.perturbation, task.seed, int(number) if self.looks else number, self.denominator
        )

    def _copy_if(self, flag: Tensor, target: Tensor, source: Tensor) -> None:
        """Copy if the flag is up."""
        if not self.looks:
            torch.where(flag, source, target, out=target)
        elif flag:
            target.copy_(source)


class ConsolidationSteps(Steps):
    """Steps that fit a network, from averaged weights on and at the unperturbed z, to the averaged picture.

    What it is told of a step is the learning rate.

    Parameters
    ----------
    fit : FitSteps
    averages : Tensor
        Of weights and picture, in one piece of memory.

    Attributes
    ----------
    weights : dict of str to Tensor
        By the parameters' names.
    """

    def __init__(self, fit: FitSteps, averages: Tensor) -> None:
        super().__init__(fit.device, 1)
        self.task = fit.task
        self._memory = averages.clone()
        *weights, self._picture = apart(self._memory, fit.averaged)
        self.weights = dict(zip(fit.parameters, (weight.requires_grad_() for weight in weights), strict=True))
        self._adam = Adam(list(self.weights.values()))
        self._count = torch.zeros((), device=self.device)
        self._z = self.task.z.tensor(self.device)

    def state(self) -> list[Tensor]:
        """Give all that a step changes."""
        return [self._memory, *self._adam.moments, self._count, self.place, *self.task.network.buffers()]

    def step(self) -> None:
        """Make a step."""
        loss = mean_square(draw(self.task, self._z, self.weights) - self._picture)
        gradients = torch.autograd.grad(loss, list(self.weights.values()), allow_unused=True)
        rate = self.told.index_select(0, self.place)[0, 0]
        self._adam.update(gradients, self._count.add_(1), rate, None)
        self.place.add_(1)
