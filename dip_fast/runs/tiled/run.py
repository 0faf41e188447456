"""A picture restored in tiles: the fit of each is that of a picture of its own, and in the end they are blended.

What is done of a tile is kept in the run's folder, so that a run which was stopped, or killed, goes on with the tile
that it was at.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np

from dip_fast import large
from dip_fast.errors import Argument, UsageError
from dip_fast.fitting import Fit
from dip_fast.fitting.results import COLUMNS
from dip_fast.models import onnx_engine, tiled, writing
from dip_fast.models.model import LIST
from dip_fast.names import counted
from dip_fast.pictures.tiling import Box
from dip_fast.runs import checkpoints, finish, report
from dip_fast.runs.checkpoints import CHECKPOINT
from dip_fast.runs.finish import Finished, Outcome
from dip_fast.runs.folder import Folder, model_of_tile, output_of_tile
from dip_fast.runs.interrupting import interruptible
from dip_fast.runs.material import Material
from dip_fast.runs.opening import Run
from dip_fast.runs.places import NAME
from dip_fast.runs.progress import Progress
from dip_fast.runs.record import ModelFile, Summary, TileFile, now
from dip_fast.runs.recorder import Checkpoints, Stop
from dip_fast.runs.tiled.plan import Plan, agreed, lay_out, measured

BYTES_OF_WEIGHTS = 2**22


def restore(run: Run) -> Summary:
    """Restore the picture of a run in tiles.

    Raises
    ------
    UsageError
        For tiles that hold nothing, formats of which there is no list, or a run that began otherwise.
    DipFastError
        If a fit fails, or a result cannot be written.
    KeyboardInterrupt
        If the user stops it; it goes on with ``resume``.
    """
    record, folder = run.record, run.folder
    if others := [name for name in run.formats if name != "onnx"]:
        raise UsageError(
            "{}: the model of a picture in tiles is a list of ONNX files; leave {} out",
            *(Argument("export", ",".join(run.formats)), others[0]),
        )
    plan = lay_out(run.job, run.material.data)
    planned = [_entry(n, box) for n, box in enumerate(plan.tiling.boxes)]
    stored = run.stored
    record.tiles, record.shared = planned, None if stored is None else stored.shared
    if stored is not None:
        if stored.settings != run.job or [_box(each) for each in stored.tiles or []] != plan.tiling.boxes:
            raise UsageError(
                "cannot resume: a run in tiles has the settings that it began with; leave out others, or start again "
                "with {}",
                Argument("overwrite", True),
            )
        record.tiles, record.events = stored.tiles or planned, stored.events
    record.shared = record.shared or measured(plan)
    disk = _bytes_on_disk(run, plan)
    folder.check_room(disk)
    first = replace(plan, shared=record.shared).fit(plan.tiling.boxes[0])
    run.begin(disk, first, [f"in {counted(len(planned), 'tile')} of at most {run.job.tile} pixels a side"])
    del first
    with run.failures():
        for probe in record.shared["probes"]:
            if not probe[1]:
                _Tile(run, replace(plan, shared=record.shared), probe[0]).probe(probe)
        if record.shared["iterations"] is None:
            record.shared = agreed(record.shared)
        plan = replace(plan, shared=record.shared)
        for n, entry in enumerate(record.tiles):
            if not _is_done(run, entry, n):
                _Tile(run, plan, n).restore(entry)
        return _finish(run, plan)


@dataclass(frozen=True, eq=False)
class _Tile:
    """A tile that is at work.

    Attributes
    ----------
    run : Run
    plan : Plan
    number : int
        Counted from 0.
    """

    run: Run
    plan: Plan
    number: int

    def probe(self, found: list[int]) -> None:
        """Find out how many steps are best in the tile."""
        fit = self._fitted(f"probe {self.number}", probes=True)
        found[1] = fit.best_step
        self._done(fit)

    def restore(self, entry: TileFile) -> None:
        """Fit a network to the tile, and keep what it draws."""
        run, folder = self.run, self.run.folder
        fit = self._fitted(f"tile {self.number}")
        result = fit.result()
        kind, extras = finish.result_kind(run.record, self._material())
        model = finish.fold(result, folder, run.record, kind, extras)
        if model is None:
            output = extras.put_back(kind.to_samples(result.image)).astype(np.float32)
        else:
            output = model.output
        entry["model"] = None
        if model is not None and run.formats:
            with folder.attempt(f"the model file of tile {self.number + 1}"):
                path = folder.place / model_of_tile(self.number)
                entry["model"] = writing.write(model, path, "onnx", threads=run.job.threads)["sha256"]
        data = io.BytesIO()
        history = np.array([result.history[name] for name in COLUMNS])
        np.savez(data, output=output, history=history)
        folder.rewrite(entry["file"], data.getvalue())  # here it must not fail
        entry["sha256"] = hashlib.sha256(data.getvalue()).hexdigest()
        entry["steps"], entry["seconds"] = result.steps, round(fit.seconds, 3)
        self._done(fit)

    def _fitted(self, part: str, *, probes: bool = False) -> Fit:
        """Run the fit of the tile to its end, from its checkpoint where there is one."""
        run, record, folder = self.run, self.run.record, self.run.folder
        box, count = self.plan.tiling.boxes[self.number], len(self.plan.tiling.boxes)
        record.part = f"{part} {[*box]} {self.plan.shared}"
        fit = self.plan.fit(box, run.material.reference, probes=probes)
        checkpoint = folder.place / CHECKPOINT
        if run.stored is not None and checkpoint.exists():
            checkpoints.load(checkpoint, fit, record.digest())
        going_on = f", resumed after step {fit.steps}" if fit.steps else ""
        run.say(f"{'steps of' if probes else 'tile'} {self.number + 1} of {count}{going_on}")
        quiet, verbose = run.request.quiet, run.request.verbose
        assert self.plan.shared is not None, "it was measured"
        first = [at for at, _ in self.plan.shared["probes"]]
        among = first.index(self.number) if probes else len(first) + self.number, len(first) + count
        progress = Progress(fit, run.say, self.plan.task.doing, quiet=quiet, verbose=verbose, emit=run.emit, part=among)
        kept = Checkpoints(folder, record)
        stop = Stop(kept)
        with interruptible(fit, quiet=True), progress:
            fit.run([progress, kept, stop])
            stop(fit)  # where it was interrupted after the last call
        return fit

    def _done(self, fit: Fit) -> None:
        """Write that the tile is done, once its checkpoint is gone, which the next one could not go on from."""
        large.give_back()  # the allocator keeps what the fit has freed, and a little more after each
        self.run.folder.remove([CHECKPOINT])
        self.run.record.events += fit.events
        self.run.folder.rewrite(NAME, self.run.record.json())

    def _material(self) -> Material:
        """Make what a run of the tile alone would have read."""
        whole, box = self.run.material, self.plan.tiling.boxes[self.number]
        return replace(whole, picture=whole.picture.cropped(*box.place), data=self.plan.part(box))


def _entry(number: int, box: Box) -> TileFile:
    """Make the record's entry of a tile that is to be fitted."""
    file = output_of_tile(number)
    top, left, height, width = box
    return TileFile(
        top=top, left=left, height=height, width=width, file=file, sha256=None, model=None, steps=0, seconds=0.0
    )


def _box(entry: TileFile) -> Box:
    return Box(entry["top"], entry["left"], entry["height"], entry["width"])


def _is_done(run: Run, entry: TileFile, number: int) -> bool:
    """Whether what is kept of a tile is there as it was written."""
    path = run.folder.place / entry["file"]
    wanted = [(path, entry["sha256"])]
    if run.formats:
        wanted.append((run.folder.place / model_of_tile(number), entry["model"]))
    return all(
        sha256 is not None and file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == sha256
        for file, sha256 in wanted
    )


def _bytes_on_disk(run: Run, plan: Plan) -> int:
    """Estimate what the run writes at most."""
    recipe, channels = run.job.recipe(plan.tiling.size), run.material.picture.channels
    pixels = sum(math.prod(box[2:]) for box in plan.tiling.boxes) * plan.scale**2
    models = (recipe.in_channels + 4 * channels) * pixels + BYTES_OF_WEIGHTS * len(plan.tiling.boxes)
    largest = max(math.prod(box[2:]) for box in plan.tiling.boxes) * plan.scale**2
    checkpoint = 10 * BYTES_OF_WEIGHTS + 12 * channels * largest
    return 12 * channels * pixels + models * len(run.formats) + checkpoint + report.MAX_BYTES


def _finish(run: Run, plan: Plan) -> Summary:
    """Blend the tiles, and write the result as that of any run."""
    record, folder, tiles = run.record, run.folder, run.record.tiles
    assert tiles is not None, "they are done"
    kind, extras = finish.result_kind(record, run.material)

    def outputs() -> Iterator[np.ndarray]:
        for entry in tiles:
            with np.load(folder.place / entry["file"], allow_pickle=False) as kept:
                yield kept["output"]

    output = plan.tiling.scaled(plan.scale).blend(outputs())
    has_models = all(entry["model"] is not None for entry in tiles)

    def models(folder: Folder, formats: tuple[str, ...], threads: int) -> list[ModelFile]:
        """Write the list of the model files, which are there."""
        if not formats or not has_models:
            return []
        files = [(model_of_tile(n), str(entry["model"])) for n, entry in enumerate(tiles)]
        facts = {"options": {**vars(record.settings), "recipe": record.recipe}, "seed": record.settings.seed}
        write = partial(tiled.write, kind=kind, extras=replace(extras, exif=None), facts=facts)
        with folder.attempt(LIST):
            return [cast(ModelFile, write(folder.place / LIST, plan.tiling.scaled(plan.scale), files, output))]
        return []

    finished = Finished(kind.rounded(output), kind.to_unit(output), onnx_engine.version(), models)
    steps, seconds = max(entry["steps"] for entry in tiles), sum(entry["seconds"] for entry in tiles)
    reason = "variance" if steps < run.job.recipe(plan.tiling.size).options.iterations else "iterations"
    outcome = Outcome(steps, steps, reason, seconds, None, _history(run, steps))
    record.status, record.ended = "done", now()
    record.seconds_per_step = seconds / max(sum(entry["steps"] for entry in tiles), 1)
    record.written = {}
    summary = finish.write(finished, outcome, folder, record, run.material, run.formats, run.request.target)
    folder.remove([entry["file"] for entry in tiles])
    return summary


def _history(run: Run, steps: int) -> dict[str, np.ndarray]:
    """Average the histories of the tiles that were fitted, step by step."""
    tables = []
    for entry in run.record.tiles or []:
        with np.load(run.folder.place / entry["file"], allow_pickle=False) as kept:
            if kept["history"].shape[1] == steps:
                tables.append(kept["history"])
    return dict(zip(COLUMNS, np.mean(tables, axis=0), strict=True))
