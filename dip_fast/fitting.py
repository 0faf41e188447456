"""The loop: fit an untrained network to one damaged picture."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dip_fast import engines, networks
from dip_fast.averaging import MovingAverage
from dip_fast.degradations import Degradation
from dip_fast.errors import DipFastError
from dip_fast.network_input import NetworkInput, draw
from dip_fast.presets import FitOptions, Recipe
from dip_fast.reductions import mean_square
from dip_fast.stopping import MovingVariance

KEEP_EVERY = 50  # steps between the states that a loss gone wrong falls back to
JUMP = 10.0  # a loss this many times its moving mean has lost the picture (10 dB)
MOST_FALLBACKS = 8  # by then the learning rate is 1/256 of what it was: the fault lies elsewhere
PICTURE = "picture"  # name of the averaged iterate beside the averaged weights
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam, as torch names them
VARIANCE = ("variance", "value", "best", "best_step")  # numbers of the stopping statistic
COLUMNS = ("step", "loss", "learning_rate", "variance", "psnr")


@dataclass(frozen=True)
class State:
    """All that the rest of a fit depends on: tensors by name, and numbers that JSON holds."""

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What a fit gave.

    Attributes
    ----------
    image : ndarray
        ``(H, W, C)``, float32, range [0, 1].
    network : Module
        With the averaged weights that draw ``image`` from ``z``.
    z : NetworkInput
    history : dict of str to ndarray
        One value a step: ``step``, ``loss``, ``learning_rate``, ``variance`` (the stopping statistic) and, with a
        reference, ``psnr`` of the iterate in dB.
    steps, best_step : int
        Steps done, and the one whose averaged weights are the answer.
    stop_reason : {"iterations", "variance", "interrupted"}
    seconds : float
        Spent in the loop.
    events : list of dict
        Losses that became NaN or jumped, and what was done.
    kept : tuple of ndarray, optional
        Where the image's pixels were not drawn but are those of the target, bool ``(H, W, 1)``, and the target,
        float32 ``(H, W, C)``.
    """

    image: np.ndarray
    network: nn.Module
    z: NetworkInput
    history: dict[str, np.ndarray]
    steps: int
    best_step: int
    stop_reason: str
    seconds: float
    events: list[dict[str, Any]]
    kept: tuple[np.ndarray, np.ndarray] | None = None


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

    Attributes
    ----------
    steps, consolidation_steps : int
        Steps done, and steps of consolidation done after them.
    stop_reason : str
        Why there are no more steps; empty while the fit goes on.
    interrupted : bool
    iterate : Tensor
        The network's image at the last step, at the perturbed z, ``(1, C, H, W)``.
    rows : list of tuple
        The history, a row a step, in the order of ``COLUMNS``.
    kept : State
        What a loss gone wrong falls back to.
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
    ) -> None:
        from dip_fast.ops import perturb  # here, since it loads or builds the extension

        self.device = torch.device(device)
        self.network = network.to(self.device)
        self.z = z
        self.degradation = degradation.to(self.device)
        self.options = options
        self.reference = None if reference is None else reference.to(self.device)

        self._workspace, self._threads = _workspace(self.network), _threads(self.network)
        self._codes = z.codes.to(self.device)
        self._parameters = dict(self.network.named_parameters())
        self._optimizer = torch.optim.Adam(self._parameters.values(), lr=options.learning_rate, fused=True)
        self._perturb = perturb
        self._seed = seed
        self._average = MovingAverage(options.averaging, options.averaging_window)  # weights, then iterate
        self._best: list[Tensor] = []  # the average as it was at the minimum of the variance
        self._consolidated: list[Tensor] = []
        self._variance = MovingVariance()
        self._perturbation = options.perturbation
        if self._perturbation is None:
            self._perturbation = min(max(degradation.noise() / 3, 1 / 100), 1 / 30)
        self._loss_level = math.nan
        self._learning_rate_factor = 1.0

        self.steps = 0
        self.consolidation_steps = 0
        self.seconds = 0.0
        self.stop_reason = ""
        self.interrupted = False
        self.events: list[dict[str, Any]] = []
        self.rows: list[tuple[float, ...]] = []
        self.iterate = torch.empty(0)
        self.kept = self.state()

    @property
    def best_step(self) -> int:
        """Step whose average is the answer."""
        return self._variance.best_step if self.options.stop == "auto" and self._best else self.steps

    def history(self) -> dict[str, np.ndarray]:
        """Give the history, a value a step, by column."""
        table = np.array(self.rows, dtype=np.float64).reshape(-1, len(COLUMNS))
        return {name: table[:, i] for i, name in enumerate(COLUMNS)}

    def interrupt(self) -> None:
        """End the fit after the step that is being made; safe to call from a signal handler."""
        self.interrupted = True

    def run(self, callbacks: Sequence[Callable[[Fit], None]] = ()) -> None:
        """Step until the fit is over; each callback is called with the fit after each step."""
        while not self.stop_reason and not self.interrupted:
            self.step()
            for callback in callbacks:
                callback(self)
        if not self.interrupted:
            self._consolidate(callbacks)

    def step(self) -> None:
        """Make one step: perturb z, draw, compare, update the weights and what is known of them."""
        with self._threads:
            self._step()

    def _step(self) -> None:
        started = time.perf_counter()
        step = self.steps + 1
        learning_rate = self._learning_rate_factor * self.options.learning_rate_at(step)
        self._optimizer.param_groups[0]["lr"] = learning_rate

        if self._perturbation:
            z = self._perturb(self._codes, self._perturbation, self._seed, step, self.z.denominator)
        else:
            z = self.z.tensor(self.device)
        x = networks.crop(self.network(z), *self.degradation.size)
        data_term = self.degradation.data_term(x)
        loss = data_term.item()
        if fault := self._fault(loss):
            self._fall_back(fault)
            return
        self._optimizer.zero_grad(set_to_none=True)
        data_term.backward()
        self._optimizer.step()

        self.steps = step
        self.iterate = x.detach()
        self._average.update((*self._parameters.values(), self.iterate), step)
        if self._variance.update(self.iterate, step) and self.options.stop == "auto":
            self._keep_best()
        self.rows.append((step, loss, learning_rate, self._variance.value, self._psnr(self.iterate)))
        keep = step % KEEP_EVERY == 0
        # A gradient can overflow under a finite loss; the next loss would tell too late.
        if (keep or step >= self.options.iterations) and not self._weights_are_finite():
            self._fall_back("the weights became infinite")
            return
        patience = self.options.patience * self.options.iterations
        if step >= self.options.iterations:
            self.stop_reason = "iterations"
        elif self.options.stop == "auto" and self._variance.best_step and step - self._variance.best_step >= patience:
            self.stop_reason = "variance"
        self.seconds += time.perf_counter() - started
        if keep:
            self.kept = self.state()

    def draw(self) -> Tensor:
        """Draw the answer so far at the unperturbed z, ``(1, C, H, W)``, known pixels put back."""
        with torch.no_grad(), self._threads:
            output = torch.func.functional_call(self.network, self._answer(), (self.z.tensor(self.device),))
            return self.degradation.composite(networks.crop(output, *self.degradation.size))

    def result(self) -> Result:
        """Give the answer and load its weights into the network; the fit cannot go on afterwards."""
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
        averaged = (*self._parameters, PICTURE)
        groups: list[tuple[str, Iterable[str], Iterable[Tensor]]] = [
            ("network", self._parameters, self._parameters.values()),
            ("average", averaged, self._average.values),
            ("best", averaged, self._best),
        ]
        for moment in MOMENTS if self.steps else ():
            values = [self._optimizer.state[parameter][moment] for parameter in self._parameters.values()]
            groups.append((moment, self._parameters, values))
        tensors = {
            f"{group}.{name}": value.detach().clone()
            for group, names, values in groups
            for name, value in zip(names, values, strict=False)
        }
        if self._variance.mean is not None:
            tensors["variance.mean"] = self._variance.mean.clone()
        tensors["history"] = torch.tensor(self.rows, dtype=torch.float64).reshape(-1, len(COLUMNS))
        numbers = {
            "steps": self.steps,
            "seconds": self.seconds,
            "stop_reason": self.stop_reason,
            "events": list(self.events),
            "learning_rate_factor": self._learning_rate_factor,
            "loss_level": self._loss_level,
            "variance": [getattr(self._variance, name) for name in VARIANCE],
        }
        return State(tensors, numbers)

    def load_state(self, state: State) -> None:
        """Go back, or forward, to a state of a fit that was prepared in the same way."""
        tensors, numbers = state.tensors, state.numbers
        self.steps = numbers["steps"]
        self._optimizer.state.clear()
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(tensors[f"network.{name}"])
                if self.steps:
                    moments = {moment: tensors[f"{moment}.{name}"].to(self.device, copy=True) for moment in MOMENTS}
                    step = torch.tensor(float(self.steps), device=self.device)
                    self._optimizer.state[parameter] = {"step": step, **moments}
        self._average.values, self._best = (
            [
                tensors[f"{group}.{name}"].to(self.device, copy=True)
                for name in (*self._parameters, PICTURE)
                if f"{group}.{name}" in tensors
            ]
            for group in ("average", "best")
        )
        mean = tensors.get("variance.mean")
        self._variance.mean = None if mean is None else mean.to(self.device, copy=True)
        for name, value in zip(VARIANCE, numbers["variance"], strict=True):
            setattr(self._variance, name, value)
        self.rows = [tuple(row) for row in tensors["history"].tolist()]
        self.seconds = numbers["seconds"]
        self.stop_reason = numbers["stop_reason"]
        self.events = list(numbers["events"])
        self._learning_rate_factor = numbers["learning_rate_factor"]
        self._loss_level = numbers["loss_level"]

    def _answer(self) -> dict[str, Tensor]:
        """Weights of the answer so far, by name."""
        values = self._consolidated or self._averaged() or self._parameters.values()
        return dict(zip(self._parameters, values, strict=False))

    def _averaged(self) -> list[Tensor]:
        """Give the averages that the answer starts from: weights, then the picture."""
        return self._best if self.options.stop == "auto" and self._best else self._average.values

    def _consolidate(self, callbacks: Sequence[Callable[[Fit], None]]) -> None:
        """Fit the averaged network, at the unperturbed z, to the averaged picture.

        It starts from the averages alone, so an interrupted one is dropped and made anew when the fit is resumed.
        """
        *weights, picture = self._averaged()
        weights = [value.clone().requires_grad_() for value in weights]
        named = dict(zip(self._parameters, weights, strict=True))
        optimizer = torch.optim.Adam(weights, fused=True)
        z = self.z.tensor(self.device)
        while self.consolidation_steps < self.options.consolidation_steps and not self.interrupted:
            started = time.perf_counter()
            with self._threads:
                output = torch.func.functional_call(self.network, named, (z,))
                x = networks.crop(output, *self.degradation.size)
                optimizer.param_groups[0]["lr"] = self.options.consolidation_rate_at(self.consolidation_steps + 1)
                optimizer.zero_grad(set_to_none=True)
                mean_square(x - picture).backward()
                optimizer.step()
            self.consolidation_steps += 1
            self.seconds += time.perf_counter() - started
            for callback in callbacks:
                callback(self)
        if not self.interrupted:
            self._consolidated = [value.detach() for value in weights]

    def _psnr(self, image: Tensor) -> float:
        """PSNR in dB at data range 1; NaN without a reference."""
        if self.reference is None:
            return math.nan
        error = mean_square(image.clamp(0, 1) - self.reference).item()
        return -10 * math.log10(max(error, 2.0**-48))

    def _keep_best(self) -> None:
        """Keep the averages of now, in the memory of the last ones."""
        if self._best:
            torch._foreach_copy_(self._best, self._average.values)
        else:
            self._best = [value.clone() for value in self._average.values]

    def _weights_are_finite(self) -> bool:
        return all(bool(parameter.isfinite().all()) for parameter in self._parameters.values())

    def _fault(self, loss: float) -> str:
        """Say what is wrong with a loss; nothing, mostly."""
        if not math.isfinite(loss):
            return f"the loss became {loss}"
        if loss > JUMP * self._loss_level:
            return f"the loss jumped from {self._loss_level:.3g} to {loss:.3g}"
        level = loss if math.isnan(self._loss_level) else self._loss_level
        self._loss_level = level + 0.1 * (loss - level)
        return ""

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


def _workspace(network: networks.Network) -> object:
    """Give what keeps the memory of the fused engine between steps, while it is referred to."""
    if not network.is_fused():
        return None
    from dip_fast.ops.workspace import Workspace  # here, since it loads or builds the extension

    return Workspace()


def _threads(network: networks.Network) -> AbstractContextManager[Any]:
    """Give what a step runs in: threads of the operators' own, where there is hardly anything beside them."""
    if not network.is_wholly_fused():
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
    reference: Tensor | None = None,
) -> Fit:
    """Build the network and its input from a recipe, ready for the first step.

    The seed gives the first weights, z and the perturbations, each its own stream; the caller's random state is left
    as it was.
    """
    for_network, for_z, for_perturbation = (int(s) for s in np.random.SeedSequence(seed).generate_state(3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(for_network)
        network = networks.build(recipe.network, recipe.in_channels, degradation.channels, **recipe.network_options)
    network.use(engines.choose(engine, network, torch.device(device)))
    z = draw(recipe.distribution, recipe.in_channels, network.input_size(*degradation.size), seed=for_z)
    return Fit(network, z, degradation, recipe.options, seed=for_perturbation, device=device, reference=reference)


def fit(
    degradation: Degradation,
    recipe: Recipe,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    engine: str = "auto",
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
    reference : Tensor, optional
        Ground truth ``(1, C, H, W)``, range [0, 1], for the PSNR in the history.
    callbacks : sequence of callable
        Called with the `Fit` after each step; ``fit.interrupt()`` ends it.

    Returns
    -------
    Result

    Raises
    ------
    DipFastError
        If the loss goes wrong again and again.
    UsageError
        If the fused engine is asked for and cannot be had.
    """
    run = prepare(degradation, recipe, seed=seed, device=device, engine=engine, reference=reference)
    run.run(callbacks)
    return run.result()
