"""What ``dip-fast bench`` measures: the settings, the engines, and what each process fits."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch

from dip_fast import networks
from dip_fast.bench.meters import Meter, meter_for
from dip_fast.device import devices, engines, precision
from dip_fast.errors import UsageError
from dip_fast.presets import PRESETS, FitOptions, Masking, Recipe

CHANNELS = 3
ITERATIONS = 10**5  # more than anybody measures, so that no measured step is the last
BASE_PROCESS_BYTES = 0.5e9  # a process beside the memory of its fit: 0.2 GB with torch, 0.5 after it has compiled


@dataclass(frozen=True)
class MeasuredEngine:
    """A way to compute the steps of a fit, which ``dip-fast bench`` compares with the others.

    Attributes
    ----------
    devices : tuple of {"cpu", "cuda"}
        The devices on which it is measured.
    engine : {"fused", "plain"}
        The engine of the network.
    keeps_memory : bool
        Whether the process keeps freed memory (`memory.keep_memory`), as the command line does.
    compile_mode : str, optional
        The mode of torch.compile; None runs eager PyTorch.
    channels_last : bool
        Whether the images of plain PyTorch are channels_last, on a GPU.
    precision : {"bf16"}, optional
        In place of that of all engines.
    """

    devices: tuple[str, ...]
    engine: Literal["fused", "plain"] = "plain"
    keeps_memory: bool = False
    compile_mode: str | None = None
    channels_last: bool = False
    precision: str | None = None


# A new engine is one entry here and its name in `names.BENCH_ENGINES`, which the command line reads without torch.
ENGINES = {
    "fused": MeasuredEngine(("cpu", "cuda"), engine="fused", keeps_memory=True),
    "fused-bf16": MeasuredEngine(("cpu",), engine="fused", keeps_memory=True, precision="bf16"),
    "plain": MeasuredEngine(("cpu", "cuda")),
    "plain-retained": MeasuredEngine(("cpu",), keeps_memory=True),
    "plain-channels-last": MeasuredEngine(("cuda",), channels_last=True),
    "compile": MeasuredEngine(("cpu", "cuda"), compile_mode="default"),
    "compile-max-autotune": MeasuredEngine(("cuda",), compile_mode="max-autotune"),
}


def engines_on(device: str) -> tuple[str, ...]:
    """Names of the engines that are measured on a kind of device."""
    return tuple(name for name, engine in ENGINES.items() if device in engine.devices)


@dataclass(frozen=True)
class BenchSettings:
    """The settings of a benchmark.

    Attributes
    ----------
    sizes : tuple of int
        The sides of the square pictures, in pixels, at least 16.
    upsampling : tuple of {"nearest", "bilinear"}
        The upsampling modes of the network, in place of the preset's.
    preset : str
        A preset of the skip network.
    engines : tuple of str, optional
        Names of `ENGINES` that the device has.  By default all that are available; one that is named and not
        available is an error.
    threads : int, optional
        The CPU threads of each process; those of this one by default.
    device : {"auto", "cpu", "cuda"}
    precision : {"fp32", "tf32", "bf16"}, optional
        For all engines; ``tf32`` by default, which a CPU has not: it computes in ``fp32``.
    seconds : float
        The time that the whole benchmark may take, starting and compiling included.  Every engine makes at least two
        measured steps, however long they take.
    steps : int, optional
        The number of measured steps of each engine, in place of a time; on a GPU rounded up to whole batches.
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
class Configuration:
    """What one process fits: an engine, a size and a recipe, and where it runs."""

    engine: str
    size: int
    recipe: Recipe
    threads: int
    device: str
    precision: str = "fp32"

    @property
    def measured_engine(self) -> MeasuredEngine:
        """The engine, as `ENGINES` describes it."""
        return ENGINES[self.engine]

    @property
    def meter(self) -> Meter:
        """The clock of its device."""
        return meter_for(torch.device(self.device))

    @property
    def upsampling(self) -> str:
        """The upsampling mode of its network."""
        return str(self.recipe.network_options["upsampling"])

    @property
    def group(self) -> str:
        """The size and upsampling, for people: engines are compared within a group."""
        return group_name(self.size, self.upsampling)

    def needed_bytes(self) -> float:
        """Estimate the peak memory of the process."""
        size, engine, used = (self.size, self.size), self.measured_engine.engine, self.precision
        return BASE_PROCESS_BYTES + devices.needed_bytes(
            self.recipe, CHANNELS, size, engine, self.device, precision=used
        )

    def to_json(self) -> str:
        """Write the configuration as JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Configuration:
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        recipe = fields["recipe"]
        recipe["options"] = FitOptions(**recipe["options"])
        recipe["masking"] = recipe["masking"] and Masking(**recipe["masking"])
        return Configuration(**{**fields, "recipe": Recipe(**recipe)})

    def __str__(self) -> str:
        return f"{self.engine} at {self.group}"


def group_name(size: int, upsampling: str) -> str:
    """Name a size and an upsampling mode, for people."""
    return f"{size}x{size} {upsampling}"


def configurations(settings: BenchSettings, log: Callable[[str], None]) -> list[list[Configuration]]:
    """List the configurations of each size and upsampling, without the engines that are not available.

    Raises
    ------
    UsageError
        If the settings name something that is not available here, before anything is run.
    """
    if settings.threads is not None:
        devices.require_threads(settings.threads)
    device = devices.choose(settings.device)
    threads = settings.threads or torch.get_num_threads()
    offered = engines_on(device.type)
    names = settings.engines or offered
    if unknown := set(names) - set(offered):
        raise UsageError(f"engines must be among {', '.join(offered)} on {device.type}, got {unknown.pop()!r}")
    asked = settings.precision or "tf32"
    precision.require(asked, device)
    used = precision.used(asked, device)
    recipes = [endless_recipe(settings.preset, upsampling) for upsampling in settings.upsampling]
    if any(ENGINES[name].engine == "fused" for name in names):
        try:
            _require_fused(recipes, device)
        except UsageError as error:
            if settings.engines is not None:
                raise
            log(f"left out, fused: {error}")
            names = tuple(name for name in names if ENGINES[name].engine != "fused")
    precisions = {name: ENGINES[name].precision or used for name in names}
    for recipe, size, name in itertools.product(recipes, settings.sizes, names):
        devices.require_memory(recipe, CHANNELS, (size, size), device, ENGINES[name].engine, precision=precisions[name])
    return [
        [Configuration(name, size, recipe, threads, device.type, precisions[name]) for name in names]
        for size, recipe in itertools.product(settings.sizes, recipes)
    ]


def endless_recipe(preset: str, upsampling: str) -> Recipe:
    """Return the recipe of a preset with another upsampling mode, for a fit that does not end while it is measured."""
    recipe = PRESETS[preset].recipe
    return replace(
        recipe,
        network_options={**recipe.network_options, "upsampling": upsampling},
        options=replace(recipe.options, stop="never", iterations=ITERATIONS),
    )


def _require_fused(recipes: list[Recipe], device: torch.device) -> None:
    """Raise a UsageError if the fused engine is not available for the networks of some recipes."""
    for recipe in recipes:
        with torch.device("meta"):
            network = networks.build(recipe.network, recipe.in_channels, CHANNELS, **recipe.network_options)
        engines.choose("fused", network, device)
