"""Clock and memory of the devices that are measured: the same questions to a CPU and to a GPU."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import torch

from dip_fast.device import memory

WARM_UP = 3  # calls before any are measured: cuDNN tries its algorithms, Triton compiles, in the first ones
LONG = 0.005  # seconds that a graph takes at least, unless it has many calls: events tell microseconds apart
MOST_CALLS = 100
RUNS = 7  # measurements whose median is given


class Meter(Protocol):
    """What can be measured on a device.

    Attributes
    ----------
    batch : int
        Steps of a fit that are measured together, as their mean.
    """

    batch: int

    def seconds(self, function: Callable[[], object]) -> float:
        """Time a call, from when the device is idle until it is idle again."""

    def repeated(self, function: Callable[[], object]) -> tuple[Callable[[], object], int]:
        """Prepare a function for being timed by the device's own work: something to call, and how many calls it is."""

    def peaks(self) -> dict[str, int]:
        """Give the most memory that was taken, in bytes, by what it is that was taken."""


class CPUMeter:
    """Wall time, and the memory of the process."""

    batch = 1  # a step is long, and each is a measurement of its own

    def seconds(self, function: Callable[[], object]) -> float:
        """See `Meter`."""
        begin = time.perf_counter()
        function()
        return time.perf_counter() - begin

    def repeated(self, function: Callable[[], object]) -> tuple[Callable[[], object], int]:
        """See `Meter`: a call costs nothing beside its work."""
        for _ in range(WARM_UP):
            function()
        return function, 1

    def peaks(self) -> dict[str, int]:
        """Give ``peak_bytes``, the resident memory."""
        return {"peak_bytes": memory.peak_bytes()}


class CUDAMeter:
    """Events of the GPU's own clock, and PyTorch's allocator."""

    batch = 50  # steps of milliseconds, as many as a fit makes between two looks of the host

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
        """See `Meter`: as a graph of so many calls that it takes long enough, whose launches are not measured."""
        side = torch.cuda.Stream(self.device)  # warm-up belongs on another stream than the default one
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                function()
            calls = min(MOST_CALLS, math.ceil(LONG / max(self.seconds(function), 1e-6)))
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                function()
        graph.replay()  # the first one uploads it
        return graph.replay, calls

    def peaks(self) -> dict[str, int]:
        """Give ``peak_bytes``, of tensors, and ``reserved_bytes``, which the allocator took for them."""
        return {
            "peak_bytes": torch.cuda.max_memory_allocated(self.device),
            "reserved_bytes": torch.cuda.max_memory_reserved(self.device),
        }


def meter(device: torch.device) -> Meter:
    """Give the meter of a device."""
    return CUDAMeter(device) if device.type == "cuda" else CPUMeter()


def medians(functions: Mapping[str, Callable[[], object]], meter: Meter) -> dict[str, float]:
    """Time functions that belong together, in turn, in seconds a call."""
    prepared = {name: meter.repeated(function) for name, function in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(RUNS):
        for name, (run, calls) in prepared.items():
            times[name].append(meter.seconds(run) / calls)
    return {name: statistics.median(values) for name, values in times.items()}
