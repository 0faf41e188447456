"""What a run will take, before it begins: time, memory and disk."""

from __future__ import annotations

import math

import torch

from dip_fast import figures
from dip_fast.device import devices
from dip_fast.fitting.objectives import LARGEST_WHOLE
from dip_fast.pictures import Kind
from dip_fast.presets import Recipe
from dip_fast.runs.job import Job
from dip_fast.tasks import TASKS

MINUTE, GIGABYTE = 60.0, 1e9
# Seconds a pixel that the predictions of a masked fit take beyond its steps: 15 megapixels in RGB took 11.4 minutes,
# 2.4 of which were the steps of 512x512 pixels.
SECONDS_A_PIXEL = 36e-6


def memory(job: Job, channels: int, size: tuple[int, int]) -> int:
    """Estimate the memory of a fit in bytes, and refuse a picture that will not fit.

    Raises
    ------
    UsageError
        As `devices.require_memory`.
    """
    recipe = job.recipe(size)
    step = None
    if recipe.masking is not None:
        side = min(recipe.masking.crop, *(32 * math.ceil(length / 32) for length in size))
        step = (side, side) if math.prod(size) > LARGEST_WHOLE else None
    return devices.require_memory(
        recipe, channels, _drawn(job, size), torch.device(job.device), job.engine, recipe.in_channels, step
    )


def _drawn(job: Job, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the result of a picture of this size, which is what the network draws."""
    height, width = size
    kind = Kind("", width, height, 1, "float32", (0.0, 1.0))
    return TASKS[job.task].result_kind(kind, job.options).size


def seconds(job: Job, size: tuple[int, int]) -> float | None:
    """Estimate the time of a fit on two cores, from what was measured; None where nothing near it was."""
    if job.device != "cpu" or job.engine != "fused":
        return None
    recipe, pixels = job.recipe(size), math.prod(_drawn(job, size))
    measured = _step_seconds(job.preset)
    if measured is None:
        return None
    a_step, of_pixels = measured
    seen = pixels if recipe.masking is None else min(pixels, recipe.masking.crop**2)
    steps = recipe.options.iterations + _more_steps(recipe)
    beyond = 0.0 if recipe.masking is None else SECONDS_A_PIXEL * pixels * recipe.masking.passes / 64
    return a_step * steps * seen / of_pixels + beyond


def _step_seconds(preset: str) -> tuple[float, int] | None:
    """Find the time of a step and the pixels that it saw."""
    found = figures.read()
    for row in found["presets"].rows:
        if row["preset"] == preset:
            return row["step_seconds"], row["width"] * row["height"]
    row = found["denoising"].rows[0]
    if preset not in row["presets"]:
        return None
    from dip_fast.presets import PRESETS

    size = row["height"], row["width"]
    recipe = PRESETS[preset].recipe
    steps = recipe.iterations(size) + _more_steps(recipe)
    return row["presets"][preset]["seconds"] / steps, math.prod(size)


def _more_steps(recipe: Recipe) -> int:
    return recipe.options.consolidation_steps


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
