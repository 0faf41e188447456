"""What somebody has changed in the folder of a run since the run wrote it; nothing of that is replaced unasked."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dip_fast.pictures.files import is_there, read_regular
from dip_fast.runs.record import Summary

MAX_RESULT_BYTES = 2**34


def changed(folder: Path, summary: Summary) -> Path | None:
    """Find a result or model file that is there and is not as it was written; None where there is no such file."""
    written = {Path(summary.result).name: summary.file}
    written |= {Path(model["path"]).name: model["sha256"] for model in summary.models}
    found = (
        folder / name
        for name, sha256 in written.items()
        if is_there(folder / name) and _sha256(folder / name) != sha256
    )
    return next(found, None)


def _sha256(path: Path) -> str:
    return hashlib.sha256(read_regular(path, MAX_RESULT_BYTES) or b"").hexdigest()
