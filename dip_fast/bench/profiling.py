"""Where the time of a step goes, and the floor under it: its multiplications at the rate of a large matrix product."""

from __future__ import annotations

import bisect
import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.profiler import record_function

from dip_fast.bench.meters import CPUMeter
from dip_fast.errors import UsageError
from dip_fast.fitting import Fit
from dip_fast.networks.skip import Scale, Skip

MATRIX_SIDE = 2048  # of the matrices whose product is timed for the rate
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


def multiplications(network: nn.Module) -> float:
    """Count the multiplications of the skip network in its fused form, forward, per pixel of its output.

    With C channels in and K out, and per pixel that the convolution writes:

        1x1                       C K
        3x3, stride 1             16/4 C K     Winograd F(2x2): 16 products for 4 pixels
        k x k, stride s           k^2 C K
        3x3 after upsampling      9/4 C K      9 products for 4 pixels: docs/notes/operator.md

    A convolution that has S skip channels beside the upsampled ones takes ``9 S K`` for these, directly.

    Raises
    ------
    UsageError
        If it is another network.
    """
    if not isinstance(network, Skip):
        raise UsageError(f"the floor is known for the skip network, not for {type(network).__name__.lower()}")
    total = network.head.in_channels * network.head.out_channels * 1.0
    area = 1.0  # of the scale's full resolution, in pixels of the output
    scale: Scale | None = network.scale
    while scale is not None:
        stride = scale.reduce.conv.stride[0]
        skip = 0
        if scale.skip is not None:
            skip = scale.skip.conv.out_channels
            total += area * _products(scale.skip.conv)
        total += area / stride**2 * _products(scale.reduce.conv)
        total += area / 4 * _products(scale.deepen.conv)
        conv = scale.merge.conv
        taps = conv.kernel_size[0] ** 2
        upsampled = 9 / 4 if taps == 9 else taps
        total += area * conv.out_channels * (upsampled * (conv.in_channels - skip) + taps * skip)
        if scale.mix is not None:
            total += area * _products(scale.mix.conv)
        area /= 4
        scale = scale.inner
    return total


def _products(conv: nn.Conv2d | nn.ConvTranspose2d) -> float:
    """Count the multiplications of a convolution per pixel that it writes."""
    taps = conv.kernel_size[0] * conv.kernel_size[1]
    by_winograd = conv.kernel_size == (3, 3) and conv.stride == (1, 1)
    return (16 / 4 if by_winograd else taps) * conv.in_channels * conv.out_channels


def profile(fit: Fit, steps: int) -> dict[str, Any]:
    """Time the steps of a fit on a CPU, in turn with a matrix product, and profile some more.

    Parameters
    ----------
    fit : Fit
        A fit of the skip network; it advances by ``steps + 5`` steps.
    steps : int
        The number of steps whose median is taken.

    Returns
    -------
    dict
        ``median_step_seconds``; ``mm_flop_per_second`` of ``torch.mm``, 2048x2048, float32; ``multiplications``
        per pixel; ``floor_seconds``, the time that they take at this rate, forward and for both gradients;
        ``share_of_floor``, the floor over the step. For a step under the profiler: ``step_seconds``;
        ``forward_seconds`` and ``backward_seconds`` of the network; ``rest_seconds``, and ``rest_share`` of the step;
        ``operators``, most time first, each with ``name``, ``calls``, ``seconds`` and its parts ``forward``,
        ``backward`` and ``rest``.  The time of an operator excludes that of operators which it calls, except for
        those of dip_fast.
    """
    a, b = (torch.randn(MATRIX_SIDE, MATRIX_SIDE, generator=torch.Generator().manual_seed(i)) for i in range(2))
    product = torch.empty(MATRIX_SIDE, MATRIX_SIDE)

    def mm() -> None:
        torch.mm(a, b, out=product)

    for _ in range(2):
        fit.step()
        mm()
    clock = CPUMeter()
    pairs = [(clock.seconds(fit.step), clock.seconds(mm)) for _ in range(steps)]
    step, once = (statistics.median(times) for times in zip(*pairs, strict=True))
    rate = 2 * MATRIX_SIDE**3 / once
    count = multiplications(fit.network)
    height, width = fit.network.input_size(*fit.objective.scene)
    floor = 3 * 2 * count * height * width / rate
    return {
        "median_step_seconds": step,
        "mm_flop_per_second": rate,
        "multiplications": count,
        "floor_seconds": floor,
        "share_of_floor": floor / step,
        **_profile_steps(fit),
    }


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
            owner = caller if caller.name.startswith("dip_fast::") else owner
            caller = caller.cpu_parent
        if "::" not in owner.name or owner.name.split("::")[0] in ("autograd", "torch"):
            continue
        at = bisect.bisect_right(starts, event.time_range.start) - 1
        found = operators[owner.name]
        found[marks[at][1] if at >= 0 else "rest"] += event.self_cpu_time_total
        found["calls"] += owner is event
    return operators
