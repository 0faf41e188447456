"""Measure whole fitting steps of the engines, each in a process of its own, in turn.

docs/notes/benchmarking.md gives the reasons.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing import connection
from typing import Any

import torch

from dip_fast.bench.configurations import ENGINES, BenchSettings, Configuration, configurations
from dip_fast.bench.machine import machine
from dip_fast.bench.serving import first_line
from dip_fast.bench.workers import Worker
from dip_fast.device import devices
from dip_fast.errors import DipFastError

# An OpenMP thread spins for 10 ms after a step and takes no time later (all engines, two threads, Zen 3).
PAUSE_SECONDS = 0.05  # between the end of a step and the beginning of the next engine's
WARM_UP_STEPS, WARM_UP_SECONDS = 2, 5.0  # the warm-up ends at the first of the two
LEAST_TURNS, MOST_TURNS = 2, 50  # of each engine
TURN_SECONDS = 0.3  # measured steps fill a turn, one at least
START_COST = 256**2  # starting a configuration, in pixels of its picture: time is shared out by pixels and this
# torch.compile needs a minute or two for each of the networks, the first time; it may spend this part of the time.
COMPILE_SHARE = 0.55


def measure(settings: BenchSettings, log: Callable[[str], None] = lambda line: None) -> Iterator[list[dict[str, Any]]]:
    """Measure step time and peak memory of the engines.

    Parameters
    ----------
    settings : BenchSettings
    log : callable
        Receives a line on what is being done, or was left out and why.

    Yields
    ------
    list of dict
        For each size and upsampling a record of each engine: ``size``, ``upsampling``, ``engine``,
        ``median_step_seconds``, ``quartiles_step_seconds``, ``steps`` (measured), ``peak_memory_bytes`` (of the whole
        process; on a GPU of its tensors there, and ``reserved_memory_bytes`` with what the allocator holds beside
        them), ``alternating`` (whether the engines took turns), ``threads``, ``device``, ``precision``, ``preset`` and
        ``torch``.

    Raises
    ------
    UsageError
        If the settings name something that is not available here.
    DipFastError
        If a process ends before its time, or nothing can be measured.
    """
    begin = time.monotonic()
    groups = configurations(settings, log)
    groups = _compile_ahead(groups, None if settings.steps else begin + COMPILE_SHARE * settings.seconds, log)
    if not any(groups):
        raise DipFastError("no engine is left to measure")
    for i, group in enumerate(groups):
        if not group:
            continue
        weights = [later[0].size ** 2 + START_COST for later in groups[i:] if later]
        share = (begin + settings.seconds - time.monotonic()) * weights[0] / sum(weights)
        yield _measure_group(group, settings, share, log)


def profile(settings: BenchSettings, log: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Measure where the time of the fused step goes, and how far it is from its floor.

    Parameters
    ----------
    settings : BenchSettings
        ``engines`` and ``seconds`` are not used; ``steps`` is 5 by default.
    log : callable
        Receives a line on what is being done.

    Returns
    -------
    dict
        What `machine` returns, ``preset``, ``device``, ``precision``, ``threads``, and ``profiles``: for each size and
        upsampling what `profiling.profile` returns, on a GPU `roofline.profile`, with ``size`` and ``upsampling``.
    """
    fused = [group[0] for group in configurations(replace(settings, engines=("fused",)), log)]
    profiles = []
    for configuration in fused:
        log(f"profile of {configuration}")
        with Worker(configuration) as worker:
            found = worker.ask(f"profile {settings.steps or 5}")
        threads = found.pop("threads")
        profiles.append({"size": configuration.size, "upsampling": configuration.upsampling, **found})
    facts = {"device": fused[0].device, "precision": fused[0].precision, "threads": threads}
    return {**machine(), "preset": settings.preset, **facts, "profiles": profiles}


# --- torch.compile beforehand -------------------------------------------------------------------------------------


def _compile_ahead(
    groups: list[list[Configuration]], deadline: float | None, log: Callable[[str], None]
) -> list[list[Configuration]]:
    """Fill the cache of torch.compile for all that is measured with it.

    The processes that are measured later find the code in the cache, so that their peak memory is that of the steps.
    What does not compile, or not until the deadline, is left out.
    """
    for name, engine in ENGINES.items():
        if engine.compile_mode is not None:
            groups = _compile(name, groups, deadline, log)
    return groups


def _compile(
    name: str, groups: list[list[Configuration]], deadline: float | None, log: Callable[[str], None]
) -> list[list[Configuration]]:
    """Compile for one of the engines, as many networks at once as there is room for: compiling keeps one core busy.

    Autotuning goes by the clock, and would choose by what others do to it: one at a time.
    """
    waiting = deque(each for group in groups for each in group if each.engine == name)
    if not waiting:
        return groups
    room = devices.available_bytes(torch.device(waiting[0].device)) // max(each.needed_bytes() for each in waiting)
    at_once = max(1, min(os.cpu_count() or 1, int(room))) if ENGINES[name].compile_mode == "default" else 1
    log(f"compiling for torch.compile ({name}), which takes minutes the first time: {len(waiting)} in all")
    left_out: set[str] = set()
    with contextlib.ExitStack() as stack:
        running: dict[connection.Connection | Any, tuple[Worker, Configuration]] = {}
        while waiting or running:
            while waiting and len(running) < at_once:
                configuration = waiting.popleft()
                worker = stack.enter_context(Worker(configuration))
                worker.send("step")
                running[worker.answers] = worker, configuration
            limit = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = connection.wait(list(running), limit)
            if not ready:
                late = [*(configuration for _, configuration in running.values()), *waiting]
                for configuration in late:
                    log(f"left out, {configuration}: its network was not compiled in time; allow more seconds")
                left_out |= {str(configuration) for configuration in late}
                for worker, _ in running.values():
                    worker.kill()
                break
            for answers in ready:
                worker, configuration = running.pop(answers)
                try:
                    worker.receive()
                except DipFastError as error:
                    log(f"left out, {first_line(error)}")
                    left_out.add(str(configuration))
                worker.close()
    return [[each for each in group if str(each) not in left_out] for group in groups]


# --- measuring ----------------------------------------------------------------------------------------------------


def _measure_group(
    group: list[Configuration], settings: BenchSettings, seconds: float, log: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure the engines of one size and upsampling."""
    title = group[0].group
    needed = sum(each.needed_bytes() for each in group)
    alternating = needed <= devices.available_bytes(torch.device(group[0].device))
    if not alternating:
        log(f"{title}: the memory is too small for all engines at once; they run one after the other")
    records = []
    for alternates in [group] if alternating else [[each] for each in group]:
        until = time.monotonic() + seconds * len(alternates) / len(group)
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(Worker(each)) for each in alternates]
            log(f"{title}: {', '.join(each.engine for each in alternates)}")
            measured = _take_turns(workers, settings.steps, group[0].meter.batch, until)
        for configuration, answers in zip(alternates, measured, strict=True):
            records.append(_record(configuration, answers, settings.preset, alternating))
    return records


def _take_turns(workers: Sequence[Worker], steps: int | None, batch: int, until: float) -> list[list[dict[str, Any]]]:
    """Run the workers in turn, for a number of steps or until a time.

    The first answer of a turn is not measured: the caches hold another engine's data then, and the threads sleep.
    The following ones are, for `TURN_SECONDS`, or one of them where a number of steps is set.  On a GPU an answer is
    the mean of a batch of steps.
    """
    for worker in workers:
        _warm_up(worker, batch)
    measured: list[list[dict[str, Any]]] = [[] for _ in workers]
    fixed = math.ceil(steps / batch) if steps else None
    least, most = (fixed, fixed) if fixed else (LEAST_TURNS, MOST_TURNS)
    turns, longest = 0, 0.0
    while turns < least or (turns < most and time.monotonic() + longest < until):
        begin = time.monotonic()
        for worker, answers in zip(workers, measured, strict=True):
            time.sleep(PAUSE_SECONDS)
            worker.ask("step")
            spent = 0.0
            while spent == 0 or (spent < TURN_SECONDS and not steps):
                answers.append(worker.ask("step"))
                spent += batch * answers[-1]["seconds"]
        turns += 1
        longest = max(longest, time.monotonic() - begin)
    return measured


def _warm_up(worker: Worker, batch: int) -> None:
    spent, made = 0.0, 0
    while made < WARM_UP_STEPS and spent < WARM_UP_SECONDS:
        spent += batch * worker.ask("step")["seconds"]
        made += 1


def _record(
    configuration: Configuration, answers: Sequence[Mapping[str, Any]], preset: str, alternating: bool
) -> dict[str, Any]:
    """Sum up the answers of an engine, as `measure` describes."""
    seconds = [answer["seconds"] for answer in answers]
    quartiles = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else 3 * seconds
    return {
        "size": configuration.size,
        "upsampling": configuration.upsampling,
        "engine": configuration.engine,
        "median_step_seconds": quartiles[1],
        "quartiles_step_seconds": [quartiles[0], quartiles[2]],
        "steps": len(seconds) * configuration.meter.batch,
        **{
            f"{name}_memory_bytes": max(answer[f"{name}_bytes"] for answer in answers)
            for name in ("peak", "reserved")
            if f"{name}_bytes" in answers[0]
        },
        "alternating": alternating,
        "threads": answers[0]["threads"],
        "device": configuration.device,
        "precision": configuration.precision,
        "preset": preset,
        "torch": torch.__version__,
    }
