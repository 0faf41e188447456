"""Another answer of a run that is over: that of an earlier step, or a blend with the input."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from dip_fast.errors import Argument, DipFastError, UsageError
from dip_fast.fitting import Fit
from dip_fast.models import fitted
from dip_fast.models.formats import FORMATS
from dip_fast.models.model import IN_FOLDER
from dip_fast.pictures import Kind
from dip_fast.pictures.files import is_there
from dip_fast.presets import PRESETS
from dip_fast.runs import checkpoints, finish, states
from dip_fast.runs.checkpoints import CHECKPOINT
from dip_fast.runs.finish import Outcome
from dip_fast.runs.folder import Folder, Say
from dip_fast.runs.job import start
from dip_fast.runs.material import Material
from dip_fast.runs.record import NAME, Record, Summary, UnreadableError
from dip_fast.runs.rewriting import history, material_of
from dip_fast.runs.untouched import changed, written_by


@dataclass(frozen=True)
class Choices:
    """What there is to pick from.

    Attributes
    ----------
    step, strength
        Of the answer now.
    first : int
        Step of the answer that the fit chose.
    steps : list of int
        All whose averages are there.
    why : str
        Why there is none but the first, where that is so.
    no_blend : str
        Why there is no strength but 1, where that is so.
    """

    step: int
    strength: float
    first: int
    steps: list[int]
    why: str = ""
    no_blend: str = ""


def choices(path: Path) -> Choices:
    """List what there is to pick from in a run's folder.

    Raises
    ------
    UsageError
        If it is not the folder of a run that has a result.
    """
    with contextlib.closing(Folder(path, lambda line: None)) as folder:
        return _choices(_record(path)[0], folder)


def pick(
    path: Path,
    say: Say,
    *,
    step: int | None = None,
    strength: float | None = None,
    inputs: Path | None = None,
    overwrite: bool = False,
) -> Summary:
    """Write result, report and model files of a run anew, from an earlier step or blended with the input.

    Parameters
    ----------
    path : Path
        The folder of the run.
    say : callable
        Prints a line for the user.
    step : int, optional
        One of `Choices.steps`; as it is by default.
    strength : float, optional
        From 0, the input, to 1, the answer of the fit; as it is by default.
    inputs : Path, optional
        A folder that holds the picture and the other files of the run by now; by default where they were.
    overwrite : bool
        Whether to replace files of the run that somebody has changed since.

    Raises
    ------
    UsageError
        If there is no such step, or the input cannot be blended with the result, or something would be lost.
    DipFastError
        If it cannot be written.
    """
    folder = Folder(path, say)
    with contextlib.closing(folder):
        folder.lock()
        folder.check(fresh=False)
        record, summary = _record(path)
        first, formats = record.first or summary, tuple(model["format"] for model in summary.models)
        step = summary.best_step if step is None else step
        strength = summary.strength if strength is None else strength
        _check(_choices(record, folder), step, strength)
        if not overwrite:
            _require_untouched(path, record)
        material = material_of(record, inputs)
        kind, extras = finish.result_kind(record, material)
        samples = _samples(material, kind) if strength < 1 else None
        threads = min(record.settings.threads, os.cpu_count() or 1)
        torch.set_num_threads(threads)
        table = history(path / "history.csv")
        if step == summary.best_step:
            model = replace(_model(path, summary, kind), kind=kind, extras=replace(extras, exif=None))
        else:
            fit = _fit(folder, record, material, step)
            result = fit.result()
            table = result.history
            drawn = finish.fold(result, folder, record, kind, extras)
            if drawn is None:
                raise DipFastError("{}; nothing was changed", folder.problems[0])
            model = drawn
        model = fitted.blended(model, samples, strength, threads=threads)
        if not table:
            raise UsageError("{} is gone or damaged; the report cannot be written without it", path / "history.csv")
        is_first = (step, strength) == (first.best_step, 1.0)
        estimate = first.estimated_psnr if is_first else None
        of_guide = first.guide_psnr if is_first else None
        outcome = Outcome(first.steps, step, first.stop_reason, first.seconds, estimate, table, strength, of_guide)
        finished = finish.of_model(model, kind)
        record.first = first
        chosen = finish.write(finished, outcome, folder, record, material, formats)
        if is_first and chosen.sha256 != first.sha256:
            say("this is the first answer again, but for rounding: it was drawn by other versions or another machine")
        for name in record.copies:
            say(f"{name} stays as it is; the new result is {chosen.result}")
        _name_older(path, chosen, say)
        return chosen


def _record(path: Path) -> tuple[Record, Summary]:
    """Read the record of a run that is over."""
    if not (is_there(path) and path.is_dir() and (path / NAME).exists()):
        raise UsageError("{} is not a run's folder; name one", path)
    try:
        record = Record.load(path)
    except UnreadableError as error:
        raise UsageError("{} {}; there is nothing to pick from without it", path / NAME, error) from error
    if record.sources is not None:
        raise UsageError("{} is the folder of a stack, and holds no other answers; pick from that of one picture", path)
    if record.tiles is not None:
        raise UsageError("the picture of {} was restored in tiles, and there is no other answer of all of them", path)
    if record.summary is None:
        raise UsageError("the run in {} has no result yet ({}); let it end first", path, record.status)
    return record, record.summary


def _choices(record: Record, folder: Folder) -> Choices:
    summary = record.summary
    assert summary is not None
    first, kept = (record.first or summary).best_step, [*folder.states()]
    why = ""
    if PRESETS[record.settings.preset].recipe.masking is not None:
        kept, why = [], "its networks learn from hidden samples, and draw no whole picture before the end"
    elif not kept:
        why = "no earlier state was kept: the fit was shorter, or had --snapshot-every 0"
    no_blend = ""
    if record.settings.task == "inpaint":
        no_blend = "where the result was filled in, the input holds nothing"
    elif record.settings.options.get("scale", 1) != 1:
        no_blend = "the input has another size than the result"
    return Choices(summary.best_step, summary.strength, first, sorted({first, *kept}), why, no_blend)


def _check(found: Choices, step: int, strength: float) -> None:
    """Refuse what there is not."""
    if step != found.step and step not in found.steps:
        there = f"there {'are' if len(found.steps) > 1 else 'is'} {', '.join(map(str, found.steps))}"
        raise UsageError("{}: {}{}; pick one of these", Argument("step", step), found.why and f"{found.why}; ", there)
    if not 0 <= strength <= 1:
        raise UsageError("{} must be from 0, the input, to 1, the answer of the fit", Argument("strength", strength))
    if strength < 1 and found.no_blend:
        raise UsageError("{}: {}; leave it out", Argument("strength", strength), found.no_blend)


def _name_older(path: Path, chosen: Summary, say: Say) -> None:
    """Name the model files that `dip-fast export` wrote of the answer before: they draw that one."""
    suffixes = {entry.suffix for entry in FORMATS.values()}
    written = {Path(model["path"]).name for model in chosen.models}
    for file in sorted(path.glob("model*")):
        if file.suffix in suffixes and file.name not in written:
            say(f"{file.name} stays as it is, of the answer before; dip-fast export ... --overwrite replaces it")


def _require_untouched(path: Path, record: Record) -> None:
    """Refuse to replace what somebody has changed since the run wrote it."""
    if (file := changed(path, written_by(record))) is not None:
        raise UsageError(
            "{} is not as this version of the run wrote it; move what you have changed away, or give {}",
            *(file, Argument("overwrite", True)),
        )


def _model(path: Path, summary: Summary, kind: Kind) -> fitted.FittedModel:
    """Read the fitted network of the answer as it is; a pick that was killed may have left a file of its own blend."""
    if not is_there(path / IN_FOLDER):
        raise UsageError("{} is gone; make it with dip-fast run PICTURE ... --resume --export onnx", path / IN_FOLDER)
    model = fitted.from_file(path / IN_FOLDER)
    drawn = [(of.size, of.channels, of.dtype, of.value_range, of.channel_ranges) for of in (model.kind, kind)]
    if drawn[0] != drawn[1] or model.facts["best_step"] != summary.best_step:
        raise UsageError("{} is not that of step {}; pick another step", path / IN_FOLDER, summary.best_step)
    return model


def _samples(material: Material, kind: Kind) -> np.ndarray:
    """Find what of the input a result can be blended with."""
    picture = material.picture
    if (picture.size, picture.channels) != (kind.size, kind.channels):
        raise UsageError("{}: the input has other channels than the result; leave it out", Argument("strength"))
    return kind.to_samples(picture.image)


def _fit(folder: Folder, record: Record, material: Material, step: int) -> Fit:
    """Bring a fit to its end from the averages of a step, as the run itself came to it."""
    job, checkpoint, run = record.settings, folder.place / CHECKPOINT, record.digest()
    fit = start(job, material.data, material.reference)
    try:
        checkpoints.load(checkpoint, fit, run)
    except UsageError as error:
        raise UsageError(
            "{} is gone, damaged or of another version, and an earlier step needs it; {} alone does not",
            *(checkpoint, Argument("strength")),
        ) from error
    if step != fit.best_step:
        fit.choose(step, states.load(folder.states()[step], fit, run))
    if not fit.stop_reason:  # the user stopped it, and had the averages as they were
        fit.interrupt()
    fit.run()
    return fit
