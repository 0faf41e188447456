"""Where a run goes that names no folder, and what is there already."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dip_fast.errors import UsageError
from dip_fast.pictures.files import one_line, read_regular
from dip_fast.runs import typed

NAME = "run.json"  # of the record in a run's folder
MAX_BYTES = 2**24  # those of a long run are a few thousand


def found(folder: Path) -> dict[str, Any] | None:
    """Read what a folder's record says, as it stands; None where there is none that can be read."""
    try:
        data = read_regular(folder / NAME, MAX_BYTES)
        document = None if data is None else typed.parse(data)
    except (OSError, UsageError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def run_folders(folder: Path) -> Iterator[Path]:
    """List the run folders below a folder in order; nothing is looked for inside of one, or through a link."""
    for place, folders, files in os.walk(folder):
        if NAME in files and Path(place) != folder:
            folders.clear()
            yield Path(place)
        folders.sort()


def default(name: str, file: str, copy: str | None = None, *, resume: bool = False) -> Path:
    """Choose the folder of a run: ``runs/<name>``, or with a number behind it where that is another picture's.

    Parameters
    ----------
    name : str
        Of the picture, without suffix.
    file : str
        SHA-256 of its file.
    copy : str, optional
        The file that is named for the result: a run for another one is no reason to refuse this one.
    resume : bool
        Whether the run is there already: the first folder then, where no other is this picture's.
    """
    first = Path("runs", name)
    for number in itertools.count(1):
        folder = first if number == 1 else Path("runs", f"{name}-{number}")
        document = found(folder)
        if document is None or ("file" not in document and copy is None):  # it is free, or `Folder.check` says why not
            return first if resume else folder
        if document.get("file") == file and (copy is None or copy in (document.get("copies") or {})):
            return folder
    raise AssertionError("numbers do not end")


def described(folder: Path) -> str:
    """Describe the run in a folder, in some words."""
    document = found(folder) or {}
    try:
        picture = document["inputs"]["picture"]["name"]
        summary = document.get("summary") or {}
        state = {"done": "finished", "interrupted": "stopped", "running": "unfinished"}.get(
            document["status"], "failed"
        )
        has_file = summary and summary["result"] != summary.get("folder")  # that of a stack may be the folder itself
        result = f": {Path(summary['result']).name} of step {summary['best_step']}" if has_file else ""
        return one_line(f"the {state} run of {picture}{result}")[:200]
    except typed.DAMAGE:
        return "a run"
