"""The manifest of a batch: a row for each picture, which is a view of the records in the run folders."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dip_fast.errors import UsageError
from dip_fast.pictures import write_atomically
from dip_fast.pictures.files import is_there, read_regular
from dip_fast.runs.places import found, run_folders

MANIFEST = "manifest.csv"
MAX_BYTES = 2**30  # of one
COLUMNS = (
    "path",
    "status",
    "attempts",
    "host",
    "device",
    "threads",
    "seconds",
    "steps",
    "best_step",
    "stop_reason",
    "psnr",
    "ssim",
    "estimated_psnr",
    "input_sha256",
    "settings_digest",
    "out_path",
    "out_sha256",
    "model_sha256",
    "error",
)
Row = dict[str, Any]


def row(name: str, folder: Path) -> Row:
    """Describe a picture by the record in its folder; what is not known is None.

    Parameters
    ----------
    name : str
        Of the picture.
    folder : Path
        Of its run.
    """
    document = found(folder) or {}
    settings, summary = _mapping(document, "settings"), _mapping(document, "summary")
    models = summary.get("models")
    model = models[0] if isinstance(models, list) and models and isinstance(models[0], dict) else {}
    status = {"running": "unfinished", None: "waiting"}.get(document.get("status"), document.get("status"))
    problems = summary.get("problems")
    problem = problems[0] if status == "done" and isinstance(problems, list) and problems else None
    known = {
        "path": name,
        "status": status if problem is None else "incomplete",
        "attempts": document.get("attempts"),
        "host": document.get("host"),
        "device": settings.get("device"),
        "threads": settings.get("threads"),
        **{key: summary.get(key) for key in ("seconds", "steps", "best_step", "stop_reason", "psnr", "ssim")},
        "estimated_psnr": summary.get("estimated_psnr"),
        "input_sha256": document.get("file"),
        "settings_digest": document.get("key"),
        "out_path": str(folder / Path(str(summary["result"])).name) if "result" in summary else None,
        "out_sha256": summary.get("sha256"),
        "model_sha256": model.get("sha256"),
        "error": document.get("error") if problem is None else problem,
    }
    return {name: known[name] for name in COLUMNS}


def _mapping(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = document.get(name)
    return value if isinstance(value, dict) else {}


def rebuilt(folder: Path) -> list[Row]:
    """Read the rows of all run folders below a folder, and of what waits by its manifests, in order."""
    rows = {name: row(name, path) for path in run_folders(folder) if (name := path.relative_to(folder).as_posix())}
    waiting = {name: {**dict.fromkeys(COLUMNS), "path": name, "status": "waiting"} for name in _named(folder)}
    return [each for _, each in sorted((waiting | rows).items())]


def _named(folder: Path) -> Iterator[str]:
    """Name the pictures in the manifests of a folder, those of jobs of an array among them."""
    for path in folder.glob("manifest*.csv"):
        with contextlib.suppress(OSError, UsageError, csv.Error):  # it is a view, and worth no error
            text = (read_regular(path, MAX_BYTES) or b"").decode("utf-8", "surrogateescape")
            yield from (line["path"] for line in csv.DictReader(io.StringIO(text, newline="")) if line.get("path"))


def check(path: Path) -> None:
    """Refuse to replace a file that is no manifest.

    Raises
    ------
    UsageError
    """
    if not is_there(path):
        return
    with contextlib.suppress(OSError, UsageError):
        if (read_regular(path, MAX_BYTES) or b"").startswith(",".join(COLUMNS[:2]).encode()):
            return
    raise UsageError("{} is no manifest of a batch; move it away, or choose another folder", path)


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write the rows as CSV.

    Raises
    ------
    DipFastError
        If the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode("utf-8", "surrogateescape"))
