"""What the benchmark scripts share.  Nothing here imports torch before it is needed: a script may restart itself."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from dip_fast.fitting import Fit, Objective
    from dip_fast.presets import Recipe

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


# --- the command line ---------------------------------------------------------------------------------------------


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Make the parser of a script, whose help is its docstring."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def print_json(value: object) -> None:
    """Print records for scripts."""
    json.dump(value, sys.stdout, indent=1)
    print()


def in_own_process(script: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """Start a script again with ``--one JOB``, and return the object that it prints as its last line.

    Exits if the process fails, with its code and the job.
    """
    command = [sys.executable, script, "--one", json.dumps(job)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if ended.returncode:
        sys.exit(f"a process ended with exit code {ended.returncode}: {job}")
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


# --- pictures and recipes -----------------------------------------------------------------------------------------


def to_tensor(image: np.ndarray) -> Tensor:
    """Convert an image ``(H, W, C)`` to a tensor ``(1, C, H, W)``."""
    import numpy as np
    import torch

    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]


def to_image(batch: Tensor) -> np.ndarray:
    """Convert a tensor ``(1, C, H, W)`` to an image ``(H, W, C)``."""
    image: np.ndarray = batch[0].permute(1, 2, 0).cpu().numpy()
    return image


def read_image(path: Path) -> np.ndarray:
    """Read a picture as a float32 image ``(H, W, C)`` in [0, 1]."""
    from dip_fast.pictures import read_picture

    return read_picture(path).image


def recipe(
    preset: str,
    *,
    size: tuple[int, int] = (512, 512),
    iterations: int | None = None,
    stop: str | None = None,
    upsampling: str | None = None,
) -> Recipe:
    """Return the recipe of a preset for a picture of a height and width, with what is not None in place of its own."""
    from dip_fast.presets import PRESETS

    found = PRESETS[preset].recipe
    iterations = found.iterations(size) if iterations is None else iterations
    options: dict[str, Any] = {"iterations": iterations, "stop": stop}
    changed = {name: value for name, value in options.items() if value is not None}
    network_options = found.network_options | ({} if upsampling is None else {"upsampling": upsampling})
    return replace(found, network_options=network_options, options=replace(found.options, **changed))


def denoising_objective(noisy: np.ndarray, recipe: Recipe, seed: int) -> Objective:
    """Make the objective by which the task denoises an image ``(H, W, C)``: masked, or from a random input."""
    from dip_fast.tasks import TASKS, Data

    task = TASKS["denoise"]
    return task.objective(Data(noisy), task.complete({}), recipe, seed)


def halved(image: np.ndarray) -> np.ndarray:
    """Halve an image by area averaging; an odd row or column at the end is left out."""
    height, width = (side // 2 for side in image.shape[:2])
    half: np.ndarray = image[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1).mean((1, 3))
    return half


def averaged_image(fit: Fit) -> Tensor:
    """Return the average of the iterates that the answer of a fit starts from, ``(1, C, H, W)``."""
    return fit.objective.composite(fit.averages()["picture"])


# --- time ---------------------------------------------------------------------------------------------------------


def seconds_of_calls(function: Callable[[], object], calls: int, warm_up: int) -> list[float]:
    """Time calls of a function, after some that are not timed."""
    seconds = []
    for _ in range(warm_up + calls):
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return seconds[warm_up:]


def mean(values: Sequence[float | None]) -> float | None:
    """Average values; None if one of them is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write a table in Markdown."""
    lines = ["| " + " | ".join(map(str, cells)) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])
