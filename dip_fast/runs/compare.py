"""The same picture restored in several ways: one table, and one sheet of crops."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from dip_fast import pictures
from dip_fast.errors import Argument, DipFastError, UsageError
from dip_fast.pictures import write_atomically
from dip_fast.pictures.files import is_there
from dip_fast.runs import reporting, views
from dip_fast.runs.contact_sheet import contact_sheet
from dip_fast.runs.folder import Say
from dip_fast.runs.job import complete
from dip_fast.runs.material import Material, Request, read
from dip_fast.runs.places import found, run_folders
from dip_fast.runs.record import NAME, Record, Summary
from dip_fast.runs.run import run
from dip_fast.tasks import TASKS

TABLE, SHEET, ROWS = "comparison.csv", "comparison.png", "comparison.json"


@dataclass(frozen=True)
class Row:
    """What one way reached.

    Attributes
    ----------
    name : str
        Of the way, and of its run's folder.
    preset : str
    seed : int
    psnr, ssim : float or None
        Against the reference, where there is one.
    estimated_psnr : float or None
        As estimated without it.
    seconds : float
        Of the fit.
    removed : float or None
        Deviation of what was taken out of the picture, in 1/255 of its range; None where the result has another size.
    steps : int
    result : str
        Where it is.
    """

    name: str
    preset: str
    seed: int
    psnr: float | None
    ssim: float | None
    estimated_psnr: float | None
    seconds: float
    removed: float | None
    steps: int
    result: str


@dataclass(frozen=True)
class Comparison:
    """All rows, and whether the user stopped it before the last.

    Attributes
    ----------
    rows : list of Row
    folder : Path
    interrupted : bool
    problems : list of str
        What of the runs could not be written.
    """

    rows: list[Row]
    folder: Path
    interrupted: bool
    problems: list[str]


def compare(ways: Mapping[str, Request], folder: Path, say: Say) -> Comparison:
    """Restore a picture in several ways; a run that is done already is taken as it is, a stopped one goes on.

    Parameters
    ----------
    ways : mapping of str to Request
        By the names of their folders; none of them names a folder itself.
    folder : Path
        Where these go.
    say : callable
        Prints a line for the user.

    Raises
    ------
    UsageError, DipFastError
        As `run`, and for a folder that holds something else.
    """
    if not ways:
        raise UsageError("name what to compare: {} or {}", Argument("presets"), Argument("seeds"))
    # What cannot be is found before the first fit, and before anything is written.
    jobs = [complete(request.asked, request.inputs) for request in ways.values()]
    first = next(iter(ways.values()))
    material = read(first, jobs[0], TASKS[jobs[0].task])
    _check(folder, first)
    rows: list[Row] = []
    problems: list[str] = []
    crops: list[tuple[str, list[np.ndarray]]] = []
    windows: list[views.Window] = []
    summary: Summary | None = None
    for number, (name, request) in enumerate(ways.items(), 1):
        say(f"{number} of {len(ways)}: {name}")
        begun = is_there(folder / name / NAME) and not request.overwrite
        summary = run(_with(request, folder / name, resume=begun), say)
        job = Record.load(folder / name).settings
        image = _image(summary, material)
        if not windows:
            looks = views.collect(material.data.image, image, reference=material.reference)
            windows = looks.windows
            crops.append((looks.before.name, _cut(looks.before.image, windows)))
        crops.append((_label(name, summary), _cut(reporting.shown(image), windows)))
        rows.append(_row(name, job.preset, summary, image, material.data.image))
        problems += summary.problems
        _write(folder, rows)
        if summary.stop_reason == "interrupted":
            break
    assert summary is not None, "there is a way"
    if material.reference is not None and material.reference.shape == image.shape:
        crops.append(("reference", _cut(reporting.shown(material.reference), windows)))
    write_atomically(folder / SHEET, reporting.preview(_sheet(crops)))
    return Comparison(rows, folder, summary.stop_reason == "interrupted", problems)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Write the rows for a person, a line each, with a line of titles; columns without a value are left out."""
    columns: dict[str, tuple[str, Callable[[Row], str]]] = {
        "name": ("", lambda row: row.name),
        "psnr": ("PSNR dB", lambda row: f"{row.psnr:.2f}"),
        "ssim": ("SSIM", lambda row: f"{row.ssim:.3f}"),
        "estimated_psnr": ("estimated dB", lambda row: f"{row.estimated_psnr:.1f}"),
        "removed": ("removed, of 255", lambda row: f"{row.removed:.1f}"),
        "steps": ("steps", lambda row: str(row.steps)),
        "seconds": ("seconds", lambda row: f"{row.seconds:.0f}"),
    }
    cells = []
    for name, (title, text) in columns.items():
        values = ["-" if getattr(row, name) is None else text(row) for row in rows]
        if set(values) != {"-"}:
            width = max(len(value) for value in (title, *values))
            cells.append([value.ljust(width) if name == "name" else value.rjust(width) for value in (title, *values)])
    for line in zip(*cells, strict=True):
        yield "  ".join(line).rstrip()


def _check(folder: Path, request: Request) -> None:
    """Refuse a folder in which something else lies, or another picture's comparison, and make it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise UsageError("cannot use {}: {}; choose another {}", folder, error.strerror, Argument("out")) from error
    if held and ROWS not in held:
        raise UsageError("{} exists, and holds no comparison; choose another {}", folder, Argument("out"))
    records = [found(path) or {} for path in run_folders(folder)]
    if not request.overwrite and any(record.get("file") not in (None, request.file) for record in records):
        raise UsageError(
            "{} holds the comparison of another picture; choose another {}, or replace its runs with {}",
            *(folder, Argument("out"), Argument("overwrite", True)),
        )
    if not held:
        _write(folder, [])


def _with(request: Request, out: Path, *, resume: bool) -> Request:
    """Name the folder of a run; `Request` keeps what it has read of the picture."""
    options = {entry.name: getattr(request, entry.name) for entry in fields(request)}
    return Request(**{**options, "out": out, "resume": resume, "content": request.data})


def _image(summary: Summary, material: Material) -> np.ndarray:
    """Read a result, in the range of the picture."""
    result = pictures.read_picture(summary.result, missing=True)
    return result.in_range(material.picture.kind) if result.channels == material.picture.channels else result.image


def _row(name: str, preset: str, summary: Summary, image: np.ndarray, before: np.ndarray) -> Row:
    removed = None
    if image.shape == before.shape:
        removed = 255 * float(np.sqrt(np.square(image - before, dtype=np.float64).mean()))
    return Row(
        name,
        preset,
        summary.seed,
        summary.psnr,
        summary.ssim,
        summary.estimated_psnr,
        summary.seconds,
        removed,
        summary.steps,
        summary.result,
    )


def _label(name: str, summary: Summary) -> str:
    quality = summary.psnr if summary.psnr is not None else summary.estimated_psnr
    about = "" if summary.psnr is not None else "about "
    return name if quality is None else f"{name}, {about}{quality:.1f} dB"


def _cut(image: np.ndarray, windows: Sequence[views.Window]) -> list[np.ndarray]:
    return [np.array(window.of(image)) for window in windows]


def _sheet(crops: Sequence[tuple[str, list[np.ndarray]]]) -> np.ndarray:
    """Lay out the windows, one below the other, pixel for pixel; small ones are enlarged by a whole factor."""
    places = range(len(crops[0][1]))
    images = [parts[place] for place in places for _, parts in crops]
    return contact_sheet(images, [name for name, _ in crops] * len(places), columns=len(crops), tile=views.WINDOW)


def _write(folder: Path, rows: Sequence[Row]) -> None:
    """Write the table for programs."""
    documents = [asdict(row) for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, [entry.name for entry in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(documents)
    try:
        write_atomically(folder / ROWS, (json.dumps(documents, indent=2, allow_nan=False) + "\n").encode())
        write_atomically(folder / TABLE, text.getvalue().encode())
    except DipFastError as error:
        where = f"; the runs are in {folder}" if rows else ""
        raise DipFastError(f"{error}{where}") from error
