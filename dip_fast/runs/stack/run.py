"""A stack in, a folder with all of its pictures restored out."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from dip_fast import large
from dip_fast.device import devices, engines
from dip_fast.device.memory import available_bytes
from dip_fast.errors import Argument, UsageError, in_words
from dip_fast.models.formats import require
from dip_fast.names import counted
from dip_fast.pictures.files import is_there, one_line
from dip_fast.pictures.stacks import Stack, in_channels, open_stack
from dip_fast.presets import PRESETS
from dip_fast.runs import checkpoints, estimate
from dip_fast.runs.checkpoints import CHECKPOINT
from dip_fast.runs.folder import Say
from dip_fast.runs.interrupting import interruptible
from dip_fast.runs.job import Job, complete, resumed, start
from dip_fast.runs.progress import Emit, Progress
from dip_fast.runs.record import NAME, Summary
from dip_fast.runs.recorder import Checkpoints, Stop
from dip_fast.runs.stack import models
from dip_fast.runs.stack.finish import finish, load
from dip_fast.runs.stack.fitting import BYTES_A_SAMPLE, together
from dip_fast.runs.stack.record import Chunk, StackFolder, StackRecord, model_names
from dip_fast.runs.stack.survey import check_reference, chunks, survey
from dip_fast.tasks import TASKS

BYTES_OF_A_MODEL = 2**22  # without what its picture takes
SHARE_OF_MEMORY = 0.5  # of what is available, for the pictures of a chunk


@dataclass(frozen=True)
class StackRequest:
    """What the user asked for.

    Attributes
    ----------
    sources : tuple of Path
        A file of several pictures, a folder, a pattern, or files.
    asked : dict
        As in `Request`.
    out : Path
        The folder for the results.
    inputs : tuple of str
        Names of inputs of other tasks that were given, to be refused.
    chunk : int, optional
        Most pictures that one network is fitted to; by default as many as memory allows.
    reference : Path, optional
        The ground truth: a stack of the same pictures.
    export : tuple of str, optional
        Formats of model files, one for each picture, which then draw the results; none by default.
    resume, overwrite, quiet, verbose : bool
        As in `Request`.
    """

    sources: tuple[Path, ...]
    asked: dict[str, Any]
    out: Path
    inputs: tuple[str, ...] = ()
    chunk: int | None = None
    reference: Path | None = None
    export: tuple[str, ...] | None = None
    resume: bool = False
    overwrite: bool = False
    quiet: bool = False
    verbose: bool = False

    @property
    def paths(self) -> list[Path]:
        """All that is read."""
        return [*self.sources, *([] if self.reference is None else [self.reference])]


@dataclass(eq=False)
class Work:
    """What the parts of the work share."""

    request: StackRequest
    job: Job
    stack: Stack
    reference: Stack | None
    folder: StackFolder
    say: Say
    emit: Emit | None
    record: StackRecord = field(init=False)


def restore(request: StackRequest, say: Say, emit: Emit | None = None) -> Summary:
    """Restore a stack.

    Parameters
    ----------
    request : StackRequest
    say, emit : callable
        As in `run`.

    Returns
    -------
    Summary
        Its ``result`` is the file, or the folder where there are several.

    Raises
    ------
    UsageError
        For wrong pictures, a folder in the way, a task or a preset that knows one picture only.
    DipFastError
        If a fit fails, or a result cannot be written.
    KeyboardInterrupt
        If the user stops it; it goes on with ``resume``.
    """
    if request.export:
        require("onnx", "onnxruntime")
    if request.resume and request.overwrite:
        raise UsageError(
            "{} and {} exclude each other; give one of the two", Argument("resume", True), Argument("overwrite", True)
        )
    folder = StackFolder(request.out, say)
    with contextlib.closing(folder), large.arrays_in(request.out):
        folder.lock()
        folder.check(fresh=not request.resume, overwrite=request.overwrite)
        stored = cast(StackRecord, StackRecord.read(request.out)) if request.resume else None
        job = complete(request.asked, request.inputs) if stored is None else resumed(request.asked, stored.settings)
        _require_masked(job)
        if request.inputs:
            raise UsageError(
                "a stack takes no {}; in Python dip_fast.denoise(stack, frames_axis=0) does",
                Argument(request.inputs[0]),
            )
        metadata = job.keep_metadata
        with contextlib.ExitStack() as opened:
            stack = opened.enter_context(contextlib.closing(open_stack(request.sources, keep_metadata=metadata)))
            reference = None
            if request.reference is not None:
                reference = opened.enter_context(contextlib.closing(open_stack([request.reference])))
                check_reference(reference, stack)
            folder.check_results(stack.results, request.paths)
            work = Work(request, job, stack, reference, folder, say, emit)
            return _restored(work, stored)


def _require_masked(job: Job) -> None:
    """Refuse what one network does for one picture only."""
    if job.task != "denoise":
        raise UsageError(
            "a stack is denoised, and {} is done picture by picture: save its pictures as files, and restore the "
            "folder of these with dip-fast batch",
            Argument("task", job.task),
        )
    if PRESETS[job.preset].recipe.masking is None:
        able = ", ".join(name for name in PRESETS if PRESETS[name].recipe.masking is not None)
        raise UsageError(
            "{} learns from one picture; take one of {}, or restore a folder picture by picture with dip-fast batch",
            *(Argument("preset", job.preset), able),
        )


def _restored(work: Work, stored: StackRecord | None) -> Summary:
    """Restore the stack that was opened."""
    request, job, stack, folder = work.request, work.job, work.stack, work.folder
    size, channels = stack.kind.size, stack.kind.channels
    needed = estimate.memory(job, channels, size)
    found = survey(stack)
    identity = _identity(work, found.sha256)
    record = StackRecord("running", job, asdict(job.recipe(size)), identity, _files(request), results=stack.results)
    record.sources = [str(source) for source in request.sources]
    if stored is None:
        record.export = list(request.export or ())
        record.chunk, most = request.chunk, request.chunk or _most(work, needed)
        record.chunks = _planned(chunks(stack.count, found.cuts, most), found.cuts)
    else:
        _require_same(stored, record, request)
        record.started, record.chunk, record.chunks = stored.started, stored.chunk, stored.chunks
        record.export, record.models = stored.export, stored.models
        if (summary := _done(stored, request)) is not None:
            work.say("this run is done; nothing is left to resume")
            return summary
    work.record = record
    folder.check_results(model_names(0, stack.count, record.export), request.paths)
    folder.check_room(_bytes_on_disk(stack, len(record.export)))
    folder.open(record, fresh=stored is None, overwrite=request.overwrite)
    for line in _first_lines(work):
        work.say(line)
    with _failures(work):
        for number in range(len(record.chunks)):
            if not _is_done(work, number):
                _restore_chunk(work, number, resumes=stored is not None)
        return finish(record, stack, work.reference, folder)


def _restore_chunk(work: Work, number: int, *, resumes: bool) -> None:
    """Fit a network to the pictures of a chunk, and keep what it makes of them."""
    record, job, folder = work.record, work.job, work.folder
    chunk, record.current = record.chunks[number], number
    task = TASKS[job.task]
    torch.set_num_threads(job.threads)
    pictures = together(work.stack, chunk["first"], chunk["count"], outliers="outliers" in task.aside)
    fit = start(job, pictures.data)
    if number == 0:
        blocks = f", {engines.describe(fit.network)}" if job.engine == "fused" else ""
        work.say(f"device {devices.describe(torch.device(job.device))}, engine {job.engine}{blocks}")
    notes = " ".join(fit.objective.notes)
    first, last = chunk["first"] + 1, chunk["first"] + chunk["count"]
    work.say(f"picture {first}: {notes}" if first == last else f"pictures {first} to {last}: {notes}")
    checkpoint = folder.place / CHECKPOINT
    if resumes and checkpoint.exists():
        checkpoints.load(checkpoint, fit, record.digest())
        work.say(f"resumed after step {fit.steps}")
    progress = Progress(
        fit, work.say, task.doing, quiet=work.request.quiet, verbose=work.request.verbose, emit=work.emit
    )
    kept = Checkpoints(folder, record)
    stop = Stop(kept)
    with interruptible(fit, quiet=True), progress:
        fit.run([progress, kept, stop])
        stop(fit)  # where it was interrupted after the last call
        kept.write(fit)
        result = fit.result()
        samples = pictures.restored(result)
        if record.export:
            for n, drawn in models.write(fit, pictures, work.stack, chunk, record, folder):
                samples[n] = drawn
        stop(fit)
    data = io.BytesIO()
    np.save(data, samples, allow_pickle=False)
    folder.rewrite(chunk["file"], data.getvalue())  # here it must not fail
    folder.remove([CHECKPOINT])  # it is of this chunk, and not of the next one
    chunk["sha256"] = hashlib.sha256(data.getvalue()).hexdigest()
    chunk["steps"], chunk["seconds"] = result.steps, round(fit.seconds, 3)
    chunk["estimated_psnrs"] = [float(each) for each in result.estimated_psnrs or ()]
    record.events += result.events
    folder.rewrite(NAME, record.json())


def _is_done(work: Work, number: int) -> bool:
    """Whether the results of a chunk are there, as they were written."""
    chunk = work.record.chunks[number]
    path = work.folder.place / chunk["file"]
    named = model_names(chunk["first"], chunk["count"], work.record.export)
    wanted = [path, *(work.folder.place / name for name in named)]
    if chunk["sha256"] is None or not all(is_there(each) for each in wanted):
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() == chunk["sha256"] and load(path) is not None


def _planned(plan: list[tuple[int, int]], cuts: tuple[int, ...]) -> list[Chunk]:
    """Make the record's entries of chunks that are to be fitted."""
    return [
        Chunk(
            first=first,
            count=count,
            why=cast(Any, "scene" if first in cuts else "size" if first else "start"),
            file=f"chunk_{number:04}.npy",
            sha256=None,
            steps=0,
            seconds=0.0,
            estimated_psnrs=[],
        )
        for number, (first, count) in enumerate(plan)
    ]


def _most(work: Work, needed: int) -> int:
    """Compute how many pictures memory allows."""
    kind = work.stack.kind
    each = BYTES_A_SAMPLE * kind.width * kind.height * kind.channels
    free = SHARE_OF_MEMORY * (available_bytes() - needed)
    return max(1, int(free // each))


def _identity(work: Work, sha256: str) -> dict[str, dict[str, Any]]:
    """Identify what is read."""
    stack, reference = work.stack, work.reference
    kind = stack.kind
    facts = {"width": kind.width, "height": kind.height, "channels": kind.channels, "dtype": kind.dtype}
    pictures = {"pictures": stack.count, "axes": stack.described}
    identity = {"picture": {"name": stack.name, **facts, **pictures, "sha256": sha256}}
    if reference is not None:
        identity["reference"] = {"name": reference.name, "sha256": survey(reference).sha256}
    return identity


def _files(request: StackRequest) -> dict[str, str]:
    reference = {} if request.reference is None else {"reference": str(request.reference)}
    return {"picture": str(request.sources[0]), **reference}


def _require_same(stored: StackRecord, record: StackRecord, request: StackRequest) -> None:
    """Refuse to go on with other pictures, or another meaning of the settings."""
    again = Argument("overwrite", True)
    if not stored.chunks or stored.inputs != record.inputs:
        raise UsageError(
            "cannot resume: the pictures and the reference must be those that the run was started with; give the same "
            "ones, or start again with {}",
            again,
        )
    if stored.recipe != json.loads(json.dumps(record.recipe)):
        raise UsageError(
            "cannot resume: preset {} differs between the versions; start again with {}", record.settings.preset, again
        )
    iterations = record.recipe["options"]["iterations"]
    for name, value, known in (
        ("chunk", request.chunk, stored.chunk),
        ("iterations", request.asked.get("iterations"), iterations),
        ("export", _formats(request.export), _formats(stored.export)),
    ):
        if value is not None and value != known:
            raise UsageError(
                "cannot resume with {}: leave it out, or start again with {}", Argument(name, value), again
            )


def _formats(export: Sequence[str] | None) -> str | None:
    """Spell formats as the option does."""
    return None if export is None else ",".join(export) or "none"


def _done(stored: StackRecord, request: StackRequest) -> Summary | None:
    """Find the summary of a run that is done and whose results are there."""
    summary = stored.summary
    if stored.status != "done" or summary is None or summary.problems:
        return None
    models = [model | {"path": str(request.out / Path(model["path"]).name)} for model in summary.models]
    names = [*stored.results, *(Path(model["path"]).name for model in models)]
    if not all(is_there(request.out / name) for name in names):
        return None
    result = request.out if len(stored.results) > 1 else request.out / stored.results[0]
    return Summary(**{**asdict(summary), "result": str(result), "folder": str(request.out), "models": models})


def _bytes_on_disk(stack: Stack, formats: int) -> int:
    """Estimate what the run writes at most: the results twice, a checkpoint, and model files."""
    kind = stack.kind
    samples = np.dtype(kind.dtype).itemsize * kind.width * kind.height * (kind.channels + 1)
    model = BYTES_OF_A_MODEL + 4 * kind.width * kind.height * kind.channels
    return (2 * samples + formats * model) * stack.count + 2**26


def _first_lines(work: Work) -> Iterator[str]:
    """Describe what is restored, and in which chunks."""
    stack, job, record = work.stack, work.job, work.record
    kind = stack.kind
    yield (
        f"{one_line(stack.name)}: {stack.described}, {kind.width}x{kind.height}, "
        f"{in_channels(kind.channels, kind.dtype)}; preset {job.preset}, seed {job.seed}"
    )
    yield from stack.notes
    scenes = [str(chunk["first"] + 1) for chunk in record.chunks if chunk["why"] == "scene"]
    if scenes:
        yield f"another scene begins with picture {', '.join(scenes)}"
    if len(record.chunks) > 1:
        most = max(chunk["count"] for chunk in record.chunks)
        yield f"{len(record.chunks)} networks, each for {counted(most, 'picture')} at most"


@contextlib.contextmanager
def _failures(work: Work) -> Iterator[None]:
    """Record that a run has failed."""
    try:
        yield
    except Exception as error:
        work.record.status, work.record.error = "failed", one_line(str(in_words(error)))
        work.folder.write(NAME, work.record.json)
        raise
