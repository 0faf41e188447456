"""What decides the bits of a result, besides the picture and the versions: what the user asked for, completed."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import torch

from dip_fast import large, networks
from dip_fast.device import devices, engines, precision
from dip_fast.errors import Argument, UsageError
from dip_fast.fitting import Fit, prepare
from dip_fast.names import DEVICES, ENGINES, PRECISIONS, STOPS, TILES, UPSAMPLINGS
from dip_fast.presets import PRESETS, Preset, Recipe, default, recipe_of
from dip_fast.tasks import TASKS, Data, Task, choose
from dip_fast.tasks.task import as_target
from dip_fast.values import choice, integer

LARGEST_SEED = 2**63 - 1
LEAST_TILE = 64  # pixels a side
MOST_ITERATIONS = 10**9  # more are a mistake


@dataclass(frozen=True)
class Job:
    """All settings of a fit, none of them left open; ``run.json`` holds them.

    Attributes
    ----------
    task, network : str
        Names in their registries.
    preset : str or Preset or Recipe
        A name in its registry, as that of a run always is; or what the caller of a function on arrays made.
    upsampling : str or None
        The network's; None where it has no such choice.
    iterations : int or None
        Most steps; None for as many as the preset has for a picture of the size.
    stop : {"auto", "never"}
        Whether the moving variance of the iterates may end the fit.
    seed : int
        From 0 to 2**63 - 1.
    device : {"cpu", "cuda"}
        Where it runs.
    engine : {"plain", "fused"}
        How the network is computed.
    precision : {"fp32", "tf32", "bf16"}
        Precision of the products on a GPU; a CPU computes in fp32.
    threads : int
        CPU threads.
    options : dict
        The task's own options by name.
    snapshot_every : int
        Steps between iterates that a run writes; 0 for none.
    keep_metadata : bool
        Whether a run copies the EXIF data.
    tile : int or {"auto", "never"}
        Side of the tiles in pixels of the picture, each of which has a network of its own; or whether memory decides.
    """

    task: str
    preset: Any
    network: str
    upsampling: str | None
    iterations: int | None
    stop: Literal["auto", "never"]
    seed: int
    device: str
    engine: str
    precision: str
    threads: int
    options: dict[str, Any] = field(default_factory=dict)
    snapshot_every: int = 100
    keep_metadata: bool = False
    tile: int | Literal["auto", "never"] = "never"

    def recipe(self, size: tuple[int, int]) -> Recipe:
        """Change the preset's recipe as the settings say, for a picture of this height and width."""
        recipe = TASKS[self.task].adapted(recipe_of(self.preset), self.options)
        network_options = dict(recipe.network_options)
        if self.upsampling is not None:
            network_options["upsampling"] = self.upsampling
        options = replace(recipe.options, iterations=self.iterations or recipe.iterations(size), stop=self.stop)
        return replace(recipe, network_options=network_options, options=options)


OWN = frozenset(entry.name for entry in fields(Job)) - {"options"}


def complete(asked: Mapping[str, Any], given: Collection[str] = ()) -> Job:
    """Complete what the user asked for, from the task and its preset.

    Parameters
    ----------
    asked : mapping
        By field of `Job`, and by name of the task's options; what is None was left open.
    given : collection of str
        Names of the inputs that came beside the picture.

    Raises
    ------
    UsageError
        If what was asked for contradicts itself, or is not available here.
    """
    # Numbers and words of NumPy count as Python's own.
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in asked.items()}
    asked = {name: value for name, value in plain.items() if value is not None}
    _check(asked)
    task = choose(asked.pop("task", None), given)
    options = task.complete({name: asked.pop(name) for name in [*asked] if name not in OWN})
    devices.require_threads(asked.get("threads", 1))
    device = devices.choose(asked.pop("device", "auto"))
    # Products are rounded to TF32 on a GPU alone: a CPU computes in float32, and its record says so.
    wanted = asked.pop("precision", "tf32")
    precision.require(wanted, device)
    preset = asked.pop("preset", None) or default(asked.get("network"), task.preset(device.type))
    recipe = task.adapted(recipe_of(preset), options)
    if asked.get("network", recipe.network) != recipe.network:
        raise UsageError(
            "{} does not go with {}, which fits a {} network; give one of the two",
            *(Argument("network", asked["network"]), _named(preset), recipe.network),
        )
    if recipe.masking is not None and asked.get("stop") == "auto":
        raise UsageError(
            "{}: the steps of {} draw no whole pictures whose variance could end it; leave it out",
            *(Argument("stop", "auto"), _named(preset)),
        )
    upsampling = recipe.network_options.get("upsampling")
    if "upsampling" in asked and upsampling is None:
        raise UsageError("{}: the {} network has no such choice; leave it out", Argument("upsampling"), recipe.network)
    engine = asked.pop("engine", "auto")
    defaults = Job(
        task=task.name,
        preset=preset,
        network=recipe.network,
        upsampling=upsampling,
        iterations=None if recipe.full_size else recipe.options.iterations,
        stop=recipe.options.stop if recipe.masking is not None else task.stop or recipe.options.stop,
        seed=0,
        device=device.type,
        engine="plain",
        precision=precision.used(wanted, device),
        threads=torch.get_num_threads(),
        options=options,
        tile="auto" if task.has_tiles and recipe.masking is None else "never",
    )
    if asked.get("tile") == "auto":  # it is decided only where there is anything to decide
        del asked["tile"]
    job = replace(defaults, **asked)
    if not isinstance(job.tile, str) and defaults.tile == "never":
        raise _no_tiles(job, task)
    return replace(job, engine=_engine(engine, job))


def settled(job: Job, asked: Mapping[str, Any], given: Collection[str], data: Data) -> Job:
    """Choose the preset by what was read, where the user named neither that nor a network."""
    if any(asked.get(name) is not None for name in ("preset", "network")):
        return job
    preset = TASKS[job.task].preset_of(data, job.options)
    return job if preset in (None, job.preset) else complete({**asked, "preset": preset}, given)


def _check(asked: Mapping[str, Any]) -> None:
    """Refuse numbers and names that no fit has; the command line finds most of them before."""
    for name in ("network", "task"):
        if not isinstance(asked.get(name, ""), str):
            raise UsageError("{} must be a name, got {}", Argument(name), type(asked[name]).__name__)
    least = {"iterations": 1, "threads": 1, "seed": 0, "snapshot_every": 0}
    most = {"seed": LARGEST_SEED, "iterations": MOST_ITERATIONS}
    for name in least.keys() & asked.keys():
        integer(name, asked[name], least=least[name], most=most.get(name))
    tile = asked.get("tile", "auto")
    if tile not in TILES and (not isinstance(tile, int) or isinstance(tile, bool) or tile < LEAST_TILE):
        raise UsageError(
            "{} must be {}, or pixels, at least {}", Argument("tile", tile), " or ".join(TILES), LEAST_TILE
        )
    for name, choices in {"stop": STOPS, "upsampling": UPSAMPLINGS}.items():
        if name in asked:
            choice(name, asked[name], choices)


def _no_tiles(job: Job, task: Task) -> UsageError:
    """Make the error of a user who asks for tiles where there are none, or none are needed."""
    asked = Argument("tile", job.tile)
    if not task.has_tiles:
        return UsageError("{}: {} needs all of the picture at once; leave it out", asked, Argument("task", task.name))
    able = ", ".join(name for name in PRESETS if PRESETS[name].recipe.masking is None)
    return UsageError(
        "{}: {} learns from squares of a picture of any size; leave it out, or take one of {}",
        *(asked, _named(job.preset), able),
    )


def _named(preset: str | Preset | Recipe) -> Argument:
    """Name the argument that chose the preset, with a value that fits into a line."""
    return Argument("preset", preset) if isinstance(preset, str) else Argument("preset")


def _engine(wanted: str, job: Job) -> str:
    """Choose the engine; which blocks have a fused form shows on the meta device."""
    recipe = job.recipe((1, 1))
    with torch.device("meta"):
        network = networks.build(recipe.network, recipe.in_channels, 1, **recipe.network_options)
    return engines.choose(wanted, network, torch.device(job.device))


def resumed(asked: Mapping[str, Any], job: Job) -> Job:
    """Check that a run can go on here, and that nothing else is asked for than when it was started.

    Parameters
    ----------
    asked : mapping
        As in `complete`.
    job : Job
        The settings of the run that is resumed.

    Raises
    ------
    UsageError
        If something else is asked for now, or the run cannot go on here.  `extended` looks at the iterations.
    """
    known = {**vars(job), **job.options}
    for name, value in asked.items():
        if value is None or name == "iterations" or (name in ("device", "engine", "tile") and value == "auto"):
            continue
        if name not in known:
            raise UsageError(
                "cannot resume with {}: {} has no such option; leave it out, or start again with {}",
                *(Argument(name), Argument("task", job.task), Argument("overwrite", True)),
            )
        if value != known[name] and not (name == "precision" and job.device == "cpu" and value == "tf32"):
            raise UsageError(
                "cannot resume with {}: the run has {}; leave it out, or start again with {}",
                *(Argument(name, value), Argument(name, known[name]), Argument("overwrite", True)),
            )
    devices.choose(job.device)
    _engine(job.engine, job)
    if job.threads > (cores := os.cpu_count() or 1):
        raise UsageError(
            "cannot resume: the run has {} threads and this machine {} cores; go on where it was started, or start "
            "again with {}",
            *(job.threads, cores, Argument("overwrite", True)),
        )
    return job


def extended(job: Job, size: tuple[int, int], iterations: int | None) -> Job:
    """Let a run make more steps than it was started for, where these are the steps of a run that was started for more.

    Parameters
    ----------
    job : Job
        The settings of the run that is resumed.
    size : tuple of int
        Height and width of the picture.
    iterations : int or None
        The steps that are asked for now; None for no others.

    Raises
    ------
    UsageError
        If fewer are asked for, or the learning rate of each step depends on their number: such a run has ended on
        small steps, and going on at whatever rate would be another fit than one of so many steps.
    """
    options = job.recipe(size).options
    if iterations is None or iterations == options.iterations:
        return job
    asked, again = Argument("iterations", iterations), Argument("overwrite", True)
    if iterations < options.iterations:
        raise UsageError(
            "cannot resume with {}: the run has {}, and can be extended only; leave it out, or start again with {}",
            *(asked, options.iterations, again),
        )
    if options.decay != "none":
        raise UsageError(
            "cannot resume with {}: the learning rate of preset {} falls to nothing over the {} iterations that the "
            "run was started with, so more make another fit from its first step on; start it with {}",
            *(asked, job.preset, options.iterations, again),
        )
    _check({"iterations": iterations})
    return replace(job, iterations=iterations)


def start(job: Job, data: Data, reference: np.ndarray | None = None) -> Fit:
    """Prepare the fit that a job describes, for files and for arrays alike.

    Parameters
    ----------
    job : Job
    data : Data
        What the task works on.
    reference : ndarray, optional
        The ground truth, float32 ``(H, W, C)``, range [0, 1].
    """
    height, width = data.image.shape[-3:-1]
    recipe = TASKS[job.task].fitted_to(data, job.recipe((height, width)))
    if data.tile is not None:
        recipe = recipe.with_(**data.tile.recipe)
    elif _is_flat(data.image):  # constant channels are what they are, whatever is fitted
        recipe = recipe.least()
    if data.image.ndim > 3 and recipe.masking is None:
        able = ", ".join(name for name in PRESETS if PRESETS[name].recipe.masking is not None)
        raise UsageError("{} learns from one picture; for several take one of {}", _named(job.preset), able)
    return prepare(
        TASKS[job.task].objective(data, job.options, recipe, job.seed),
        recipe,
        seed=job.seed,
        device=job.device,
        engine=job.engine,
        precision=job.precision,
        reference=None if reference is None else as_target(reference),
    )


def _is_flat(image: np.ndarray) -> bool:
    """Whether each channel of an image ``(..., H, W, C)``, or of each of several, is constant."""
    rows = large.bands(image.shape, image.ndim - 3)
    return all(bool((image[..., part, :, :] == image[..., :1, :1, :]).all()) for part in rows)


def check(job: Job) -> None:
    """Refuse the settings of a record that no version of this program wrote.

    Raises
    ------
    UsageError, TypeError, ValueError
    """
    task = TASKS[job.task]
    task.complete(job.options)
    names = {job.device: DEVICES, job.engine: ENGINES, job.precision: PRECISIONS}
    if job.threads < 1 or not all(name in known for name, known in names.items()):
        raise ValueError("settings")
    _check({name: value for name, value in vars(job).items() if value is not None})
    job.recipe((1, 1))
