"""What can be asked for on the page: tasks, presets with their cost, options; and the command that does it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dip_fast.errors import DipFastError, UsageError
from dip_fast.presets import PRESETS
from dip_fast.runs import estimate, job
from dip_fast.runs.parts import Part
from dip_fast.tasks import TASKS

# Those whose inputs can be given on the page.
OFFERED = ("denoise", "inpaint", "superres", "deblur", "jpeg", "guided")
FILES = {"inpaint": "mask", "guided": "guide"}  # what they need beside the picture
BLUR = re.compile(r"gaussian:\d{1,3}(\.\d{1,4})?|motion:\d{1,3}(\.\d{1,4})?,-?\d{1,3}(\.\d{1,4})?")
SNAPSHOTS = 20  # at least, of a run: what is watched sharpens that often


def tasks() -> dict[str, dict[str, Any]]:
    """List the tasks with their options, as the page makes fields of them."""
    found = {}
    for name in OFFERED:
        options: list[dict[str, Any]] = []
        for option in TASKS[name].options:
            if (name, option.name) == ("inpaint", "mask_white"):  # of files; what is painted is what it is
                continue
            kind = "choice" if isinstance(option.type, tuple) else option.type.__name__
            values = list(option.type) if isinstance(option.type, tuple) else []
            options.append(
                {"name": option.name, "kind": kind, "values": values, "default": option.default, "help": option.help}
            )
        if name == "deblur":
            text = "The blur: gaussian:1.6 (standard deviation in pixels) or motion:15,30 (length, degrees)."
            options.insert(0, {"name": "kernel", "kind": "str", "values": [], "default": "gaussian:1.6", "help": text})
        found[name] = {"summary": TASKS[name].summary, "options": options, "needs": FILES.get(name, "")}
    return found


def costs(task: str, size: tuple[int, int]) -> list[dict[str, Any]]:
    """List the presets with what they take for a picture of a size, in seconds on two cores; None if not measured."""
    if task not in OFFERED:
        raise UsageError("there is no such task here")
    found = []
    for name, preset in PRESETS.items():
        seconds = None
        try:
            asked = job.complete({"task": task, "preset": name}, _inputs(task))
            seconds = estimate.seconds(asked, size)
        except DipFastError:  # it does not go with the task
            continue
        found.append({"name": name, "summary": preset.summary, "seconds": seconds})
    return found


def part(order: Mapping[str, Any], size: tuple[int, int]) -> tuple[Part, tuple[int, int]]:
    """Find which part of a picture of this size is asked for, and the size of that.

    Raises
    ------
    UsageError
        If there is no such part.
    """
    region, most = order.get("preview") or None, order.get("max_size") or None
    if not (region is None or isinstance(region, str)) or not (most is None or type(most) is int):
        raise UsageError("a part is given by its numbers, and the longest side by one")
    found = Part(region, most)
    found.check()
    return found, found.size(*size)


def words(order: dict[str, Any], found_part: Part, file: Path | None) -> list[str]:
    """Write what the page asks for as arguments of ``dip-fast run``.

    Parameters
    ----------
    order : dict
        What the page sends.
    found_part : Part
        As `part` finds it.
    file : Path, optional
        What the task needs beside the picture.

    Raises
    ------
    UsageError
        If it asks for what is not offered: no text of a browser is taken for a file or for another option.
    """
    task = order.get("task")
    if task not in OFFERED:
        raise UsageError("there is no such task here")
    found = [f"--task={task}"]
    preset, iterations = order.get("preset") or None, order.get("iterations") or None
    if preset is not None:
        if not isinstance(preset, str) or preset not in PRESETS:
            raise UsageError("there is no such preset")
        found.append(f"--preset={preset}")
    if iterations is not None:
        if type(iterations) is not int or not 0 < iterations <= job.MOST_ITERATIONS:
            raise UsageError("steps must be a number from 1 to {}", job.MOST_ITERATIONS)
        found.append(f"--iterations={iterations}")
    found.append(f"--snapshot-every={_snapshot_every(preset, iterations)}")
    given = order.get("options", {})
    if not isinstance(given, dict):
        raise UsageError("options must be values by name")
    if task == "deblur":
        blur = str(given.pop("kernel", ""))
        if not BLUR.fullmatch(blur):
            raise UsageError("the blur must be as gaussian:1.6 or motion:15,30")
        found.append(f"--kernel={blur}")
    for name, value in TASKS[task].complete(given).items():
        if name in given:
            dashed = name.replace("_", "-")
            found.append(f"--{'' if value else 'no-'}{dashed}" if isinstance(value, bool) else f"--{dashed}={value}")
    if file is not None:
        found += [f"--{FILES[task]}", str(file)]
    return [*found, *_more(order, found_part)]


def _more(order: Mapping[str, Any], found_part: Part) -> list[str]:
    """Write what few change: seed, part, metadata."""
    found, seed = [], order.get("seed")
    if seed is not None:
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise UsageError("the seed must be a number from 0 on")
        found.append(f"--seed={seed}")
    if found_part.region is not None:
        found.append(f"--preview={found_part.region}")
    if found_part.max_size is not None:
        found.append(f"--max-size={found_part.max_size}")
    if order.get("keep_metadata"):
        found.append("--keep-metadata")
    return found


def _snapshot_every(preset: str | None, iterations: int | None) -> int:
    """Choose how often the page has something new to show."""
    steps = iterations or PRESETS[preset or "default"].recipe.options.iterations
    return max(1, min(50, steps // SNAPSHOTS))


def _inputs(task: str) -> tuple[str, ...]:
    return tuple(entry.name for entry in TASKS[task].inputs if entry.required)
