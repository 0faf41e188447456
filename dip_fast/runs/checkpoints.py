"""States of a fit on disk: one safetensors file whose header carries the numbers as JSON.  No pickle anywhere."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from dip_fast.errors import Argument, UsageError
from dip_fast.fitting.loop import Fit
from dip_fast.fitting.results import State

CHECKPOINT = "checkpoint.safetensors"  # its name in a run's folder
FORMAT = "dip-fast checkpoint 3"
AGAIN = Argument("overwrite", True)
NOW, KEPT = WHICH = ("now", "kept")


def dump(fit: Fit) -> bytes:
    """Serialise a fit's state and, where it is another one, the state that a loss gone wrong falls back to."""
    states = {NOW: fit.state()}
    if fit.kept.numbers["steps"] != fit.steps:
        states[KEPT] = fit.kept
    tensors = {
        f"{which}/{name}": tensor.cpu() for which, state in states.items() for name, tensor in state.tensors.items()
    }
    numbers = {which: json.dumps(state.numbers) for which, state in states.items()}
    return save(tensors, metadata={"format": FORMAT, **numbers})


def load(path: Path, fit: Fit) -> None:
    """Bring a freshly prepared fit to where a checkpoint was written.

    Raises
    ------
    UsageError
        If the file is not a checkpoint of such a fit.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UsageError(
                    "cannot resume: {} is not a checkpoint of this version; start again with {}", path, AGAIN
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
        states = {}
        for which in WHICH:
            if which in metadata:
                own = {name.removeprefix(f"{which}/"): t for name, t in tensors.items() if name.startswith(f"{which}/")}
                states[which] = State(own, json.loads(metadata[which]))
        fit.load_state(states.get(KEPT, states[NOW]))
        fit.kept = fit.state()
        fit.load_state(states[NOW])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError("cannot resume: {} is damaged ({}); start again with {}", path, error, AGAIN) from error
