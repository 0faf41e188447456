"""The loop: fit an untrained network to one damaged picture."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dip_fast import large, networks
from dip_fast.device import devices
from dip_fast.device.modes import in_fresh_state
from dip_fast.device.precision import products
from dip_fast.errors import DipFastError
from dip_fast.fitting.averaging import weight_of_newest
from dip_fast.fitting.callbacks import call_those_due, periods
from dip_fast.fitting.computing import threads, workspace
from dip_fast.fitting.finishing import Finishing, steps_to_learn
from dip_fast.fitting.objectives import Objective
from dip_fast.fitting.problem import Problem
from dip_fast.fitting.results import COLUMNS, Result, State, channels_last, psnr
from dip_fast.fitting.steps import FAULTY, MAX_STEPS_BETWEEN_SYNCS, PICTURE, STOPPED, FitSteps
from dip_fast.fitting.stopping import MovingVariance
from dip_fast.networks.network_input import NetworkInput
from dip_fast.presets import FitOptions

KEEP_EVERY = MAX_STEPS_BETWEEN_SYNCS  # steps between the states that a loss gone wrong falls back to
SECONDS_BETWEEN_SYNCS = 0.25  # on a GPU, where no callback asks for a step sooner
LOSSES_AVERAGED = 100  # for an estimate of the PSNR: one crop says little of the picture
PREVIEW_PASSES = 4  # of the picture that stands for an iterate where there are none
MAX_FALLBACKS = 8  # by then the learning rate is 1/256 of what it was: the fault lies elsewhere


@in_fresh_state("__init__", "run", "advance", "draw", "result", "state", "load_state")
class Fit:
    """One fit, a step at a time.

    Minimises an objective over the weights of a network, by Adam.  The answer is the network with averaged weights, at
    the objective's fixed input, fitted a little further: see `finishing.Finishing`.

    Parameters
    ----------
    network : Module
        Maps the objective's input to an image that covers the picture; its weights are fitted in place.
    objective : Objective
        What a step feeds the network and asks of its image; it is copied to the device.
    options : FitOptions
    device : device or str
    reference : Tensor, optional
        Ground truth ``(1, C, H, W)``, range [0, 1], for the PSNR in the history.
    precision : {"tf32", "fp32", "bf16"}
        Precision of the products in the steps, on a GPU; ``bf16`` also that of images, on a CPU too, and there that of
        products where the CPU has such instructions.  The answer is
        drawn with products in float32, as model files draw it.
    steps_between_syncs : int, optional
        Steps that are made before the host reads the device, at most `MAX_STEPS_BETWEEN_SYNCS`.  By default 1 where
        such reads are free, and as many as take `SECONDS_BETWEEN_SYNCS` on a GPU.  No result depends on it.
    others : sequence of dict of str to Tensor
        First weights of the networks that are fitted after this one, where the objective asks for several.

    Attributes
    ----------
    steps, passes, consolidated : int
        Steps done; and after them, passes of the objective's estimate, and steps of consolidation.
    stop_reason : str
        Why there are no more steps; empty while the fit goes on.
    interrupted : bool
        Whether `interrupt` was called.
    fitted : list of dict of str to Tensor
        Weights of the networks that were fitted before this one, by name.
    iterate : Tensor
        The network's image at the last step, ``(1, C, H, W)``, which the next steps write over; where steps draw no
        iterates, the objective's `brief` picture, made when it is asked for.
    rows : list of tuple
        The history, a row a step, in the order of ``COLUMNS``.
    kept : State
        What a loss gone wrong falls back to.

    Notes
    -----
    On a GPU the steps between two syncs are made without the host; see `run`.  All attributes and methods then show the
    last of these steps.
    """

    def __init__(
        self,
        network: networks.Network,
        objective: Objective,
        options: FitOptions,
        *,
        device: torch.device | str = "cpu",
        reference: Tensor | None = None,
        precision: str = "tf32",
        steps_between_syncs: int | None = None,
        others: Sequence[Mapping[str, Tensor]] = (),
    ) -> None:
        self.device = torch.device(device)
        self.network = network.to(self.device)
        self.objective = objective.to(self.device)
        self.options = options
        assert len(others) == objective.networks - 1
        self.share = options.share(objective.networks)
        self._others = others
        self.precision = precision
        if reference is not None:
            reference = reference.to(self.device)
        self.problem = Problem(self.network, self.objective, reference, precision, self.device)

        reads_are_free = self.device.type != "cuda" and steps_between_syncs is None
        self._workspace, self._threads = workspace(self.network, self.device), threads(self.network, self.device)
        self._steps = FitSteps(self.problem, options, reads_are_free=reads_are_free)
        self._finishing = Finishing()
        self._learning_rate_factor = 1.0
        self._fixed_pace = steps_between_syncs
        self._pace = steps_between_syncs or 1  # steps that fill the time between two syncs

        self.steps = 0
        self.seconds = 0.0
        self.stop_reason = ""
        self.interrupted = False
        self.events: list[dict[str, Any]] = []
        self.rows: list[tuple[float, ...]] = []
        self.fitted: list[dict[str, Tensor]] = []
        self.kept = self.state()

    @property
    def z(self) -> NetworkInput:
        """The fixed input that the answer is drawn from."""
        return self._finishing.z or self.objective.z

    @property
    def iterate(self) -> Tensor:
        """The network's image at the last step, or a picture made of a few drawings by its weights now."""
        if self.objective.draws_iterates:
            return self._steps.iterate
        with self.at_work():
            return self.objective.brief(partial(self._finishing.image, self), PREVIEW_PASSES)

    @property
    def passes(self) -> int:
        """Passes of the objective's estimate that are done."""
        return self._finishing.passes

    @property
    def consolidation_steps(self) -> int:
        """Steps that fit the network to its own picture, in the end: where there is one."""
        return steps_to_learn(self) if self.objective.pictures == 1 else 0

    @property
    def consolidated(self) -> int:
        """Steps of consolidation that are done."""
        return self._finishing.consolidated

    @property
    def best_step(self) -> int:
        """Step whose averages are the answer."""
        return int(self._steps.numbers.best_step) if self._steps.has_best() else self.steps

    def averages(self) -> dict[str, Tensor]:
        """View the averages that the answer starts from: weights by name, and the averaged picture as ``picture``."""
        return self._steps.averages()

    def newest_averages(self) -> dict[str, Tensor]:
        """View the averages of the last step, as `averages`: an answer to `choose` later."""
        return self._steps.newest_averages()

    def choose(self, step: int, averages: Mapping[str, Tensor]) -> None:
        """Let the answer start from `newest_averages` of an earlier step; no step can follow."""
        self._steps.choose(step, averages)

    def history(self) -> dict[str, np.ndarray]:
        """Arrange the history by column, a value a step; with the estimated PSNR where the objective has one."""
        table = np.array(self.rows, dtype=np.float64).reshape(-1, len(COLUMNS))
        history = {name: table[:, i] for i, name in enumerate(COLUMNS)}
        estimated = [self.estimated_psnr(step + 1) for step in range(len(self.rows))]
        if any(value is not None for value in estimated):
            history["estimated_psnr"] = np.array(estimated, dtype=np.float64)  # NaN where it does not say
        return history

    def estimated_psnr(self, step: int | None = None) -> float | None:
        """Estimate the PSNR of the network's images in dB, without the truth, from the last losses up to a step.

        None where the objective does not say.
        """
        last = len(self.rows[:step])
        first = max(last - 1, 0) // self.share * self.share  # of the network's own
        if first and last - first < LOSSES_AVERAGED:
            first, last = first - self.share, first
        losses = [row[1] for row in self.rows[first:last][-LOSSES_AVERAGED:]]
        return self.objective.psnr_of_loss(sum(losses) / len(losses)) if losses else None

    def interrupt(self) -> None:
        """End the fit after the steps that are being made; safe to call from a signal handler."""
        self.interrupted = True

    def run(self, callbacks: Sequence[Callable[[Fit], None]] = ()) -> None:
        """Step until the fit is over.

        Parameters
        ----------
        callbacks : sequence of callable
            Each is called with the fit after each step.  One with an attribute ``every`` is called after each step
            whose number is a multiple of it, or with 0 at no step in particular: on a GPU the steps between run without
            the host then, for a quarter of a second at most.

        Raises
        ------
        DipFastError
            If the loss goes wrong again and again.
        UsageError
            If the GPU has not enough memory.
        """
        self._finishing = Finishing()
        try:
            while not self.stop_reason and not self.interrupted:
                self.advance(self.steps_until_sync(callbacks, self.steps, self.options.iterations))
                call_those_due(callbacks, self, self.steps)
            if not self.interrupted:
                self._steps.release()
                self._finishing.run(self, callbacks)
            if self.interrupted and self.steps and not self._finishing.has_answer(self):
                self._finishing.in_brief(self)
        except torch.OutOfMemoryError as error:
            raise devices.out_of_memory(self.objective.size) from error

    def step(self) -> None:
        """Make one step."""
        self.advance(1)

    def advance(self, steps: int) -> None:
        """Make some steps, but none beyond the next one whose state is kept, and read what became of them."""
        started = time.perf_counter()
        steps = min(steps, KEEP_EVERY - self.steps % KEEP_EVERY, self.share - self.steps % self.share)
        schedule = [self._schedule(step) for step in range(self.steps + 1, self.steps + steps + 1)]
        with self.at_work():
            self._steps.make(schedule)
            self._steps.read()
        done = int(self._steps.numbers.steps) - self.steps
        log = self._steps.log(min(done + 1, steps))
        for (rate, *_), (loss, variance, error) in zip(schedule, log[:done], strict=False):
            self.rows.append((len(self.rows) + 1, loss, rate, variance, psnr(error)))
        self.steps += done
        if self._steps.status == FAULTY:
            self._fall_back(self._fault(log[done][0]))
            return
        keep = self.steps % KEEP_EVERY == 0
        over = self.steps >= self.options.iterations
        last = over or self.steps % self.share == 0
        # A gradient can be infinite under a finite loss; the next loss would show it only after the last step.
        if (keep or last) and not self._steps.weights.isfinite().all():
            self._fall_back("the weights became infinite")
            return
        if over:
            self.stop_reason = "iterations"
        elif last:
            self.fitted.append({name: value.clone() for name, value in self.answer().items()})
            self._steps.restart(self._others[len(self.fitted) - 1])
        elif self._steps.status == STOPPED:
            self.stop_reason = "variance"
        self.count_time(time.perf_counter() - started, steps)
        if keep:
            self.kept = self.state()

    def draw(self) -> Tensor:
        """Draw the answer so far at the fixed input, ``(1, C, H, W)``, known pixels put back."""
        with self._threads:
            return self.objective.composite(self._finishing.draw(self, self.z))

    def result(self, n: int | None = None) -> Result:
        """Draw the answer and load its weights into the network; the fit cannot go on afterwards.

        Of several pictures it has all as they were made; with ``n`` it has that one, which the network is fitted to
        first, so that it draws it.  It holds until the next call, which loads other weights.
        """
        self._steps.release()
        several, kept = self._finishing.pictures, self.objective.kept
        if n is None:  # nothing is fitted any more
            self._workspace = None
        elif several is not None:
            self._finishing.redraw(self, n)
            several = None
        image = self.draw() if several is None else several[:1]
        network = self._finishing.network or self.network
        network.load_state_dict(self.answer())
        z = self.z.surrounded(*network.input_size(*self.objective.scene))
        network, z = (self._finishing.frozen or network).settled(z)
        return Result(
            image=channels_last(image)[0],
            network=network,
            z=z,
            history=self.history(),
            steps=self.steps,
            best_step=self.best_step,
            stop_reason="interrupted" if self.interrupted else self.stop_reason,
            seconds=self.seconds,
            events=list(self.events),
            kept=None if kept is None else (channels_last(kept[0])[0], channels_last(kept[1])[0]),
            estimated_psnr=self.objective.estimated_psnr,
            estimated_psnrs=self.objective.estimated_psnrs,
            guide_psnr=self.objective.guide_psnr,
            images=None if several is None else channels_last(several),
        )

    def state(self) -> State:
        """Copy all that the rest of the fit depends on."""
        steps = self._steps.state_dict()
        history = torch.tensor(self.rows, dtype=torch.float64).reshape(-1, len(COLUMNS))
        numbers = {
            "steps": self.steps,
            "seconds": self.seconds,
            "stop_reason": self.stop_reason,
            "events": list(self.events),
            "learning_rate_factor": self._learning_rate_factor,
        }
        fitted = {f"fitted{i}.{name}": v.clone() for i, one in enumerate(self.fitted) for name, v in one.items()}
        return State({**steps.tensors, **fitted, "history": history}, {**steps.numbers, **numbers})

    def load_state(self, state: State) -> None:
        """Go back, or forward, to a state of a fit that was prepared in the same way."""
        self._steps.load_state_dict(state)
        self.rows = [(int(step), *row) for step, *row in state.tensors["history"].tolist()]
        numbers = state.numbers
        self.steps = numbers["steps"]
        self.fitted = [
            {name: state.tensors[f"fitted{i}.{name}"].to(self.device) for name in self._steps.parameters}
            for i in range(min(self.steps // self.share, len(self._others)))
        ]
        self.seconds = numbers["seconds"]
        self.stop_reason = numbers["stop_reason"]
        self.events = list(numbers["events"])
        self._learning_rate_factor = numbers["learning_rate_factor"]

    def answer(self) -> dict[str, Tensor]:
        """Weights of the answer so far, by name."""
        if self._finishing.weights:
            return self._finishing.weights
        if not self.steps:
            return self._steps.parameters
        if self.fitted and not self.stop_reason and self.steps // self.share == len(self.fitted):
            return self.fitted[-1]  # the network that is fitted now draws no picture yet
        averages = self.averages()
        averages.pop(PICTURE)
        return averages

    def _schedule(self, step: int) -> tuple[float, ...]:
        """Compute what a step is given: its learning rate, and the weights of the newest values in the averages."""
        options = self.options
        since = (step - 1) % self.share + 1
        rate = self._learning_rate_factor * options.learning_rate_at(since, self.share)
        weight = weight_of_newest(options.averaging, options.averaging_window, since)
        return rate, weight, *MovingVariance.weights(step)

    def steps_until_sync(self, callbacks: Sequence[Callable[[Fit], None]], done: int, total: int) -> int:
        """Count the steps to make before the host reads the device, of which ``done`` of ``total`` are made."""
        if self._steps.reads_are_free:
            return 1
        every = (MAX_STEPS_BETWEEN_SYNCS, *periods(callbacks))
        return min(self._pace, total - done, *(period - done % period for period in every))

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Set the threads, the precision and the GPU that steps are made with."""
        gpu = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        with self._threads, products(self.precision, self.device), gpu:
            yield
        large.rest()

    def count_time(self, seconds: float, steps: int = 0) -> None:
        """Add the time that work has taken, and set the pace by it where it was steps."""
        self.seconds += seconds
        if steps:
            self._pace = self._fixed_pace or max(1, int(steps * SECONDS_BETWEEN_SYNCS / seconds))

    def _fault(self, loss: float) -> str:
        """Describe what is wrong with a loss."""
        if not math.isfinite(loss):
            return f"the loss became {loss}"
        return f"the loss jumped from {self._steps.numbers.loss_level:.3g} to {loss:.3g}"

    def _fall_back(self, fault: str) -> None:
        """Go back to the last good state and go on at half the learning rate."""
        events, factor, seconds, step = self.events, self._learning_rate_factor / 2, self.seconds, self.steps + 1
        self.load_state(self.kept)
        self._learning_rate_factor = factor
        self.seconds = seconds
        event = {"step": step, "fault": fault, "back_to_step": self.steps, "learning_rate_factor": factor}
        self.events = [*events, event]
        if len(self.events) > MAX_FALLBACKS:
            raise DipFastError(
                f"{fault} at step {step}, as it did {MAX_FALLBACKS} times before at ever smaller learning rates; "
                "check the picture for values that do not belong there"
            )
