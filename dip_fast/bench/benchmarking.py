"""What ``dip-fast bench`` measures: whole fitting steps of the engines, each in a process of its own, taking turns.

docs/notes/benchmarking.md says why it measures so.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing import connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from dip_fast import networks
from dip_fast.bench import profiling, roofline
from dip_fast.bench.meters import Meter, meter
from dip_fast.device import devices, engines, precision
from dip_fast.errors import DipFastError, UsageError
from dip_fast.fitting import Fit, prepare
from dip_fast.fitting.degradations import Identity
from dip_fast.presets import PRESETS, FitOptions, Recipe

# By device; all but the fused one are plain PyTorch.
ENGINES = {
    "cpu": ("fused", "plain", "plain-retained", "compile"),
    "cuda": ("fused", "plain", "plain-channels-last", "compile", "compile-max-autotune"),
}
COMPILED = {"compile": "default", "compile-max-autotune": "max-autotune"}  # modes of torch.compile
RETAINED = ("fused", "plain-retained")  # run with `keep_memory`, the fused engine as the command line runs it
CHANNELS = 3

# An OpenMP thread spins for 10 ms after a step and takes no time later (all engines, two threads, Zen 3).
PAUSE = 0.05  # seconds between the end of a step and the next one's begin
WARM_UP = (2, 5.0)  # steps, or seconds of them, whichever is there first
ROUNDS = (2, 50)  # least and most turns of each engine
STEPS = 10**5  # of the recipe: more than anybody measures, so that none is the last
TURN = 0.3  # seconds of steps that are measured in a turn, one step at least
START = 256**2  # what starting a configuration costs, in pixels of its picture: shares of the time are by their sum
# torch.compile needs a minute or two for each of the networks, the first time; it may spend this part of the time.
COMPILING = 0.55
SHOWN = 15  # operators of a profile that are listed, out of some fifty
PROCESS = 0.5e9  # bytes of a process beside those of its fit: 0.2 with torch, 0.5 after it has compiled


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes
    ----------
    sizes : tuple of int
        Sides of the square pictures, in pixels, at least 16.
    upsampling : tuple of {"nearest", "bilinear"}
    preset : str
        Of the skip network; its upsampling is replaced.
    engines : tuple of str, optional
        Of `ENGINES` of the device.  All that can be had here unless given; one that is given and cannot be had is an
        error.
    threads : int, optional
        CPU threads of each process; those of this one by default.
    device : {"auto", "cpu", "cuda"}
    precision : {"fp32", "tf32", "bf16"}, optional
        Of the products on a GPU, of all engines; ``tf32`` by default.  A CPU computes in ``fp32``.
    seconds : float
        Time that all of it may take, starting and compiling included; every engine makes two measured steps at least,
        whatever they take.
    steps : int, optional
        Measured steps of each engine, in place of a time; on a GPU rounded up to whole batches.
    """

    sizes: tuple[int, ...] = (256, 512)
    upsampling: tuple[str, ...] = ("nearest", "bilinear")
    preset: str = "paper"
    engines: tuple[str, ...] | None = None
    threads: int | None = None
    device: str = "auto"
    precision: str | None = None
    seconds: float = 540.0
    steps: int | None = None


@dataclass(frozen=True)
class Job:
    """What a worker fits: all that it is told, as JSON."""

    engine: str
    size: int
    recipe: Recipe
    threads: int
    device: str
    precision: str = "fp32"

    @property
    def meter(self) -> Meter:
        """What it is measured with."""
        return meter(torch.device(self.device))

    @property
    def upsampling(self) -> str:
        """Of its network."""
        return str(self.recipe.network_options["upsampling"])

    def __str__(self) -> str:
        return f"{self.engine} at {place(self.size, self.upsampling)}"


def measure(settings: Settings, say: Callable[[str], None] = lambda line: None) -> Iterator[list[dict[str, Any]]]:
    """Measure step time and peak memory of the engines.

    Parameters
    ----------
    settings : Settings
    say : callable
        Takes a line on what is being done, or was left out and why.

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
        If the settings ask for what cannot be had here.
    DipFastError
        If a process ends before its time, or nothing can be measured.
    """
    begin = time.monotonic()
    groups = _jobs(settings, say)
    groups = _compile_ahead(groups, None if settings.steps else begin + COMPILING * settings.seconds, say)
    if not any(groups):
        raise DipFastError("no engine is left to measure")
    for i, jobs in enumerate(groups):
        if not jobs:
            continue
        weights = [group[0].size ** 2 + START for group in groups[i:] if group]
        share = (begin + settings.seconds - time.monotonic()) * weights[0] / sum(weights)
        yield _measure(jobs, settings, share, say)


def profile(settings: Settings, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Say where the time of the fused step goes, and how far it is from its floor.

    Parameters
    ----------
    settings : Settings
        ``engines`` and ``seconds`` are not used; ``steps`` is 5 unless given.
    say : callable
        Takes a line on what is being done.

    Returns
    -------
    dict
        What `machine` gives, ``preset``, ``device``, ``precision``, ``threads``, and ``profiles``: for each size and
        upsampling what `profiling.profile` gives, on a GPU `roofline.profile`, with ``size`` and
        ``upsampling``.
    """
    jobs = [job for (job,) in _jobs(replace(settings, engines=("fused",)), say)]
    profiles = []
    for job in jobs:
        say(f"profile of {job}")
        with Worker(job) as worker:
            found = worker.ask(f"profile {settings.steps or 5}")
        threads = found.pop("threads")
        profiles.append({"size": job.size, "upsampling": job.upsampling, **found})
    job = jobs[0]
    facts = {"preset": settings.preset, "device": job.device, "precision": job.precision, "threads": threads}
    return {**machine(), **facts, "profiles": profiles}


def machine() -> dict[str, Any]:
    """Name the CPU, its kernels (None without a build), the GPU and its driver (if any), and the version of torch."""
    from dip_fast.ops import extension  # here, since it loads or builds the extension

    names = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    module = extension.load()
    return {
        "cpu": names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine(),
        "kernels": module.cpu_level() if module is not None else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "driver": _driver(),
        "torch": torch.__version__,
    }


def _driver() -> str | None:
    """Read the version of the GPU's driver, None where there is none."""
    versions = [re.search(r"Kernel Module.*?(\d+\.\d[\d.]*)", line) for line in _lines("/proc/driver/nvidia/version")]
    return next((found[1] for found in versions if found), None)


def machine_line(facts: Mapping[str, Any]) -> str:
    """Say in a line what `machine` found, with the preset, threads and device of a record."""
    if facts["device"] == "cuda":
        return (
            f"{facts['gpu']}, driver {facts['driver'] or 'unknown'}, torch {facts['torch']}, {facts['precision']}, "
            f"preset {facts['preset']}"
        )
    threads = facts["threads"]
    return (
        f"{facts['cpu']}, kernels {facts['kernels'] or 'absent'}, torch {facts['torch']}, "
        f"{threads} thread{'s' if threads > 1 else ''}, {facts['device']}, preset {facts['preset']}"
    )


def table(records: Sequence[Mapping[str, Any]], *, head: bool = True) -> list[str]:
    """Write records as the lines of a table, with the ratios to the fused engine of the same size and upsampling."""
    unit, ours = ("ms", 1e3) if records[0]["device"] == "cuda" else ("s", 1.0)
    lines = []
    if head:
        lines.append(
            f"{'size':>9} {'upsampling':10} {'engine':20} {'step ' + unit:>8} {'quartiles':>17} {'ratio':>7} "
            f"{'peak MB':>8} {'ratio':>7} {'steps':>5}"
        )
    fused = {(r["size"], r["upsampling"]): r for r in records if r["engine"] == "fused"}
    for record in records:
        base = fused.get((record["size"], record["upsampling"]))
        ratios = {
            key: f"{record[key] / base[key]:.2f}x" if base else "-"
            for key in ("median_step_seconds", "peak_memory_bytes")
        }
        low, high = (ours * seconds for seconds in record["quartiles_step_seconds"])
        lines.append(
            f"{record['size']:>4}x{record['size']:<4} {record['upsampling']:10} {record['engine']:20} "
            f"{ours * record['median_step_seconds']:8.3f} {f'{low:.3f} - {high:.3f}':>17} "
            f"{ratios['median_step_seconds']:>7} {record['peak_memory_bytes'] / 1e6:8.0f} "
            f"{ratios['peak_memory_bytes']:>7} {record['steps']:5}"
        )
    return lines


def profile_lines(found: Mapping[str, Any]) -> list[str]:
    """Write one of the profiles of `profile` as lines."""
    return _roofline_lines(found) if "ceilings" in found else _time_lines(found)


def _time_lines(found: Mapping[str, Any]) -> list[str]:
    step = found["step_seconds"]
    lines = [
        f"{place(found['size'], found['upsampling'])}: a step takes {found['median_step_seconds']:.3f} s, "
        f"{found['share_of_floor']:.1%} of the floor's speed",
        f"floor {found['floor_seconds']:.3f} s: {found['multiplications']:,.0f} multiplications a pixel, 3 times "
        f"(forward, two gradients), 2 FLOP each, at the {found['mm_flop_per_second'] / 1e9:.0f} GFLOP/s of torch.mm",
        f"under the profiler {step:.3f} s: network forward {found['forward_seconds']:.3f} s, backward "
        f"{found['backward_seconds']:.3f} s, the rest of the loop {found['rest_seconds']:.3f} s "
        f"({found['rest_share']:.1%} of the step)",
        f"{'operator':44} {'calls':>6} {'ms':>9} {'share':>6} {'forward':>9} {'backward':>9} {'rest':>9}",
    ]
    operators = found["operators"]
    ours = [operator for operator in operators if operator["name"].startswith("dip_fast::")]
    rest = operators[SHOWN:]
    sums = [("sum of dip_fast::", ours), (f"sum of {len(rest)} more", rest), ("sum", operators)]
    summed = [{"name": name, **_sum(parts)} for name, parts in sums if parts]
    for operator in [*operators[:SHOWN], *summed]:
        columns = [f"{1e3 * operator[part]:9.2f}" for part in ("forward", "backward", "rest")]
        lines.append(
            f"{operator['name']:44} {operator['calls']:6.0f} {1e3 * operator['seconds']:9.2f} "
            f"{operator['seconds'] / step:6.1%} {' '.join(columns)}"
        )
    return lines


def _roofline_lines(found: Mapping[str, Any]) -> list[str]:
    ceilings, operators = found["ceilings"], found["operators"]
    rates = ", ".join(f"{name} {rate / 1e12:.1f} TFLOP/s" for name, rate in ceilings["flop_per_second"].items())
    lines = [
        f"{place(found['size'], found['upsampling'])}: a step takes {1e3 * found['median_step_seconds']:.3f} ms, its "
        f"operators, each alone, {1e3 * found['operators_seconds']:.3f} ms",
        f"floor {1e3 * found['floor_seconds']:.3f} ms, {found['share_of_floor']:.1%} of its speed: each tensor read "
        "and written once, or the form's multiplications, whichever takes longer",
        f"ceilings, measured: a copy {ceilings['bytes_per_second'] / 1e12:.2f} TB/s; torch.mm {rates}",
        f"{'operator':54} {'calls':>5} {_COLUMNS}",
    ]
    lines += [f"{operator['name']:54} {operator['calls']:5} {_columns(operator)}" for operator in operators]
    compared = found["upsample_conv2d"]
    size, channels = compared[0]["size"], compared[0]["channels"]
    lines += [
        "",
        f"upsample_conv2d, {channels} channels, {size}x{size} -> {2 * size}x{2 * size}, and interpolate, pad, conv2d",
        f"{'mode':8} {'pass':16} {_COLUMNS} {'plain ms':>9} {'NHWC ms':>9} {'ratio':>6}",
    ]
    return lines + [
        f"{record['mode']:8} {record['pass']:16} {_columns(record)} {1e3 * record['plain_seconds']:9.3f} "
        f"{1e3 * record['plain_channels_last_seconds']:9.3f} {record['ratio']:5.2f}x"
        for record in compared
    ]


_COLUMNS = f"{'ms':>8} {'GB/s':>7} {'TFLOP/s':>8} {'direct':>8} {'bound':>7} {'share':>6}"


def _columns(record: Mapping[str, Any]) -> str:
    return (
        f"{1e3 * record['seconds']:8.4f} {record['bytes_per_second'] / 1e9:7.0f} "
        f"{record['flop_per_second'] / 1e12:8.1f} {record['direct_flop_per_second'] / 1e12:8.1f} "
        f"{record['bound']:>7} {record['share']:6.1%}"
    )


def _sum(operators: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    keys = ("calls", "seconds", "forward", "backward", "rest")
    return {key: sum(operator[key] for operator in operators) for key in keys}


def plot(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw step time and peak memory of each engine as bars, as a PNG file."""
    from matplotlib.figure import Figure

    places = list(dict.fromkeys(place(record["size"], record["upsampling"]) for record in records))
    names = list(dict.fromkeys(record["engine"] for record in records))
    figure = Figure(figsize=(max(6, 2 + 2 * len(places)), 7), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    for axis, key, unit, label in zip(
        axes,
        ("median_step_seconds", "peak_memory_bytes"),
        (1.0, 1e9),
        ("one step, s", "peak memory of the process, GB"),
        strict=True,
    ):
        for i, name in enumerate(names):
            mine = [record for record in records if record["engine"] == name]
            at = [places.index(place(record["size"], record["upsampling"])) for record in mine]
            offset = (i - (len(names) - 1) / 2) * 0.8 / len(names)
            heights = [record[key] / unit for record in mine]
            bars = axis.bar([x + offset for x in at], heights, 0.8 / len(names), label=name)
            axis.bar_label(bars, fmt="{:.2g}", fontsize="small")
        axis.set_ylabel(label)
        axis.grid(axis="y", alpha=0.3)
    axes[0].legend()
    axes[0].set_title(f"preset {records[0]['preset']}, threads: {records[0]['threads']}", fontsize="medium")
    axes[-1].set_xticks(range(len(places)), places)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    return data.getvalue()


def place(size: int, upsampling: str) -> str:
    """Name what was measured, for people."""
    return f"{size}x{size} {upsampling}"


# --- what is measured ---------------------------------------------------------------------------------------------


def _jobs(settings: Settings, say: Callable[[str], None]) -> list[list[Job]]:
    """Give the jobs of each size and upsampling, of the engines that can be had.

    Raises
    ------
    UsageError
        Before anything is run.
    """
    if settings.threads is not None:
        devices.require_threads(settings.threads)
    device = devices.choose(settings.device)
    threads = settings.threads or torch.get_num_threads()
    offered = ENGINES[device.type]
    wanted = settings.engines or offered
    if unknown := set(wanted) - set(offered):
        raise UsageError(f"engines must be of {', '.join(offered)} on {device.type}, got {unknown.pop()!r}")
    asked = settings.precision or "tf32"
    precision.require(asked, device)
    used = asked if device.type == "cuda" else "fp32"
    recipes = [_recipe(settings.preset, upsampling) for upsampling in settings.upsampling]
    if "fused" in wanted:
        try:
            for recipe in recipes:
                with torch.device("meta"):
                    network = networks.build(recipe.network, recipe.in_channels, CHANNELS, **recipe.network_options)
                engines.choose("fused", network, device)
        except UsageError as error:
            if settings.engines is not None:
                raise
            say(f"left out, fused: {error}")
            wanted = tuple(name for name in wanted if name != "fused")
    for recipe, size in itertools.product(recipes, settings.sizes):
        for name in wanted:
            devices.require_memory(recipe, CHANNELS, (size, size), device, _engine(name))
    return [
        [Job(name, size, recipe, threads, device.type, used) for name in wanted]
        for size, recipe in itertools.product(settings.sizes, recipes)
    ]


def _recipe(preset: str, upsampling: str) -> Recipe:
    recipe = PRESETS[preset].recipe
    network_options = {**recipe.network_options, "upsampling": upsampling}
    options = replace(recipe.options, stop="never", iterations=STEPS)
    return replace(recipe, network_options=network_options, options=options)


def _engine(name: str) -> str:
    """Name the engine of the network that a measured engine runs."""
    return "fused" if name == "fused" else "plain"


def _needed_bytes(job: Job) -> float:
    return PROCESS + devices.needed_bytes(job.recipe, CHANNELS, (job.size, job.size), _engine(job.engine), job.device)


def _compile_ahead(groups: list[list[Job]], deadline: float | None, say: Callable[[str], None]) -> list[list[Job]]:
    """Let torch.compile fill its cache for all that it will be measured on.

    The processes that are measured later find the code in the cache, so that their peak memory is that of the steps.
    What cannot be compiled, or not until the deadline, is left out.
    """
    for name in COMPILED:
        groups = _compile(name, groups, deadline, say)
    return groups


def _compile(name: str, groups: list[list[Job]], deadline: float | None, say: Callable[[str], None]) -> list[list[Job]]:
    """Compile for one of the engines, as many networks at once as there is room for: compiling keeps one core busy.

    Autotuning goes by the clock, and would choose by what others do to it: one at a time.
    """
    waiting = deque(job for group in groups for job in group if job.engine == name)
    if not waiting:
        return groups
    room = devices.available_bytes(torch.device(waiting[0].device)) // max(map(_needed_bytes, waiting))
    most = max(1, min(os.cpu_count() or 1, int(room))) if COMPILED[name] == "default" else 1
    say(f"compiling for torch.compile ({name}), which takes minutes the first time: {len(waiting)} in all")
    left_out: set[str] = set()
    with contextlib.ExitStack() as stack:
        running: dict[connection.Connection | Any, tuple[Worker, Job]] = {}
        while waiting or running:
            while waiting and len(running) < most:
                job = waiting.popleft()
                worker = stack.enter_context(Worker(job))
                worker.send("step")
                running[worker.answers] = worker, job
            limit = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = connection.wait(list(running), limit)
            if not ready:
                late = [*(job for _, job in running.values()), *waiting]
                for job in late:
                    say(f"left out, {job}: its network was not compiled in time; allow more seconds")
                left_out |= {str(job) for job in late}
                for worker, _ in running.values():
                    worker.kill()
                break
            for answers in ready:
                worker, job = running.pop(answers)
                try:
                    worker.receive()
                except DipFastError as error:
                    say(f"left out, {_short(error)}")
                    left_out.add(str(job))
                worker.close()
    return [[job for job in group if str(job) not in left_out] for group in groups]


def _measure(jobs: list[Job], settings: Settings, seconds: float, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure the engines of one size and upsampling."""
    title = place(jobs[0].size, jobs[0].upsampling)
    alternating = sum(map(_needed_bytes, jobs)) <= devices.available_bytes(torch.device(jobs[0].device))
    if not alternating:
        say(f"{title}: the memory is too small for all engines at once; they run one after the other")
    records = []
    for together in [jobs] if alternating else [[job] for job in jobs]:
        until = time.monotonic() + seconds * len(together) / len(jobs)
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(Worker(job)) for job in together]
            say(f"{title}: {', '.join(job.engine for job in together)}")
            taken = _take_turns(workers, settings.steps, jobs[0].meter.batch, until)
        for job, answers in zip(together, taken, strict=True):
            records.append(_record(job, answers, settings.preset, alternating))
    return records


def _take_turns(workers: Sequence[Worker], steps: int | None, batch: int, until: float) -> list[list[dict[str, Any]]]:
    """Let the workers take turns, so many or while there is time.

    The first answer of a turn is not measured: it finds the caches as the others left them, and its threads asleep.
    Those that follow are, for `TURN` seconds, or one of them if a number of steps is asked for.  On a GPU an answer is
    that of a batch of steps.
    """
    for worker in workers:
        spent, made = 0.0, 0
        while made < WARM_UP[0] and spent < WARM_UP[1]:
            spent += batch * worker.ask("step")["seconds"]
            made += 1
    taken: list[list[dict[str, Any]]] = [[] for _ in workers]
    turns = math.ceil(steps / batch) if steps else None
    least, most = (turns, turns) if turns else ROUNDS
    rounds, longest = 0, 0.0
    while rounds < least or (rounds < most and time.monotonic() + longest < until):
        begin = time.monotonic()
        for worker, answers in zip(workers, taken, strict=True):
            time.sleep(PAUSE)
            worker.ask("step")
            spent = 0.0
            while spent == 0 or (spent < TURN and not steps):
                answers.append(worker.ask("step"))
                spent += batch * answers[-1]["seconds"]
        rounds += 1
        longest = max(longest, time.monotonic() - begin)
    return taken


def _record(job: Job, answers: Sequence[Mapping[str, Any]], preset: str, alternating: bool) -> dict[str, Any]:
    seconds = [answer["seconds"] for answer in answers]
    quartiles = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else 3 * seconds
    return {
        "size": job.size,
        "upsampling": job.upsampling,
        "engine": job.engine,
        "median_step_seconds": quartiles[1],
        "quartiles_step_seconds": [quartiles[0], quartiles[2]],
        "steps": len(seconds) * job.meter.batch,
        **{
            f"{name}_memory_bytes": max(answer[f"{name}_bytes"] for answer in answers)
            for name in ("peak", "reserved")
            if f"{name}_bytes" in answers[0]
        },
        "alternating": alternating,
        "threads": answers[0]["threads"],
        "device": job.device,
        "precision": job.precision,
        "preset": preset,
        "torch": torch.__version__,
    }


# --- the workers, as this process sees them -----------------------------------------------------------------------


class Worker:
    """A process that holds one fit and makes a step when it is told to; it ends with the block."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the worker)
        start = (
            "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
            "from dip_fast.bench import benchmarking; benchmarking.serve()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", start, json.dumps(sys.path), json.dumps(asdict(job))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            process_group=0,  # Ctrl-C is for this process, which ends the others, with the compilers that they run
        )
        assert self._process.stdout is not None
        self.answers = self._process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        self.close()

    def ask(self, question: str) -> dict[str, Any]:
        """Send a question and wait for the answer."""
        self.send(question)
        return self.receive()

    def send(self, question: str) -> None:
        """Send a question: `serve` says which there are."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer that does not come tells of it
            self._process.stdin.write(f"{question}\n")
            self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """Wait for an answer.

        Raises
        ------
        DipFastError
            If the process ended in its place, or says what went wrong in it.
        """
        line = self.answers.readline()
        answer: dict[str, Any] = json.loads(line) if line.endswith("\n") else {"error": self._end()}
        if "error" in answer:
            raise DipFastError(f"{self._job}: {answer['error']}")
        return answer

    def _end(self) -> str:
        """Say how the process ended."""
        self.kill()
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"its process ended ({how}){': ' + said[-1] if said else ''}"

    def kill(self) -> None:
        """End the process and what it started, now."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let the process end: it does so when nobody asks any more."""
        if self._errors.closed:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        self.answers.close()
        self._errors.close()


# --- the workers themselves ---------------------------------------------------------------------------------------


def serve() -> None:
    """Be a worker: take the job from the command line and answer a question a line, until there are no more.

    ``step`` makes a step of the fit, on a GPU a batch of them; ``profile N`` measures N of these and looks into more.
    """
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        job, fit = _job(sys.argv[2]), None
        for question in sys.stdin:
            try:
                fit = fit or _fit(job)
                answer = _answer(fit, job, question.split())
            except Exception as error:
                answer = {"error": _short(error)}
            print(json.dumps({**answer, "threads": torch.get_num_threads()}), file=answers, flush=True)


def _job(text: str) -> Job:
    job = json.loads(text)
    options = FitOptions(**job["recipe"].pop("options"))
    return Job(**{**job, "recipe": Recipe(**job["recipe"], options=options)})


def _fit(job: Job) -> Fit:
    """Prepare the fit of a job, in a process that has nothing else to do."""
    if job.engine in RETAINED:
        from dip_fast.device import memory

        memory.keep_memory()
    torch.set_num_threads(job.threads)
    ramp = torch.linspace(0.2, 0.8, job.size)
    noise = torch.randn(1, CHANNELS, job.size, job.size, generator=torch.Generator().manual_seed(0))
    picture = (ramp * ramp[:, None] + 0.1 * noise).clamp(0, 1)
    fit = prepare(Identity(picture), job.recipe, device=job.device, engine=_engine(job.engine), precision=job.precision)
    if job.device == "cuda" and job.engine != "fused":
        _as_on_a_gpu(fit, job)
    if job.engine in COMPILED:
        fit.network.compile(mode=COMPILED[job.engine])
    return fit


def _as_on_a_gpu(fit: Fit, job: Job) -> None:
    """Let plain PyTorch run as who knows it would: cuDNN's algorithms tried, one layout of the images throughout.

    It runs step by step, as eager code does; torch.compile makes graphs of its own.  The weights, 9 MB, stay as the fit
    has them; cuDNN turns them over as it reads them.
    """
    torch.backends.cudnn.benchmark = True
    os.environ["DIP_FAST_GRAPH"] = "never"
    layout = torch.channels_last if job.engine == "plain-channels-last" else torch.contiguous_format
    forward = fit.network.forward

    def in_layout(z: Tensor) -> Tensor:
        drawn: Tensor = forward(z.contiguous(memory_format=layout))
        return drawn

    fit.network.forward = in_layout


def _answer(fit: Fit, job: Job, words: Sequence[str]) -> dict[str, Any]:
    if words[0] == "profile":
        if job.device == "cuda":
            return roofline.profile(fit, int(words[1]), job.meter)
        return profiling.profile(fit, int(words[1]))
    seconds = roofline.step_seconds(fit, job.meter)
    if fit.events:
        raise DipFastError(f"a step went wrong: {fit.events[-1]['fault']}")
    return {"seconds": seconds, **job.meter.peaks()}


def _short(error: BaseException) -> str:
    """Give the first line of an error; those of torch.compile are pages."""
    text = str(error).strip().splitlines()
    name = "" if isinstance(error, DipFastError) else f"{type(error).__name__}: "
    return name + (text[0][:300] if text else "")


def _lines(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(path).read_text().splitlines()
    return []
