"""The manifest of a batch: a row for each picture, which is a view of the records in the run folders."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dip_fast.pictures import write_atomically
from dip_fast.runs.places import found, run_folders

MANIFEST = "manifest.csv"
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
    """Read the rows of all run folders below a folder, in the order of their names."""
    return [row(path.relative_to(folder).as_posix(), path) for path in run_folders(folder)]


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
