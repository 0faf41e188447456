"""What somebody has changed in the folder of a run since the run wrote it; nothing of that is replaced unasked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from dip_fast.pictures.files import is_there, read_regular
from dip_fast.runs.record import Record

MAX_RESULT_BYTES = 2**34


def written_by(record: Record) -> dict[str, str]:
    """List the SHA-256 of result and model files by name, as the run that left them in its folder wrote them."""
    summary = record.summary
    if summary is None or not summary.file:  # it goes on, or is of an earlier version
        return record.written
    return {
        Path(summary.result).name: summary.file,
        **{Path(model["path"]).name: model["sha256"] for model in summary.models},
    }


def changed(folder: Path, written: Mapping[str, str]) -> Path | None:
    """Find a file that is there and is not as it was written, by `written_by`; None where there is no such file."""
    found = (
        folder / name
        for name, sha256 in written.items()
        if is_there(folder / name) and _sha256(folder / name) != sha256
    )
    return next(found, None)


def _sha256(path: Path) -> str:
    return hashlib.sha256(read_regular(path, MAX_RESULT_BYTES) or b"").hexdigest()
