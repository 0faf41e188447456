"""The end of a run: the answer becomes a result, model files, and what explains them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np

from dip_fast import large, pictures
from dip_fast.errors import DipFastError
from dip_fast.fitting import Fit, Result
from dip_fast.models import fitted, writing
from dip_fast.models.fitted import FittedModel
from dip_fast.models.formats import FORMATS
from dip_fast.models.packing import digest
from dip_fast.pictures import Extras, Kind, Picture, metrics
from dip_fast.pictures.files import one_line
from dip_fast.runs import charts, report, reporting, views
from dip_fast.runs.contact_sheet import sheet_of
from dip_fast.runs.folder import Folder
from dip_fast.runs.material import Material
from dip_fast.runs.places import NAME
from dip_fast.runs.record import ModelFile, Quality, Record, Summary, now
from dip_fast.runs.target import Target
from dip_fast.tasks import TASKS, Baseline, Data, Task

MAX_BASELINE_PIXELS = 2**22  # a classical method takes a second a megapixel; beyond this it is left out


Models = Callable[[Folder, tuple[str, ...], int], list[ModelFile]]


@dataclass(frozen=True, eq=False)
class Finished:
    """A result as it is written.

    Attributes
    ----------
    samples : ndarray
        ``(H, W, C)`` in the result's dtype.
    image : ndarray
        The same, float32 in [0, 1], before it is rounded.
    engine : str
        The library that drew it, with its version.
    models : callable
        ``models(folder, formats, threads)`` writes the model files that draw it.
    """

    samples: np.ndarray
    image: np.ndarray
    engine: str
    models: Models


def of_model(model: FittedModel, kind: Kind) -> Finished:
    """Take what a fitted model draws."""
    return Finished(model.samples, kind.to_unit(model.output), model.engine, partial(_models, model))


@dataclass(frozen=True, eq=False)
class Outcome:
    """What is known of an answer beside its picture.

    Attributes
    ----------
    steps, best_step, stop_reason, seconds, estimated_psnr, strength, guide_psnr
        As in `Summary`.
    history : dict of str to ndarray
        As in `Result`.
    """

    steps: int
    best_step: int
    stop_reason: Any
    seconds: float
    estimated_psnr: float | None
    history: Mapping[str, np.ndarray]
    strength: float = 1.0
    guide_psnr: float | None = None


def finish(
    fit: Fit,
    folder: Folder,
    record: Record,
    material: Material,
    formats: tuple[str, ...],
    named: Target | None = None,
) -> Summary:
    """Write the result first, as the exported network draws it, then what explains and redraws it."""
    result = fit.result()
    kind, extras = result_kind(record, material)
    finished = draw(result, folder, record, kind, extras)
    outcome = Outcome(
        result.steps,
        result.best_step,
        result.stop_reason,
        result.seconds,
        result.estimated_psnr,
        result.history,
        guide_psnr=result.guide_psnr,
    )
    record.status = "interrupted" if result.stop_reason == "interrupted" else "done"
    record.ended = now()
    record.seconds_per_step = result.seconds / result.steps
    record.events = result.events
    if record.written:  # from here on these files are others, also where the process is killed on the way
        record.written = {}
        folder.write(NAME, record.json)
    return write(finished, outcome, folder, record, material, formats, named)


def result_kind(record: Record, material: Material) -> tuple[Kind, Extras]:
    """Find the kind of a run's result, and what goes along with it."""
    task, job = TASKS[record.settings.task], record.settings
    kind = task.result_kind(material.picture.kind, job.options)
    return kind, task.result_extras(_extras(material.picture, kind), material.data)


def write(
    finished: Finished,
    outcome: Outcome,
    folder: Folder,
    record: Record,
    material: Material,
    formats: tuple[str, ...],
    named: Target | None = None,
) -> Summary:
    """Write the result first, then model files and what explains them, and the record with its summary."""
    data, reference, job = material.data, material.reference, record.settings
    task = TASKS[job.task]
    kind, extras = result_kind(record, material)
    written, sha256 = _write_result(folder, finished.samples, kind, extras)
    copy = None
    if named is not None:
        copy, file = named.write(folder, finished.samples, kind, extras)
        record.copies[named.name] = file
    # A run may have come from a machine with more cores; what is drawn does not depend on their number.
    models = finished.models(folder, formats, min(job.threads, os.cpu_count() or 1))
    baseline = baseline_of(task, data, job.options, folder)
    if record.first is None:  # otherwise it is there
        folder.write("history.csv", lambda: reporting.history_csv(outcome.history))
    folder.write("history.svg", lambda: charts.plot(outcome.history, outcome.best_step))
    looks = None
    with folder.attempt("what there is to look at"):
        looks = views.collect(
            data.image,
            kind.to_unit(finished.samples),  # as it is in the file, from which the report may be written again
            baseline=baseline,
            reference=reference,
            known=task.known(data),
            snapshots=folder.snapshots(),
        )
        folder.write("contact_sheet.png", lambda: reporting.preview(sheet_of(looks)))
    aside = None if extras.aside is None else extras.aside[0]
    before, reached = _quality(data.image, reference, aside), _quality(finished.image, reference, aside)
    summary = Summary(
        result=str(written),
        folder=str(folder.place),
        steps=outcome.steps,
        best_step=outcome.best_step,
        stop_reason=outcome.stop_reason,
        seconds=round(outcome.seconds, 3),
        device=job.device,
        engine=job.engine,
        precision=job.precision,
        seed=job.seed,
        **reached,
        psnr_input=before["psnr"],
        ssim_input=before["ssim"],
        estimated_psnr=outcome.estimated_psnr,
        baseline=None if baseline is None else {"name": baseline.name, **_quality(baseline.image, reference, aside)},
        sha256=digest(finished.samples),
        drawn_by=finished.engine,
        models=models,
        problems=folder.problems,
        copy=None if copy is None else str(copy),
        strength=outcome.strength,
        file=sha256,
        guide_psnr=outcome.guide_psnr,
    )
    record.summary = summary
    if looks is not None:
        place = str(folder.place)
        folder.write(report.NAME, lambda: report.page(record, looks, outcome.history, place))
    folder.write(NAME, record.json)
    return summary


def _write_result(folder: Folder, samples: np.ndarray, kind: Kind, extras: Extras) -> tuple[Path, str]:
    """Write the result's file, which takes memory for all of it twice over; return where it is, and its SHA-256."""
    large.give_back()
    encoded = pictures.encode_samples(samples, kind, extras)
    written, sha256 = folder.write_result(f"result{kind.suffix}", encoded), hashlib.sha256(encoded).hexdigest()
    del encoded
    large.give_back()
    return written, sha256


def _models(model: FittedModel, folder: Folder, formats: tuple[str, ...], threads: int) -> list[ModelFile]:
    """Write the model files of a fitted model."""
    models: list[ModelFile] = []
    for name in formats:
        with folder.attempt(f"the {name} file"):
            target = folder.place / f"model{FORMATS[name].suffix}"
            models.append(cast(ModelFile, writing.write(model, target, name, threads=threads)))
    return models


def baseline_of(task: Task, data: Data, options: Mapping[str, Any], folder: Folder) -> Baseline | None:
    """Compute what a classical method makes of the picture, where that is cheap."""
    if data.image.shape[0] * data.image.shape[1] <= MAX_BASELINE_PIXELS:
        with folder.attempt(f"the picture of the classical method of {task.name}"):
            return task.baseline(data, options)
    return None


def fold(result: Result, folder: Folder, record: Record, kind: Kind, extras: Extras) -> FittedModel | None:
    """Fold the network of the answer into a model that draws it; None where that fails, which the folder remembers."""
    job = record.settings
    try:
        return fitted.from_result(
            result,
            kind,
            extras,
            options={**vars(job), "recipe": record.recipe},
            seed=job.seed,
            threads=job.threads,
        )
    except Exception as error:  # whatever it is, the fit is worth more
        text = one_line(str(error))
        folder.note(DipFastError(f"{text}; the result was drawn by PyTorch, and there is no model file"))
        return None


def draw(result: Result, folder: Folder, record: Record, kind: Kind, extras: Extras) -> Finished:
    """Draw the answer with the folded network; where that fails, as PyTorch drew it."""
    model = fold(result, folder, record, kind, extras)
    if model is not None:
        return of_model(model, kind)
    samples = extras.put_back(kind.to_samples(result.image))
    return Finished(samples, result.image, _library(), lambda *where: [])


def _extras(picture: Picture, kind: Kind) -> Extras:
    """Adapt what goes along with a picture to a result of another size or other channels."""
    extras = picture.extras
    if kind.alpha is None:
        extras = replace(extras, alpha=None)
    elif extras.alpha is not None and kind.size != picture.kind.size:
        alpha = cv2.resize(extras.alpha, (kind.width, kind.height), interpolation=cv2.INTER_LINEAR)
        extras = replace(extras, alpha=alpha)
    if extras.geometry is not None and kind.size != picture.kind.size:
        across, down = kind.width / picture.kind.width, kind.height / picture.kind.height
        extras = replace(extras, geometry=extras.geometry.scaled(across, down))
    if kind.channels != picture.kind.channels:  # a profile of gray says nothing of RGB
        extras = replace(extras, icc_profile=None)
    if (*kind.size, kind.channels) != (*picture.kind.size, picture.channels):
        extras = replace(extras, aside=None)  # it has no place there
    return extras


def _quality(image: np.ndarray, reference: np.ndarray | None, aside: np.ndarray | None) -> Quality:
    """Measure an image against the reference, where there is one of its size, but for samples that were set aside."""
    if reference is None or reference.shape != image.shape:
        return {"psnr": None, "ssim": None}
    if aside is not None:
        image = np.where(aside, reference, image)
    return {"psnr": metrics.psnr(image, reference), "ssim": metrics.ssim(image, reference)}


def _library() -> str:
    """Name what draws where a network cannot be folded."""
    import torch

    return f"torch {torch.__version__}"
