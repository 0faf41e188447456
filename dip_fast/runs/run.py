"""One run: a picture in, a folder with the restored picture and all that is needed to repeat it out."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from dip_fast import large
from dip_fast.errors import Argument, UsageError
from dip_fast.fitting import Fit
from dip_fast.models.formats import FORMATS, require
from dip_fast.models.model import LIST
from dip_fast.pictures.files import is_there
from dip_fast.pictures.reading import check_header
from dip_fast.runs import checkpoints, estimate, report
from dip_fast.runs.checkpoints import CHECKPOINT
from dip_fast.runs.finish import finish
from dip_fast.runs.folder import Folder, Say, model_of_tile
from dip_fast.runs.interrupting import interruptible
from dip_fast.runs.job import Job, complete, extended, resumed, settled, start
from dip_fast.runs.material import Material, Request, read
from dip_fast.runs.opening import Run, expected_lines
from dip_fast.runs.places import NAME
from dip_fast.runs.progress import Emit, Progress
from dip_fast.runs.record import Record, Summary
from dip_fast.runs.recorder import Checkpoints, Snapshots
from dip_fast.runs.states import MOST, States, has_states
from dip_fast.runs.tiled.plan import decided
from dip_fast.runs.tiled.run import restore as in_tiles
from dip_fast.runs.untouched import changed, written_by
from dip_fast.tasks import TASKS

ARRAYS = 8  # of the size of a large picture, as float32, that lie in files at the same time; 7.3 for 100 megapixels


def run(request: Request, say: Say, emit: Emit | None = None) -> Summary:
    """Restore a picture.

    Parameters
    ----------
    request : Request
    say : callable
        Prints a line for the user.
    emit : callable, optional
        Takes the progress as events, in place of what is shown.

    Returns
    -------
    Summary
        Its ``folder`` is the run's folder.

    Raises
    ------
    UsageError
        For a wrong picture, mask or reference, a folder in the way, a picture that is too large for the memory.
    DipFastError
        If the fit fails, or the result can be written nowhere.
    """
    require("onnx", "onnxruntime")
    if request.resume and request.overwrite:
        raise UsageError(
            "{} and {} exclude each other; give one of the two", Argument("resume", True), Argument("overwrite", True)
        )
    formats = ("onnx",) if request.export is None else request.export
    folder = Folder(request.folder, say)
    with contextlib.closing(folder), large.arrays_in(request.folder):
        folder.lock()
        resumes = request.resume or (request.goes_on and is_there(request.folder / NAME))
        folder.check(fresh=not resumes, overwrite=request.overwrite)
        stored = Record.read(request.folder) if resumes else None
        if request.target is not None:
            own = None if stored is None else stored.copies.get(request.target.name)
            request.target.check(request.paths, overwrite=request.overwrite, own=own)
        job = _job(request, stored)
        task = TASKS[job.task]
        needed, ahead = _by_header(request, job, fresh=stored is None)
        for line in ahead:  # before a large picture is decoded, which takes a while
            say(line)
        material = read(request, job, task)
        request.forget_content()
        large.give_back()
        picture = material.picture
        if stored is None:
            job = settled(job, request.asked, request.inputs, material.data)
            job = decided(job, picture.channels, picture.size)
        if request.target is not None:
            request.target.check_kind(task.result_kind(picture.kind, job.options))
        if stored is not None:
            _require_same(stored, job, material)
            job = extended(job, picture.size, request.asked.get("iterations"))
            if job == stored.settings and (summary := _done(stored, request)):
                say("this run is done; nothing is left to resume")
                return summary
            _require_untouched(request.folder, stored)
        torch.set_num_threads(job.threads)
        begun = Run(request, job, material, folder, stored, formats, needed, ahead, say, emit)
        return _whole(begun) if job.tile == "never" else in_tiles(begun)


def _whole(run: Run) -> Summary:
    """Restore a picture with one network."""
    request, job, record, folder = run.request, run.job, run.record, run.folder
    fit = start(job, run.material.data, run.material.reference)
    disk = _bytes_on_disk(fit, job, len(run.formats))
    folder.check_room(disk)
    checkpoint = request.folder / CHECKPOINT
    if run.stored is not None and checkpoint.exists():
        checkpoints.load(checkpoint, fit, record.digest())
    with interruptible(fit, quiet=request.quiet):
        run.begin(disk, fit, fit.objective.notes)
        for line in () if run.stored is None else _resumed_lines(run.stored, record, fit):
            run.say(line)
        doing = TASKS[job.task].doing
        progress = Progress(fit, run.say, doing, quiet=request.quiet, verbose=request.verbose, emit=run.emit)
        with run.failures(fit):
            _fit(fit, folder, record, progress)
            return finish(fit, folder, record, run.material, run.formats, request.target)


def _job(request: Request, stored: Record | None) -> Job:
    """Complete what is asked for, or take the settings of the run that is resumed."""
    if stored is None:
        return complete(request.asked, request.inputs)
    job = resumed(request.asked, stored.settings)
    if stored.inputs.keys() - {"picture", "reference"} != request.inputs.keys():
        raise _other_inputs(stored.inputs.keys() | request.inputs.keys())
    return job


def _by_header(request: Request, job: Job, *, fresh: bool) -> tuple[int, list[str]]:
    """Find what a run takes by the header of its picture, before that is decoded.

    Returns
    -------
    memory : int
        In bytes, as estimated; 0 where the header does not say the size.
    lines : list of str
        What to say of it.

    Raises
    ------
    UsageError
        If there is not so much memory.
    """
    name = os.fspath(request.source) if isinstance(request.source, Path) else "stdin"
    found = check_header(request.data, name)
    if found is None or found[2] not in (1, 3):
        return 0, []
    size = request.part.size(*found[:2])
    likely = decided(job, found[2], size)
    needed = estimate.memory(likely, found[2], size)
    chosen = any(request.asked.get(name) is not None for name in ("preset", "network"))
    return needed, expected_lines(likely, size, needed, fresh=fresh and (chosen or not TASKS[job.task].reads_preset))


def _fit(fit: Fit, folder: Folder, record: Record, progress: Progress) -> None:
    """Run a fit to its end, with progress, snapshots and checkpoints."""
    snapshots, kept = Snapshots(folder, record, fit), Checkpoints(folder, record)
    states = [States(folder, record, fit)] if has_states(record.settings, fit) else []
    with progress:
        fit.run([progress, snapshots, *states, kept])
    if not fit.steps:  # stopped before there was anything to write
        raise KeyboardInterrupt
    kept.write(fit)


def _resumed_lines(stored: Record, record: Record, fit: Fit) -> Iterator[str]:
    """Log from where a run goes on, and what becomes of what was there."""
    yield f"resumed after step {fit.steps}" if fit.steps else "there is no checkpoint yet: starting again"
    if stored.versions != record.versions:
        yield f"the run was started with {stored.versions}, which may make a difference"
    first, summary = stored.first, stored.summary
    if first and summary and (first.best_step, 1) != (summary.best_step, summary.strength):
        picked = f"--step {summary.best_step} --strength {summary.strength:g}"
        yield f"the answer that was picked gives way to that of the fit; dip-fast pick ... {picked} makes it again"


def _done(stored: Record, request: Request) -> Summary | None:
    """Find the summary of a run that is done and has left all that it should, and that is asked for now."""
    summary, path, formats = stored.summary, request.folder, request.export or ()
    if request.target is not None and not is_there(request.target.path):
        return None
    if stored.status != "done" or summary is None or summary.problems or summary.stop_reason == "interrupted":
        return None
    result = path / Path(summary.result).name
    models = [model | {"path": str(path / Path(model["path"]).name)} for model in summary.models]
    names = [LIST if stored.tiles and key == "onnx" else f"model{FORMATS[key].suffix}" for key in formats]
    names += [model_of_tile(n) for n, tile in enumerate(stored.tiles or []) if tile["model"] is not None]
    wanted = {*(model["path"] for model in models), *(str(path / name) for name in names)}
    if not all(is_there(Path(str(place))) and Path(str(place)).is_file() for place in (result, *wanted)):
        return None
    return Summary(**{**asdict(summary), "result": str(result), "folder": str(path), "models": models})


def _bytes_on_disk(fit: Fit, job: Job, models: int) -> int:
    """Estimate what the run writes at most: snapshots, result, models, the checkpoint beside the one it replaces."""
    weights = sum(parameter.nbytes for parameter in fit.network.parameters())
    image = 4 * fit.objective.channels * math.prod(fit.objective.size)
    drawn = 3 * image if fit.objective.draws_iterates else 0
    state = 5 * weights + drawn  # weights, their average, the best ones, Adam's moments; three pictures
    arrays = ARRAYS * image if fit.objective.is_large else 0
    snapshots = fit.options.iterations // job.snapshot_every if job.snapshot_every else 0
    states = (MOST + 1) * (weights + image) if has_states(job, fit) else 0
    model = 2 * weights + fit.z.nbytes + 3 * image + 2**18
    # 2**21: sheet, plot and tables
    return arrays + 4 * state + states + snapshots * image // 4 + 2 * image + models * model + report.MAX_BYTES + 2**21


def _require_same(stored: Record, job: Job, material: Material) -> None:
    """Refuse to go on with another picture, another input or another meaning of the preset."""
    if stored.inputs != material.identity:
        raise _other_inputs(stored.inputs.keys() | material.identity.keys())
    if stored.recipe != json.loads(json.dumps(asdict(job.recipe(material.picture.size)))):
        raise UsageError(
            "cannot resume: preset {} differs between the versions; start again with {}",
            *(job.preset, Argument("overwrite", True)),
        )


def _require_untouched(folder: Path, stored: Record) -> None:
    """Refuse to write over what somebody has made of the result of a run that was stopped, or that is extended."""
    if (file := changed(folder, written_by(stored))) is not None:
        raise UsageError(
            "cannot resume: {} is not as the run wrote it; move what you have changed away, or start again with {}",
            *(file, Argument("overwrite", True)),
        )


def _other_inputs(names: Iterable[str]) -> UsageError:
    """Make the error of a run that is resumed with other inputs than it was started with."""
    *first, last = sorted(names)
    return UsageError(
        "cannot resume: {} must be those that the run was started with; give the same ones, or start again with {}",
        *(f"{', '.join(first)} and {last}" if first else last, Argument("overwrite", True)),
    )
