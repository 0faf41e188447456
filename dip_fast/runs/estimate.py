"""What a run will take, before it begins: time, memory and disk."""

from __future__ import annotations

import math

import torch

from dip_fast import figures
from dip_fast.device import devices
from dip_fast.fitting.pieces import LARGEST_WHOLE
from dip_fast.fitting.start import rounds
from dip_fast.pictures import tiling
from dip_fast.presets import PRESETS, Recipe
from dip_fast.runs.job import Job
from dip_fast.tasks import TASKS

MINUTE, GIGABYTE = 60.0, 1e9
PROGRAM = 600_000_000  # bytes that the process has before the fit: libraries, and what was freed but is kept
# Seconds a pixel that a masked fit of 64 masks takes beyond its steps: 15 megapixels in RGB took 11.4 minutes, 2.4 of
# which were the steps of 512x512 pixels, and 100 megapixels with 32 masks 32.6.
SECONDS_A_PIXEL = 36e-6
# Seconds a pixel of a round of patches and data: 0.53 s at 256x256, 1.7 at 512x512.
SECONDS_A_ROUND = 7e-6


def memory(job: Job, channels: int, size: tuple[int, int]) -> int:
    """Estimate the memory of a run in bytes, and refuse a picture that will not fit.

    That of a picture which is never drawn at once is what the process takes at its peak; that of any other is what its
    fit takes beside `PROGRAM`.

    Raises
    ------
    UsageError
        As `devices.require_memory`.
    """
    task, recipe, device = TASKS[job.task], job.recipe(size), torch.device(job.device)
    drawn, step = task.result_size(size, job.options), None
    if recipe.masking is not None:
        side = min(recipe.masking.crop, *(32 * math.ceil(length / 32) for length in size))
        step = (side, side) if math.prod(size) > LARGEST_WHOLE else None
    elif not isinstance(job.tile, str):
        step = task.result_size((min(job.tile, size[0]), min(job.tile, size[1])), job.options)
    needed = devices.require_memory(
        recipe, channels, drawn, device, job.engine, recipe.in_channels, step, job.precision
    )
    return needed + (PROGRAM if step is not None else 0)


def _rounds(job: Job, recipe: Recipe) -> int:
    """Count the rounds of patches and data that follow a fit."""
    return rounds(recipe) if TASKS[job.task].has_rounds(recipe, job.options) else 0


def _is_redrawn(job: Job, recipe: Recipe) -> bool:
    """Whether a network of its own draws the answer, after the rounds of a fit from a random input."""
    return recipe.masking is None and _rounds(job, recipe) > 0


def seconds(job: Job, size: tuple[int, int]) -> float | None:
    """Estimate the time of a fit on two cores, from what was measured; None where nothing near it was."""
    if job.device != "cpu" or job.engine != "fused":
        return None
    task, recipe = TASKS[job.task], job.recipe(size)
    drawn = [size] if isinstance(job.tile, str) else [box[2:] for box in tiling.lay(size, job.tile).boxes]
    pixels = sum(math.prod(task.result_size(part, job.options)) for part in drawn)
    a_step = _step_seconds(job.preset)
    if a_step is None:
        return None
    seen = pixels if recipe.masking is None else min(pixels, recipe.masking.crop**2)
    shown = recipe.masking is not None or _is_redrawn(job, recipe)  # hence not learned
    steps = a_step * (recipe.options.iterations + (0 if shown else recipe.options.consolidation_steps))
    beyond = SECONDS_A_PIXEL * task.drawings(recipe, job.options, size) / 64
    return steps * seen + (beyond + SECONDS_A_ROUND * _rounds(job, recipe)) * pixels


def _step_seconds(preset: str) -> float | None:
    """Find the time of a step for each pixel that it saw."""
    found = figures.read()
    for row in found["presets"].rows:
        if row["preset"] == preset:
            return row["step_seconds"] / (row["width"] * row["height"])
    row = found["denoising"].rows[0]
    if preset not in row["presets"]:
        return None
    size = row["height"], row["width"]
    return row["presets"][preset]["seconds"] / PRESETS[preset].recipe.iterations(size) / math.prod(size)


def lines(time: float | None, memory: int, disk: int) -> list[str]:
    """List what is more than a minute or a gigabyte, in one line; nothing where nothing is."""
    parts = []
    if time is not None and time > MINUTE:
        parts.append(f"{_duration(time)} on two cores as measured (dip-fast presets)")
    if memory > GIGABYTE:
        parts.append(f"{memory / GIGABYTE:.1f} GB of memory")
    if disk > GIGABYTE:
        parts.append(f"{disk / GIGABYTE:.1f} GB on disk")
    return [f"this may take {', '.join(parts)}; a preview of its middle is made sooner"] if parts else []


def _duration(time: float) -> str:
    if time < 90 * MINUTE:
        return f"{max(round(time / MINUTE), 1)} minutes" if time > 1.5 * MINUTE else "a minute"
    return f"{time / 3600:.0f} hours"
