"""Clocks and memory counters: one interface for a CPU and a GPU."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch

from dip_fast.device import memory
from dip_fast.fitting import Fit

WARM_UP_CALLS = 3  # before any are measured: cuDNN tries its algorithms, Triton compiles, in the first ones
GRAPH_SECONDS = 0.005  # a graph takes at least so long, unless it has many calls: events resolve microseconds
MOST_CALLS = 100  # in a graph
RUNS = 7  # measurements whose median is taken


class Meter(Protocol):
    """What can be measured on a device.

    Attributes
    ----------
    batch : int
        The number of steps of a fit that are timed as one, and whose mean is the measurement.
    """

    batch: int

    def seconds(self, function: Callable[[], object]) -> float:
        """Time a call, from when the device is idle until it is idle again."""

    def repeated(self, function: Callable[[], object]) -> tuple[Callable[[], object], int]:
        """Prepare a function to be timed without the work of the host.

        Returns
        -------
        run : callable
        calls : int
            The number of calls of the function that one call of ``run`` makes.
        """

    def peaks(self) -> dict[str, int]:
        """Return the peak memory so far, in bytes, by kind."""


class CPUMeter:
    """The wall time, and the memory of the process."""

    batch = 1  # a step is long, and each is a measurement of its own

    def seconds(self, function: Callable[[], object]) -> float:
        """See `Meter`."""
        begin = time.perf_counter()
        function()
        return time.perf_counter() - begin

    def repeated(self, function: Callable[[], object]) -> tuple[Callable[[], object], int]:
        """See `Meter`: a call costs nothing beside its work."""
        for _ in range(WARM_UP_CALLS):
            function()
        return function, 1

    def peaks(self) -> dict[str, int]:
        """Return ``peak_bytes``, the resident memory."""
        return {"peak_bytes": memory.peak_bytes()}


class CUDAMeter:
    """Events of the GPU's own clock, and the counters of PyTorch's allocator."""

    batch = 50  # steps of milliseconds, as many as a fit makes between two reads of the host

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def seconds(self, function: Callable[[], object]) -> float:
        """See `Meter`; work on other streams than the current one counts too, as the end waits for all."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        begin.record()
        function()
        torch.cuda.synchronize(self.device)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def repeated(self, function: Callable[[], object]) -> tuple[Callable[[], object], int]:
        """See `Meter`: one CUDA graph of several calls, so that launches are not measured."""
        side = torch.cuda.Stream(self.device)  # warm-up belongs on another stream than the default one
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_CALLS):
                function()
            calls = min(MOST_CALLS, math.ceil(GRAPH_SECONDS / max(self.seconds(function), 1e-6)))
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                function()
        graph.replay()  # the first one uploads it
        return graph.replay, calls

    def peaks(self) -> dict[str, int]:
        """Return ``peak_bytes``, those of tensors, and ``reserved_bytes``, which the allocator took for them."""
        return {
            "peak_bytes": torch.cuda.max_memory_allocated(self.device),
            "reserved_bytes": torch.cuda.max_memory_reserved(self.device),
        }


def meter_for(device: torch.device) -> Meter:
    """Return the meter of a device."""
    return CUDAMeter(device) if device.type == "cuda" else CPUMeter()


def medians(functions: Mapping[str, Callable[[], object]], meter: Meter) -> dict[str, float]:
    """Time functions in turn; return the median of each, in seconds a call."""
    times = in_turn(functions, meter, runs=RUNS)
    return {name: statistics.median(values) for name, values in times.items()}


def in_turn(
    functions: Mapping[str, Callable[[], object]], meter: Meter, *, runs: int, seconds: float = 0.0
) -> dict[str, list[float]]:
    """Time functions in turn, so that a change in the machine's speed affects all of them.

    Parameters
    ----------
    functions : mapping of str to callable
    meter : Meter
    runs : int
        The least number of measurements of each function.
    seconds : float
        The time after which no more measurements follow, once there are so many.

    Returns
    -------
    dict of str to list of float
        The measurements, in seconds a call.
    """
    prepared = {name: meter.repeated(function) for name, function in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in functions}
    start, done = time.perf_counter(), 0
    while done < runs or time.perf_counter() - start < seconds:
        for name, (run, calls) in prepared.items():
            times[name].append(meter.seconds(run) / calls)
        done += 1
    return times


def step_seconds(fit: Fit, meter: Meter) -> float:
    """Time a step: the mean of a batch, which the fit makes as it does in a run."""

    def batch() -> None:
        end = fit.steps + meter.batch
        while fit.steps < end and not fit.events:
            fit.advance(end - fit.steps)

    return meter.seconds(batch) / meter.batch


@contextmanager
def cudnn_autotuning() -> Iterator[None]:
    """Let cuDNN try its algorithms for each shape and keep the fastest, as a user who fits one shape would."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
