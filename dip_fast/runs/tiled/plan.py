"""Which pictures are restored in tiles, where these lie, and what their fits have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dip_fast import large
from dip_fast.errors import Argument, DipFastError, TooLargeError, UsageError
from dip_fast.fitting import Fit
from dip_fast.fitting.callbacks import shown
from dip_fast.fitting.patch_prior import PatchPrior
from dip_fast.pictures.tiling import Box, Tiling, lay
from dip_fast.runs import estimate
from dip_fast.runs.job import Job, start
from dip_fast.runs.record import Shared
from dip_fast.tasks import TASKS, Data, Task, Tile

# Sides of tiles to choose from where memory decides: always the same few, so that what was restored on one machine is
# restored alike on another one with a little more memory.
SIDES = (2048, 1024, 512, 256)
MEASURED = 25  # tiles, at most, whose noise is measured
PROBES = (0.1, 0.5, 0.9)  # quantiles of the variance in a tile: three tiles, from plain to rich in detail
# Of a tile in which nothing is to be restored: its network is never seen.
NOTHING: dict[str, Any] = {"iterations": 1, "consolidation": 0, "rounds": 0, "stop": "never"}


def decided(job: Job, channels: int, size: tuple[int, int]) -> Job:
    """Decide whether a picture is restored in tiles, and of which size.

    Parameters
    ----------
    job : Job
    channels : int
    size : tuple of int
        Height and width of the picture.

    Raises
    ------
    TooLargeError
        If memory decides, and is too small for the smallest tiles too.
    """
    if not isinstance(job.tile, str):
        return job if max(size) > job.tile else replace(job, tile="never")
    whole = replace(job, tile="never")
    if job.tile == "never" or max(size) <= min(SIDES):  # which `devices.require_memory` refuses, if it must
        return whole
    try:
        estimate.memory(whole, channels, size)
    except TooLargeError:
        for side in (side for side in SIDES if side < max(size)):
            in_tiles = replace(job, tile=side)
            with contextlib.suppress(TooLargeError):
                estimate.memory(in_tiles, channels, size)
                return in_tiles
        raise
    return whole


@dataclass(frozen=True, eq=False)
class Plan:
    """A picture that is restored in tiles.

    Attributes
    ----------
    job : Job
    data : Data
        All of the picture.
    tiling : Tiling
        Of the picture.
    shared : Shared or None
        What the fits have in common; None before it is known.
    """

    job: Job
    data: Data
    tiling: Tiling
    shared: Shared | None = None

    @property
    def task(self) -> Task:
        """The task of all tiles."""
        return TASKS[self.job.task]

    @property
    def scale(self) -> int:
        """How many times larger the result is than the picture."""
        return self.task.result_size(self.tiling.size, self.job.options)[0] // self.tiling.size[0]

    def part(self, box: Box, *, probes: bool = False) -> Data:
        """Cut out a tile, with what its fit has in common with others.

        Parameters
        ----------
        box : Box
        probes : bool
            Whether its fit finds out how many steps are best.
        """
        large.rest()
        recipe: dict[str, Any] = {}
        if self.shared is not None:
            recipe["perturbation"] = self.shared["perturbation"]
            if probes:
                recipe |= {"rounds": 0, "consolidation": 0}
            elif self.shared["iterations"] is not None:
                recipe |= {"iterations": self.shared["iterations"], "stop": "never"}
        deviation = None if self.shared is None else self.shared["deviation"]
        tile = Tile(box, self.tiling.size, recipe, deviation)
        data = self.task.cropped(self.data, self.job.options, tile)
        if self.task.is_done(data, self.job.options):
            data = replace(data, tile=replace(tile, recipe=recipe | NOTHING))
        return data

    def fit(self, box: Box, reference: np.ndarray | None = None, *, probes: bool = False) -> Fit:
        """Prepare the fit of a tile; a reference is of the whole result."""
        if reference is not None:
            reference = reference[box.scaled(self.scale).place]
        return start(self.job, self.part(box, probes=probes), reference)

    def to_be_fitted(self) -> list[Box]:
        """List the tiles that hold anything to be restored."""
        return [box for box in self.tiling.boxes if not self.task.is_done(self.part(box), self.job.options)]


def lay_out(job: Job, data: Data) -> Plan:
    """Lay tiles over a picture.

    Raises
    ------
    UsageError
        If one of them holds nothing that is known, or they are too small for the blocks of a file.
    """
    task = TASKS[job.task]
    assert not isinstance(job.tile, str), "it is decided"
    try:
        tiling = lay((data.image.shape[0], data.image.shape[1]), job.tile, task.grid(data))
    except ValueError as error:
        raise UsageError("{}: {}; give more", Argument("tile", job.tile), str(error)) from error
    known = np.ones(tiling.size, bool) if (found := task.known(data)) is None else found
    usable = known if data.aside is None else known & ~data.aside.all(axis=2)
    for box in tiling.boxes:
        if not (usable[box.place].any() or known[box.place].all()):
            raise UsageError(
                "{}: the tile of {}x{} pixels at {},{} lies in a hole, and nothing is known there; give larger tiles",
                *(Argument("tile", job.tile), box.width, box.height, box.left, box.top),
            )
    return Plan(job, data, tiling)


def measured(plan: Plan) -> Shared:
    """Measure the noise in the picture, by that in its tiles, and choose the tiles that choose the steps."""
    job, boxes = plan.job, plan.to_be_fitted() or plan.tiling.boxes
    numbers, deviations = [], []
    for box in boxes[:: -(-len(boxes) // MEASURED)]:
        objective = plan.task.objective(plan.part(box), job.options, job.recipe(plan.tiling.size), job.seed)
        numbers.append(float(getattr(objective, "perturbation", 0.0)))
        if isinstance(objective, PatchPrior):
            deviations.append(objective.degradation.deviation(objective.degradation.target))
    deviation = float(np.median(deviations)) if deviations else None
    probes: list[list[int]] = []
    if job.recipe(plan.tiling.size).options.stop == "auto":
        ordered = sorted(boxes, key=lambda box: float(plan.part(box).image.var()))
        chosen = dict.fromkeys(ordered[round(quantile * (len(ordered) - 1))] for quantile in PROBES)
        probes = [[plan.tiling.boxes.index(box), 0] for box in chosen]
    return Shared(perturbation=float(np.median(numbers)), deviation=deviation, probes=probes, iterations=None)


def agreed(shared: Shared) -> Shared:
    """Take the median of the steps that were best in single tiles for all of them."""
    steps = sorted(best for _, best in shared["probes"])
    return Shared(**{**shared, "iterations": steps[len(steps) // 2] if steps else None})


@dataclass(frozen=True, eq=False)
class Blended:
    """What became of all tiles.

    Attributes
    ----------
    image : ndarray
        float32 ``(H, W, C)``, range [0, 1].
    kept : tuple of ndarray, optional
        As in `dip_fast.fitting.Result`.
    images : None
        There are not several.
    """

    image: np.ndarray
    kept: tuple[np.ndarray, np.ndarray] | None = None
    images: None = None


def restored(job: Job, data: Data, callbacks: Sequence[Callable[[Fit], None]], *, progress: bool = False) -> Blended:
    """Restore an array in tiles, as `dip_fast.runs.tiled.run.restore` does a file; callbacks are called in each fit."""

    def run(box: Box, *, probes: bool = False) -> Fit:
        fit = plan.fit(box, probes=probes)
        with shown(fit, callbacks, progress) as called:
            fit.run(called)
        if fit.interrupted:
            raise DipFastError("the fit of a tile was interrupted, and there is no result without it; start again")
        return fit

    plan = lay_out(job, data)
    plan = replace(plan, shared=measured(plan))
    assert plan.shared is not None, "it was measured"
    for probe in plan.shared["probes"]:
        probe[1] = run(plan.tiling.boxes[probe[0]], probes=True).best_step
    plan = replace(plan, shared=agreed(plan.shared))
    tiling, kept = plan.tiling.scaled(plan.scale), None

    def images() -> Iterator[np.ndarray]:
        nonlocal kept
        for box in plan.tiling.boxes:
            result = run(box).result()
            if result.kept is not None:
                kept = np.zeros((*tiling.size, result.kept[0].shape[2]), bool) if kept is None else kept
                kept[box.scaled(plan.scale).place] = result.kept[0]
            yield result.image

    image = tiling.blend(images())
    return Blended(image, None if kept is None else (kept, image))
