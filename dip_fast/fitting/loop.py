"""The loop: fit an untrained network to one damaged picture."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dip_fast import networks
from dip_fast.device import devices, engines
from dip_fast.device.precision import products, require
from dip_fast.errors import DipFastError
from dip_fast.fitting.averaging import weight_of_newest
from dip_fast.fitting.degradations import Degradation
from dip_fast.fitting.results import COLUMNS, Result, State
from dip_fast.fitting.steps import FAULTY, MOST, RUNNING, STOPPED, ConsolidationSteps, FitSteps, Numbers, Task, apart
from dip_fast.fitting.stopping import MovingVariance
from dip_fast.networks.network_input import NetworkInput, draw
from dip_fast.presets import FitOptions, Recipe

KEEP_EVERY = MOST  # steps between the states that a loss gone wrong falls back to: the host looks then anyway
SECONDS_UNSEEN = 0.25  # that a GPU works without the host, where nobody wants to look sooner
MOST_FALLBACKS = 8  # by then the learning rate is 1/256 of what it was: the fault lies elsewhere
PICTURE = "picture"  # name of the averaged iterate beside the averaged weights
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam, as torch names them


class Fit:
    """One fit, a step at a time.

    Minimises the data term of ``degradation`` over the weights of ``network`` at ``z``, by Adam.  The answer is the
    network with averaged weights, at the unperturbed z.

    An average of weights draws a somewhat worse picture than the average of the iterates' pictures.  So, at the end, a
    few dozen steps of *consolidation* fit the network, from its averaged weights on and at the unperturbed z, to the
    averaged picture: one network that draws it.  docs/notes/2026-11-presets.md has the figures.

    Parameters
    ----------
    network : Module
        Maps z to an image that covers the picture; its weights are fitted in place.
    z : NetworkInput
    degradation : Degradation
    options : FitOptions
    seed : int
        Of the perturbations, each of which is a function of it and of the number of the step.
    device : device or str
    reference : Tensor, optional
        Ground truth ``(1, C, H, W)``, range [0, 1], for the PSNR in the history.
    precision : {"tf32", "fp32", "bf16"}
        Of the products in the steps, on a GPU.  The answer is drawn with products in float32, as model files draw it.

    Attributes
    ----------
    steps, consolidation_steps : int
        Steps done, and steps of consolidation done after them.
    stop_reason : str
        Why there are no more steps; empty while the fit goes on.
    interrupted : bool
    iterate : Tensor
        The network's image at the last step, at the perturbed z, ``(1, C, H, W)``.  The next steps write over it.
    rows : list of tuple
        The history, a row a step, in the order of ``COLUMNS``.
    kept : State
        What a loss gone wrong falls back to.

    Notes
    -----
    On a GPU the steps between two looks are made without the host; see `run` for when it looks.  All attributes and
    methods then tell of the last of these steps, and no result depends on how many they were.
    """

    def __init__(
        self,
        network: networks.Network,
        z: NetworkInput,
        degradation: Degradation,
        options: FitOptions,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        reference: Tensor | None = None,
        precision: str = "tf32",
    ) -> None:
        self.device = torch.device(device)
        self.network = network.to(self.device)
        self.z = z
        self.degradation = degradation.to(self.device)
        self.options = options
        self.precision = precision

        perturbation = options.perturbation
        if perturbation is None:
            perturbation = min(max(degradation.noise() / 3, 1 / 100), 1 / 30)
        task = Task(
            network=self.network,
            z=z,
            degradation=self.degradation,
            perturbation=perturbation,
            seed=seed,
            patience=options.patience * options.iterations if options.stop == "auto" else math.inf,
            reference=None if reference is None else reference.to(self.device),
            precision=precision,
            device=self.device,
        )
        self._workspace, self._threads = _workspace(self.network, self.device), _threads(self.network, self.device)
        self._steps = FitSteps(task)
        self._numbers = Numbers()
        self._consolidated: dict[str, Tensor] = {}
        self._learning_rate_factor = 1.0
        self._pace = 1  # steps that fill the time without a look

        self.steps = 0
        self.consolidation_steps = 0
        self.seconds = 0.0
        self.stop_reason = ""
        self.interrupted = False
        self.events: list[dict[str, Any]] = []
        self.rows: list[tuple[float, ...]] = []
        self.kept = self.state()

    @property
    def iterate(self) -> Tensor:
        """The network's image at the last step."""
        return self._steps.iterate

    @property
    def best_step(self) -> int:
        """Step whose average is the answer."""
        return int(self._numbers.best_step) if self._has_best() else self.steps

    def history(self) -> dict[str, np.ndarray]:
        """Give the history, a value a step, by column."""
        table = np.array(self.rows, dtype=np.float64).reshape(-1, len(COLUMNS))
        return {name: table[:, i] for i, name in enumerate(COLUMNS)}

    def interrupt(self) -> None:
        """End the fit after the steps that are being made; safe to call from a signal handler."""
        self.interrupted = True

    def run(self, callbacks: Sequence[Callable[[Fit], None]] = ()) -> None:
        """Step until the fit is over.

        Parameters
        ----------
        callbacks : sequence of callable
            Each is called with the fit after each step.  One with an attribute ``every`` wants to be called after
            each step whose number is a multiple of it, or with 0 at no step in particular: on a GPU the steps between
            run without the host then, for a quarter of a second at most.

        Raises
        ------
        DipFastError
            If the loss goes wrong again and again.
        UsageError
            If the memory of the GPU does not do.
        """
        try:
            while not self.stop_reason and not self.interrupted:
                self.advance(self._unseen(callbacks, self.steps, self.options.iterations))
                for callback in callbacks:
                    callback(self)
            if not self.interrupted:
                self._consolidate(callbacks)
        except torch.OutOfMemoryError as error:
            raise devices.out_of_memory(self.degradation.size) from error

    def step(self) -> None:
        """Make one step: perturb z, draw, compare, update the weights and what is known of them."""
        self.advance(1)

    def advance(self, steps: int) -> None:
        """Make so many steps, but none beyond the next one whose state is kept, and then look."""
        started = time.perf_counter()
        steps = min(steps, KEEP_EVERY - self.steps % KEEP_EVERY)
        plan = [self._plan(step) for step in range(self.steps + 1, self.steps + steps + 1)]
        with self._at_work():
            self._steps.make(plan)
            self._numbers, status = self._steps.read()
        done = int(self._numbers.steps) - self.steps
        told = self._steps.tells(min(done + 1, steps))
        for (rate, *_), (loss, variance, error) in zip(plan, told[:done], strict=False):
            self.rows.append((len(self.rows) + 1, loss, rate, variance, _psnr(error)))
        self.steps += done
        if status == FAULTY:
            self._fall_back(self._fault(told[done][0]))
            return
        keep = self.steps % KEEP_EVERY == 0
        # A gradient can overflow under a finite loss; the next loss would tell too late.
        if (keep or self.steps >= self.options.iterations) and not self._steps.weights.isfinite().all():
            self._fall_back("the weights became infinite")
            return
        if self.steps >= self.options.iterations:
            self.stop_reason = "iterations"
        elif status == STOPPED:
            self.stop_reason = "variance"
        self._took(time.perf_counter() - started, steps)
        if keep:
            self.kept = self.state()

    def draw(self) -> Tensor:
        """Draw the answer so far at the unperturbed z, ``(1, C, H, W)``, known pixels put back."""
        with torch.no_grad(), self._threads, products("fp32", self.device):
            output = torch.func.functional_call(self.network, self._answer(), (self.z.tensor(self.device),))
            return self.degradation.composite(networks.crop(output, *self.degradation.size))

    def result(self) -> Result:
        """Give the answer and load its weights into the network; the fit cannot go on afterwards."""
        self._steps.release()
        image = self.draw()
        self.network.load_state_dict(self._answer())
        return Result(
            image=image[0].permute(1, 2, 0).contiguous().cpu().numpy(),
            network=self.network,
            z=self.z,
            history=self.history(),
            steps=self.steps,
            best_step=self.best_step,
            stop_reason="interrupted" if self.interrupted else self.stop_reason,
            seconds=self.seconds,
            events=list(self.events),
            kept=self._kept_pixels(),
        )

    def _kept_pixels(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Give what the degradation puts back into the picture, channels last."""
        kept = self.degradation.kept
        if kept is None:
            return None
        mask, target = (tensor[0].permute(1, 2, 0).contiguous().cpu() for tensor in (kept, self.degradation.target))
        return mask.numpy(), target.numpy()

    def state(self) -> State:
        """Copy all that the rest of the fit depends on."""
        tensors = {
            f"{group}.{name}": value
            for group, memory, like in self._memories()
            for name, value in zip(like, apart(memory.clone(), like.values()), strict=True)
        }
        if self.steps:
            tensors["variance.mean"] = self._steps.variance.mean.clone()
        tensors["history"] = torch.tensor(self.rows, dtype=torch.float64).reshape(-1, len(COLUMNS))
        _, loss_level, *variance, best_step = self._numbers
        numbers = {
            "steps": self.steps,
            "seconds": self.seconds,
            "stop_reason": self.stop_reason,
            "events": list(self.events),
            "learning_rate_factor": self._learning_rate_factor,
            "loss_level": loss_level,
            "variance": [*variance, int(best_step)],
        }
        return State(tensors, numbers)

    def load_state(self, state: State) -> None:
        """Go back, or forward, to a state of a fit that was prepared in the same way."""
        tensors, numbers = state.tensors, state.numbers
        self.steps = numbers["steps"]
        self.stop_reason = numbers["stop_reason"]
        self._numbers = Numbers(self.steps, numbers["loss_level"], *numbers["variance"])
        self._steps.write(self._numbers, STOPPED if self.stop_reason == "variance" else RUNNING)
        steps = self._steps
        with torch.no_grad():
            # The first step gives them their values.
            for memory in (steps.average, steps.variance.mean, *steps.adam.moments):
                memory.zero_()
            for group, memory, like in self._memories():
                for name, value in zip(like, apart(memory, like.values()), strict=True):
                    value.copy_(tensors[f"{group}.{name}"])
            if self.steps:
                steps.variance.mean.copy_(tensors["variance.mean"])
        self.rows = [(int(step), *row) for step, *row in tensors["history"].tolist()]
        self.seconds = numbers["seconds"]
        self.events = list(numbers["events"])
        self._learning_rate_factor = numbers["learning_rate_factor"]

    def _memories(self) -> list[tuple[str, Tensor, dict[str, Tensor]]]:
        """Give the pieces of memory that hold something by now: group, memory, and by name what has its shapes."""
        steps = self._steps
        averaged = {**steps.parameters, PICTURE: steps.iterate}
        trained = {name: value for name, value in steps.parameters.items() if value.requires_grad}
        memories = [("network", steps.weights, steps.parameters)]
        if self.steps:
            memories.append(("average", steps.average, averaged))
            memories += [(moment, memory, trained) for moment, memory in zip(MOMENTS, steps.adam.moments, strict=True)]
        if self._has_best():
            memories.append(("best", steps.best, averaged))
        return memories

    def _has_best(self) -> bool:
        """Whether there are averages that were kept at a minimum of the variance."""
        return self.options.stop == "auto" and self._numbers.best_step > 0

    def _averages(self) -> Tensor:
        """Give the averages that the answer starts from: weights, then the picture."""
        return self._steps.best if self._has_best() else self._steps.average

    def _answer(self) -> dict[str, Tensor]:
        """Weights of the answer so far, by name."""
        if self._consolidated:
            return self._consolidated
        parameters = self._steps.parameters
        return (
            dict(zip(parameters, apart(self._averages(), parameters.values()), strict=True))
            if self.steps
            else parameters
        )

    def _plan(self, step: int) -> tuple[float, ...]:
        """Give what a step is told: its learning rate, and the weights of what is new."""
        options = self.options
        rate = self._learning_rate_factor * options.learning_rate_at(step)
        weight = weight_of_newest(options.averaging, options.averaging_window, step)
        return rate, weight, *MovingVariance.weights(step)

    def _unseen(self, callbacks: Sequence[Callable[[Fit], None]], done: int, most: int) -> int:
        """Give the steps to make before the next look, of which ``done`` are made and ``most`` are to be."""
        if self._steps.looks:
            return 1
        wanted = [every for callback in callbacks if (every := getattr(callback, "every", 1))]
        return min(self._pace, most - done, *(every - done % every for every in (MOST, *wanted)))

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Give steps the threads, the precision and the GPU that they are made with."""
        gpu = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        with self._threads, products(self.precision, self.device), gpu:
            yield

    def _consolidate(self, callbacks: Sequence[Callable[[Fit], None]]) -> None:
        """Fit the averaged network, at the unperturbed z, to the averaged picture.

        It starts from the averages alone, so an interrupted one is dropped and made anew when the fit is resumed.
        """
        self._steps.release()
        steps, most = ConsolidationSteps(self._steps, self._averages()), self.options.consolidation_steps
        while self.consolidation_steps < most and not self.interrupted:
            started, done = time.perf_counter(), self.consolidation_steps
            numbers = range(done + 1, done + 1 + self._unseen(callbacks, done, most))
            with self._at_work():
                steps.make([(self.options.consolidation_rate_at(step),) for step in numbers])
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
            self.consolidation_steps += len(numbers)
            self._took(time.perf_counter() - started, len(numbers))
            for callback in callbacks:
                callback(self)
        if not self.interrupted:
            self._consolidated = steps.weights

    def _took(self, seconds: float, steps: int) -> None:
        """Take note of the time that steps have taken."""
        self.seconds += seconds
        self._pace = max(1, int(steps * SECONDS_UNSEEN / seconds))

    def _fault(self, loss: float) -> str:
        """Say what is wrong with a loss."""
        if not math.isfinite(loss):
            return f"the loss became {loss}"
        return f"the loss jumped from {self._numbers.loss_level:.3g} to {loss:.3g}"

    def _fall_back(self, fault: str) -> None:
        """Go back to the last good state and go on at half the learning rate."""
        events, factor, seconds, step = self.events, self._learning_rate_factor / 2, self.seconds, self.steps + 1
        self.load_state(self.kept)
        self._learning_rate_factor = factor
        self.seconds = seconds
        event = {"step": step, "fault": fault, "back_to_step": self.steps, "learning_rate_factor": factor}
        self.events = [*events, event]
        if len(self.events) > MOST_FALLBACKS:
            raise DipFastError(
                f"{fault} at step {step}, as it did {MOST_FALLBACKS} times before at ever smaller learning rates; "
                "look at the picture for values that do not belong there"
            )


def _psnr(error: float) -> float:
    """PSNR in dB at data range 1, of a mean squared error; NaN of NaN."""
    return -10 * math.log10(max(error, 2.0**-48))


def _workspace(network: networks.Network, device: torch.device) -> object:
    """Give what keeps the memory of the fused engine between steps, while it is referred to: on a GPU PyTorch does."""
    if device.type != "cpu" or not network.is_fused():
        return None
    from dip_fast.ops.workspace import Workspace  # here, since it loads or builds the extension

    return Workspace()


def _threads(network: networks.Network, device: torch.device) -> AbstractContextManager[Any]:
    """Give what a step runs in: threads of the operators' own, where there is hardly anything beside them."""
    if device.type != "cpu" or not network.is_wholly_fused():
        return nullcontext()
    from dip_fast.ops.workspace import own_threads  # here, since it loads or builds the extension

    return own_threads()


def prepare(
    degradation: Degradation,
    recipe: Recipe,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    engine: str = "auto",
    precision: str = "tf32",
    reference: Tensor | None = None,
) -> Fit:
    """Build the network and its input from a recipe, ready for the first step.

    The seed gives the first weights, z and the perturbations, each its own stream; the caller's random state is left
    as it was.
    """
    require(precision, torch.device(device))
    for_network, for_z, for_perturbation = (int(s) for s in np.random.SeedSequence(seed).generate_state(3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(for_network)
        network = networks.build(recipe.network, recipe.in_channels, degradation.channels, **recipe.network_options)
    network.use(engines.choose(engine, network, torch.device(device)))
    z = draw(recipe.distribution, recipe.in_channels, network.input_size(*degradation.size), seed=for_z)
    return Fit(
        network,
        z,
        degradation,
        recipe.options,
        seed=for_perturbation,
        device=device,
        reference=reference,
        precision=precision,
    )


def fit(
    degradation: Degradation,
    recipe: Recipe,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    engine: str = "auto",
    precision: str = "tf32",
    reference: Tensor | None = None,
    callbacks: Sequence[Callable[[Fit], None]] = (),
) -> Result:
    """Fit a network to one damaged picture.

    Parameters
    ----------
    degradation : Degradation
        What happened to the picture, and what is left of it.
    recipe : Recipe
        Network, input and options; ``dip_fast.presets`` has some that were measured.
    seed : int
        Same seed, same bits, on the same machine with the same number of threads.
    device : device or str
    engine : {"auto", "fused", "plain"}
        How the network is computed; ``auto`` is fused where that can be had.
    precision : {"tf32", "fp32", "bf16"}
        Of the products in the steps, on a GPU; see `Fit`.
    reference : Tensor, optional
        Ground truth ``(1, C, H, W)``, range [0, 1], for the PSNR in the history.
    callbacks : sequence of callable
        Called with the `Fit` after each step, or less often, see `Fit.run`; ``fit.interrupt()`` ends it.

    Returns
    -------
    Result

    Raises
    ------
    DipFastError
        If the loss goes wrong again and again.
    UsageError
        If the fused engine or a precision is asked for and cannot be had, or the memory of a GPU does not do.
    """
    run = prepare(
        degradation, recipe, seed=seed, device=device, engine=engine, precision=precision, reference=reference
    )
    run.run(callbacks)
    return run.result()
