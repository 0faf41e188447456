"""Where the time of a step on a CPU goes, and the floors under it."""

from __future__ import annotations

import bisect
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.profiler import record_function

from dip_fast.bench import floors
from dip_fast.bench.meters import Meter
from dip_fast.fitting import Fit

PROFILED_STEPS = 3  # under the profiler
STEP = "dip-fast: step"
# Marks in the trace, and the part of the step that begins there.
PARTS = {
    "dip-fast: network begins": "forward",
    "dip-fast: network ends": "rest",
    "dip-fast: gradient arrives at the network": "backward",
    "dip-fast: gradients are complete": "rest",
}
OUTSIDE = "outside operators"
LAYERS = "dip_fast::norm_layers"


def profile(fit: Fit, idle: Fit, steps: int, meter: Meter) -> dict[str, Any]:
    """Time the steps of a fit on a CPU and the floors under them, and profile some more.

    Parameters
    ----------
    fit, idle : Fit
        See `floors.measure`; ``fit`` advances by ``steps + 6`` steps.
    steps : int
        The number of steps whose median is taken.
    meter : Meter

    Returns
    -------
    dict
        What `floors.measure` returns.  For a step under the profiler: ``step_seconds``;
        ``forward_seconds`` and ``backward_seconds`` of the network; ``rest_seconds``, and ``rest_share`` of the step;
        ``operators``, most time first, each with ``name``, ``calls``, ``seconds`` and its parts ``forward``,
        ``backward`` and ``rest``.  The time of an operator excludes that of operators which it calls, except for
        those of dip_fast.
    """
    return {**floors.measure(fit, idle, steps, meter), **_profile_steps(fit)}


def _profile_steps(fit: Fit) -> dict[str, Any]:
    """Make some steps under the profiler and sum up its events, per step."""
    with (
        _marked(fit.network),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler,
    ):
        for _ in range(PROFILED_STEPS):
            with record_function(STEP):
                fit.step()
    events = list(profiler.events() or [])
    parts = _parts(events)
    whole = sum(event.cpu_time_total for event in events if event.name == STEP)
    parts["rest"] = whole - parts["forward"] - parts["backward"]
    operators = _operators(events)
    for part, time_in_it in parts.items():
        operators[OUTSIDE][part] = time_in_it - sum(operator[part] for operator in operators.values())
    per_step = 1e-6 / PROFILED_STEPS  # the profiler counts in microseconds
    return {
        "step_seconds": whole * per_step,
        **{f"{part}_seconds": value * per_step for part, value in parts.items()},
        "rest_share": parts["rest"] / whole,
        "operators": sorted(
            (
                {
                    "name": name,
                    "calls": found["calls"] / PROFILED_STEPS,
                    "seconds": sum(found[part] for part in parts) * per_step,
                    **{part: found[part] * per_step for part in parts},
                }
                for name, found in operators.items()
            ),
            key=lambda operator: -operator["seconds"],
        ),
    }


@contextmanager
def _marked(network: nn.Module) -> Iterator[None]:
    """Put the marks of `PARTS` into the trace where the network's forward and backward passes begin and end."""
    begins, ends, arrives, complete = PARTS

    def mark(name: str) -> None:
        with record_function(name):
            pass

    def on_gradient(gradient: Tensor) -> None:
        mark(arrives)
        torch.autograd.Variable._execution_engine.queue_callback(lambda: mark(complete))

    def on_output(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        mark(ends)
        output.register_hook(on_gradient)

    hooks = [network.register_forward_pre_hook(lambda *_: mark(begins)), network.register_forward_hook(on_output)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _parts(events: Iterable[Any]) -> dict[str, float]:
    """Sum up the time between the marks, in microseconds, by part of the step."""
    marks = sorted((event.time_range.start, PARTS[event.name]) for event in events if event.name in PARTS)
    parts = {"forward": 0.0, "backward": 0.0}
    for (begin, part), (end, _) in itertools.pairwise(marks):
        if part in parts:
            parts[part] += end - begin
    return parts


def _operators(events: Iterable[Any]) -> defaultdict[str, dict[str, float]]:
    """Sum up calls and time, in microseconds, by operator and by part of the step."""
    marks = sorted((event.time_range.start, PARTS[event.name]) for event in events if event.name in PARTS)
    starts = [start for start, _ in marks]
    operators: defaultdict[str, dict[str, float]] = defaultdict(
        lambda: dict.fromkeys(("calls", *set(PARTS.values())), 0.0)
    )
    for event in events:
        owner = event
        caller = event.cpu_parent
        while caller is not None:
            # norm_layers does nothing but call the others.
            owner = caller if caller.name.startswith("dip_fast::") and caller.name != LAYERS else owner
            caller = caller.cpu_parent
        if "::" not in owner.name or owner.name.split("::")[0] in ("autograd", "torch"):
            continue
        at = bisect.bisect_right(starts, event.time_range.start) - 1
        found = operators[owner.name]
        found[marks[at][1] if at >= 0 else "rest"] += event.self_cpu_time_total
        found["calls"] += owner is event
    return operators
