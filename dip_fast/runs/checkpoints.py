"""States of a fit on disk: one safetensors file whose header carries the numbers as JSON.  No pickle anywhere.

The header also holds a digest of the run that wrote the file, and a hash of all that is in it: a checkpoint goes on
with its own run, or is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dip_fast.errors import Argument, UsageError
from dip_fast.fitting.loop import MAX_FALLBACKS, Fit
from dip_fast.fitting.results import COLUMNS, State
from dip_fast.fitting.steps import RUNNING, STOPPED, Numbers
from dip_fast.fitting.stopping import MovingVariance
from dip_fast.pictures.files import one_line
from dip_fast.presets import FitOptions
from dip_fast.runs import typed

CHECKPOINT = "checkpoint.safetensors"  # its name in a run's folder
FORMAT = "dip-fast checkpoint 4"
AGAIN = Argument("overwrite", True)
NOW, KEPT = WHICH = ("now", "kept")
HISTORY = "history"
LARGEST = 1e12  # no weight, moment or picture of a fit comes near it


class Event(TypedDict):
    """A loss that went wrong, see `Fit`."""

    step: int
    fault: str
    back_to_step: int
    learning_rate_factor: float


class Counts(TypedDict):
    """Numbers of a state."""

    numbers: list[float]
    status: float
    steps: int
    seconds: float
    stop_reason: str
    events: list[Event]
    learning_rate_factor: float


def dump(fit: Fit, run: str) -> bytes:
    """Serialise a fit's state and, where it is another one, the state that a loss gone wrong falls back to.

    Parameters
    ----------
    fit : Fit
    run : str
        The digest of the run, `Record.digest`.
    """
    states = {NOW: fit.state()}
    if fit.kept.numbers["steps"] != fit.steps:
        states[KEPT] = fit.kept
    tensors = {
        f"{which}/{name}": tensor.cpu() for which, state in states.items() for name, tensor in state.tensors.items()
    }
    numbers = {which: json.dumps(state.numbers) for which, state in states.items()}
    return save(tensors, metadata={"format": FORMAT, "run": run, "sha256": digest_of(tensors, numbers), **numbers})


def load(path: Path, fit: Fit, run: str) -> None:
    """Bring a freshly prepared fit to where a checkpoint was written; it may have more steps to make by now.

    Raises
    ------
    UsageError
        If the file is not a checkpoint of this run, or is damaged.
    """
    try:
        states = _read(path, run)
        _load(states.get(KEPT, states[NOW]), fit)
        fit.kept = fit.state()
        _load(states[NOW], fit)
    except (OSError, SafetensorError, *typed.DAMAGE) as error:
        if isinstance(error, UsageError):
            raise
        what = one_line(str(error))[:200]
        raise UsageError("cannot resume: {} is damaged ({}); start again with {}", path, what, AGAIN) from error


def _read(path: Path, run: str) -> dict[str, State]:
    """Read the states of a checkpoint that a run wrote."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise UsageError("cannot resume: {} is not a checkpoint of this version; start again with {}", path, AGAIN)
        if metadata["run"] != run:
            raise UsageError(
                "cannot resume: {} is of another picture, seed or recipe than run.json; start again with {}",
                *(path, AGAIN),
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    numbers = {which: metadata[which] for which in WHICH if which in metadata}
    if metadata["sha256"] != digest_of(tensors, numbers):
        raise ValueError("it does not have the hash that it was written with")
    states = {}
    for which, text in numbers.items():
        own = {name.removeprefix(f"{which}/"): t for name, t in tensors.items() if name.startswith(f"{which}/")}
        states[which] = State(own, json.loads(text))
    return states


def digest_of(tensors: Mapping[str, Tensor], numbers: Mapping[str, str]) -> str:
    """Hash the tensors and the numbers, with their names, types and shapes."""
    found = hashlib.sha256(json.dumps(numbers, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"{name} {tensor.dtype} {[*tensor.shape]} ".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _load(state: State, fit: Fit) -> None:
    """Load a state that could have been written by such a fit.

    Raises
    ------
    ValueError
        If it could not.
    """
    _check(state, fit)
    state = State(state.tensors, {**state.numbers, **_end(state, fit.options)})
    fit.load_state(state)
    # What is loaded is what was written: no tensor is missing, was converted, or is of another shape.
    again = fit.state()
    if json.dumps(again.numbers, sort_keys=True) != json.dumps(state.numbers, sort_keys=True):
        raise ValueError("numbers of another kind")
    if again.tensors.keys() != state.tensors.keys():
        raise ValueError("other tensors than those of the network")
    for name, tensor in again.tensors.items():
        loaded = state.tensors[name]
        if (tensor.dtype, tensor.shape) != (loaded.dtype, loaded.shape):
            raise ValueError(f"{name} is {loaded.dtype} of {[*loaded.shape]}")


def _check(state: State, fit: Fit) -> None:
    """Refuse numbers that no fit has."""
    options = fit.options
    if not typed.conforms(state.numbers, Counts):
        raise ValueError("numbers of another type")
    numbers, steps = Numbers(*state.numbers["numbers"]), state.numbers["steps"]
    events, factor = state.numbers["events"], state.numbers["learning_rate_factor"]
    if not (
        0 <= steps <= options.iterations
        and numbers.steps == steps
        and numbers.best_step in range(steps + 1)
        and (steps % fit.share == 0 or (0 <= numbers.loss_level < LARGEST and 0 <= numbers.variance < LARGEST))
        and 0 <= state.numbers["seconds"] < LARGEST
        and len(events) <= MAX_FALLBACKS
        and factor == 0.5 ** len(events)
    ):
        raise ValueError("numbers that no fit has")
    history = state.tensors[HISTORY]
    if history.shape != (steps, len(COLUMNS)) or not torch.equal(history[:, 0], torch.arange(1.0, steps + 1).double()):
        raise ValueError(f"the history is not of {steps} steps")
    restarted = steps < options.iterations and steps % fit.share == 0
    if not _follow(numbers, history, 0 if restarted else (steps - 1) % fit.share + 1):
        raise ValueError("numbers that do not follow from the history")
    for name, tensor in state.tensors.items():
        known = tensor[:, :3] if name == HISTORY else tensor  # there may be no variance, and no PSNR
        if known.numel() and not known.abs().max() < LARGEST:
            raise ValueError(f"{name} holds values that no fit has")
        if name.startswith("exp_avg_sq.") and (tensor < 0).any():
            raise ValueError(f"{name} is negative")


def _follow(numbers: Numbers, history: Tensor, since: int) -> bool:
    """Whether the numbers are those that a history leads to: none of them can be another one without a word.

    ``since`` is the number of steps of the network that is fitted now.
    """
    if not since:
        return _same(numbers, Numbers(len(history)))
    losses, values = history[-since:, COLUMNS.index("loss")].tolist(), history[:, COLUMNS.index("variance")].tolist()
    level = losses[0]
    for loss in losses:
        level = level if level > 0 else loss
        level += 0.1 * (loss - level)
    if math.isnan(values[-1]):  # there was no second iterate, or there are none at all
        variance, value = 0.0, math.nan
    else:
        old = numbers.variance if math.isnan(values[-2]) else values[-2]
        variance = numbers.variance
        value = old + MovingVariance.weights(len(history))[1] * (variance - old)
    best_step = int(numbers.best_step)
    best = values[best_step - 1] if best_step else math.inf
    follows = Numbers(len(history), level, variance, value, best, best_step)
    return _same(numbers, follows) and _same([value], values[-1:])


def _same(numbers: Sequence[float], others: Sequence[float]) -> bool:
    """Whether numbers have the same values; NaN is NaN."""
    return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(numbers, others, strict=True))


def _end(state: State, options: FitOptions) -> dict[str, object]:
    """Compute whether a fit is over: after all of its steps, which may be more by now, or by its variance."""
    numbers, steps = Numbers(*state.numbers["numbers"]), state.numbers["steps"]
    patience = options.patience * options.iterations if options.stop == "auto" else math.inf
    late = numbers.best_step > 0 and steps - numbers.best_step >= patience
    reason = "iterations" if steps >= options.iterations else "variance" if late else ""
    return {"stop_reason": reason, "status": STOPPED if late else RUNNING}
