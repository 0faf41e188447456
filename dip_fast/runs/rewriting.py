"""Reports of runs that are over: that of one run, written again, and an index of many."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import stat
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, TypeGuard

import numpy as np

from dip_fast import pictures
from dip_fast.errors import Argument, UsageError
from dip_fast.pictures import write_in
from dip_fast.pictures.files import is_there, read_regular
from dip_fast.runs import report, typed, views
from dip_fast.runs.commands import STDIN
from dip_fast.runs.finish import baseline_of
from dip_fast.runs.folder import Folder, Say
from dip_fast.runs.material import Material, Request, read
from dip_fast.runs.parts import Part
from dip_fast.runs.places import NAME, run_folders
from dip_fast.runs.record import Record, UnreadableError
from dip_fast.runs.reporting import shown
from dip_fast.runs.stack import report as stacks
from dip_fast.runs.stack.record import StackRecord
from dip_fast.tasks import TASKS

INDEX = "index.html"
THUMBNAIL = 96  # pixels of its longer side
MAX_THUMBNAIL_BYTES = 3_000_000  # of all of them: the rest of the index is text
MAX_HISTORY = 2**28  # bytes
FIGURES = ("steps", "PSNR, dB", "estimated PSNR, dB", "seconds", "seed")
COLUMNS = ("picture", "task", "preset", "status", *FIGURES, "started")


def rewrite(path: Path, say: Say, *, inputs: Path | None = None, overwrite: bool = False) -> Path:
    """Write the report of a run's folder again, or the index of a folder of such folders.

    Parameters
    ----------
    path : Path
    say : callable
        Prints a line for the user.
    inputs : Path, optional
        A folder that holds the picture and the other files of the run by now; by default where they were.
    overwrite : bool
        Whether to replace an index that is not of this program.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    UsageError
        If there is no such folder, or what the report shows is not there any more.
    DipFastError
        If it cannot be written.
    """
    if not (is_there(path) and path.is_dir()):
        raise UsageError("{} is no folder; name that of a run, or one that holds runs", path)
    if inputs is not None and not (is_there(inputs) and inputs.is_dir()):
        raise UsageError("{} is no folder; name the one that holds the picture", Argument("inputs", inputs))
    if (path / NAME).exists():
        return _report(path, say, inputs)
    folders = list(run_folders(path))
    if not folders:
        raise UsageError("{} holds no {}, and no folders that do; name the folder of a run", path, NAME)
    return _index(path, folders, overwrite=overwrite)


class PictureFacts(TypedDict, total=False):
    """What the record says of how the picture was read."""

    region: str
    max_size: int
    page: int


def _report(path: Path, say: Say, inputs: Path | None) -> Path:
    """Write the report of one run from its record, its files, and the picture that it was made of."""
    folder = Folder(path, say)
    with contextlib.closing(folder):
        folder.lock()
        folder.check(fresh=False)
        try:
            record = StackRecord.load(path)
        except UnreadableError as error:
            raise UsageError("{} {}; there is no report without it", path / NAME, error) from error
        summary = record.summary
        if summary is None:
            raise UsageError("the run in {} has no result yet ({}); let it end first", path, record.status)
        if is_stack(record):
            return folder.rewrite(report.NAME, stacks.again(record, path, inputs))
        material = material_of(record, inputs)
        task, options = TASKS[record.settings.task], record.settings.options
        result = pictures.read_picture(path / Path(summary.result).name, missing=True)
        kind = task.result_kind(material.picture.kind, options)
        if (result.size, result.channels) != (kind.size, kind.channels):
            raise UsageError("{} is not the result of this run any more; put it back", path / result.name)
        shown = views.collect(
            material.data.image,
            result.in_range(kind),
            baseline=baseline_of(task, material.data, options, folder),
            reference=material.reference,
            known=task.known(material.data),
            snapshots=folder.snapshots(),
        )
        for model in summary.models:  # the folder may have been moved
            model["path"] = str(path / Path(model["path"]).name)
        return folder.rewrite(report.NAME, report.page(record, shown, history(path / "history.csv"), str(path)))


def is_stack(record: Record) -> TypeGuard[StackRecord]:
    """Whether a record is that of a stack."""
    return isinstance(record, StackRecord) and bool(record.results)


def material_of(record: Record, inputs: Path | None) -> Material:
    """Read what the run was made of, and make sure that it is that."""
    found = _files(record, inputs)
    picture, reference = found.pop("picture"), found.pop("reference", None)
    if str(picture) == STDIN:
        raise UsageError(
            "the picture came from standard input; save it as stdin in a folder, and name that by {}",
            Argument("inputs"),
        )
    part, page = part_of(record)
    request = Request(source=picture, asked={}, inputs=found, reference=reference, part=part, page=page)
    job, moved = record.settings, Argument("inputs")
    try:
        material = read(request, job, TASKS[job.task])
    except UsageError as error:
        raise UsageError("{}; where the run's files are elsewhere by now, give {}", error, moved) from error
    for name, facts in record.inputs.items():
        if material.identity[name]["sha256"] != facts.get("sha256"):
            raise UsageError(
                "{} is another {} than that of the run; give the same one, by {}",
                *(facts["name"], name, moved),
            )
    return material


def part_of(record: Record) -> tuple[Part, int | None]:
    """Find which part and which page of its picture a run restores.

    Raises
    ------
    UsageError
        If the record does not say it.
    """
    facts = record.inputs.get("picture", {})
    if not typed.conforms(facts, PictureFacts):
        raise UsageError("{} is damaged, or not of this version; there is no report without it", NAME)
    return Part(facts.get("region"), facts.get("max_size")), facts.get("page")


def _files(record: Record, inputs: Path | None) -> dict[str, Path]:
    """Find the picture and the other files: in a folder, or where they were, or what a description says."""
    found: dict[str, Path] = {}
    try:
        for name, facts in record.inputs.items():
            found[name] = Path(record.files.get(name, facts["name"]))
            held = None if inputs is None else inputs / Path(facts["name"]).name
            if held is not None and is_there(held):
                found[name] = held
        return {"picture": found.pop("picture"), **found}
    except typed.DAMAGE as error:
        raise UsageError("{} is damaged, or not of this version; there is no report without it", NAME) from error


def history(path: Path) -> dict[str, np.ndarray]:
    """Read the table of a fit; where it is gone or damaged, there are no curves."""
    with contextlib.suppress(OSError, ValueError, UsageError, csv.Error):
        text = (read_regular(path, MAX_HISTORY) or b"").decode()
        names, *rows = csv.reader(io.StringIO(text))
        values = np.array([[float(cell or "nan") for cell in row] for row in rows])
        return dict(zip(names, values.T, strict=True)) | {"step": values[:, names.index("step")]}
    return {}


@dataclass(frozen=True)
class Cell:
    """A cell of the index: its text, and the number that it is sorted by, if it is one."""

    text: str
    sort: float | None = None


def _index(path: Path, folders: list[Path], *, overwrite: bool) -> Path:
    """Write the index of many runs, into the folder that was opened: never through a link."""
    target = path / INDEX
    with _opened(path) as opened:
        if not overwrite:
            _require_own(opened, target)
        room, runs, left_out = MAX_THUMBNAIL_BYTES, [], 0
        for folder in folders:
            record = _record(folder)
            thumbnail = None if isinstance(record, str) else _thumbnail(folder, record)
            if thumbnail is not None and len(thumbnail["src"]) > room:
                thumbnail, left_out = None, left_out + 1
            room -= len(thumbnail["src"]) if thumbnail else 0
            name = str(folder.relative_to(path))
            link = f"./{urllib.parse.quote(os.fsencode(name))}/{report.NAME}"
            facts = {
                "name": name,
                "link": link if (folder / report.NAME).is_file() else None,
                "thumbnail": thumbnail,
                "cells": [Cell(name), *_cells(record)],
            }
            runs.append(facts)
        page = report.render("index.html", columns=("run", *COLUMNS), runs=runs, left_out=left_out)
        write_in(opened, INDEX, page, target)
    return target


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a folder."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UsageError("cannot use {}: {}; name another folder", path, error.strerror) from error
    try:
        yield opened
    finally:
        os.close(opened)


def _require_own(folder: int, target: Path) -> None:
    """Refuse to replace a file that is no index of this program."""
    try:
        file = os.open(INDEX, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except FileNotFoundError:
        return
    except OSError:  # a link, or what may not be read
        is_own = False
    else:
        with os.fdopen(file, "rb") as opened:
            is_own = stat.S_ISREG(os.fstat(file).st_mode) and report.is_own(opened.read(report.HEAD))
    if not is_own:
        raise UsageError(
            "{} exists, and is no index of this program; move it away, or give {}", target, Argument("overwrite", True)
        )


def _record(folder: Path) -> Record | str:
    """Read a record, or find out why there is none."""
    try:
        return StackRecord.load(folder)
    except (FileNotFoundError, UnreadableError) as error:
        return f"{NAME} {error}" if isinstance(error, UnreadableError) else f"{NAME} is gone"


def _thumbnail(folder: Path, record: Record) -> dict[str, Any] | None:
    """Draw the result small; None where there is none."""
    if record.summary is not None:
        with contextlib.suppress(UsageError):
            if is_stack(record):
                with stacks.results_of(record, folder) as opened:
                    (image,) = stacks.units(opened.read(opened.count // 2).samples)
                return report.picture(views.reduced(shown(image), THUMBNAIL), 80)
            image = pictures.read_picture(folder / Path(record.summary.result).name, missing=True).image
            return report.picture(views.reduced(shown(image), THUMBNAIL), 80)
    return None


def _cells(record: Record | str) -> list[Cell]:
    """Fill in a row, in the order of `COLUMNS`."""
    if isinstance(record, str):
        return [Cell(""), Cell(""), Cell(""), Cell(record), *[Cell("")] * (len(COLUMNS) - 4)]
    job, summary = record.settings, record.summary
    steps, psnr, estimate, seconds = (
        (None,) * 4 if summary is None else (summary.steps, summary.psnr, summary.estimated_psnr, summary.seconds)
    )
    return [
        Cell(record.inputs.get("picture", {}).get("name", "")),
        Cell(job.task),
        Cell(job.preset),
        Cell(record.status),
        _number(steps, "d"),
        _number(psnr, ".2f"),
        _number(estimate, ".1f"),
        _number(seconds, ".0f"),
        _number(job.seed, "d"),
        Cell(record.started),
    ]


def _number(value: float | None, digits: str) -> Cell:
    return Cell("") if value is None else Cell(f"{value:{digits}}", float(value))
