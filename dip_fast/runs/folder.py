"""The folder of a run: what is in it, and how it is written."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from dip_fast.errors import Argument, DipFastError, UsageError
from dip_fast.models.formats import FORMATS
from dip_fast.pictures import write_atomically
from dip_fast.pictures.formats import written_suffixes
from dip_fast.runs.checkpoints import CHECKPOINT
from dip_fast.runs.record import NAME, Record

Say = Callable[[str], None]  # prints a line for the user


OUT = Argument("out")


class Folder:
    """The folder of one run.

    Parameters
    ----------
    path : Path
        The folder, which may not exist yet.
    say : callable
        Prints a line for the user.

    Attributes
    ----------
    problems : list of str
        What could not be written.
    """

    def __init__(self, path: Path, say: Say) -> None:
        self.path = path
        self.say = say
        self.problems: list[str] = []
        self._lock: int | None = None

    def check_free(self, overwrite: bool) -> None:
        """Refuse a folder in which something would be lost."""
        try:
            if not self.path.exists():
                return
            if not self.path.is_dir():
                raise UsageError("{} exists and is no folder; choose another {}", self.path, OUT)
            if not overwrite:
                raise UsageError(
                    "{} exists; go on with {}, replace with {}, or choose another {}",
                    *(self.path, Argument("resume", True), Argument("overwrite", True), OUT),
                )
            if any(self.path.iterdir()) and not (self.path / NAME).exists():
                raise UsageError("{} holds files and is not a run's folder; choose another {}", self.path, OUT)
        except OSError as error:
            raise UsageError("cannot use {}: {}; choose another {}", self.path, error.strerror, OUT) from error

    def check_room(self, needed: int) -> None:
        """Refuse a disk that has not the bytes that the run is going to write."""
        place = self.path.absolute()
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        if free < needed:
            raise UsageError(
                "the run may write {:.0f} MB to {} and {:.0f} MB are free there; make room or choose another {}",
                *(needed / 1e6, self.path, free / 1e6, OUT),
            )

    def open(self, record: Record, *, fresh: bool) -> None:
        """Create the folder, keep other runs out of it, and write the record, which shows that it can be written.

        In a fresh folder nothing is left of an earlier run; files of the user's own stay.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path, os.O_RDONLY)
            _lock(self._lock)
            (self.path / "snapshots").mkdir(exist_ok=True)
            # What a killed process was writing aside.
            old = [*self.path.glob(".dip-fast-*.tmp"), *self.path.glob("snapshots/.dip-fast-*.tmp")]
            if fresh:
                old += [*(self.path / name for name in _own()), *self.snapshots().values()]
            for path in old:
                path.unlink(missing_ok=True)
            # Last, for no checkpoint of another run may lie beside the new record.
            write_atomically(self.path / NAME, record.json())
        except BlockingIOError as error:
            raise UsageError(
                "another run is at work in {}; wait for it, or choose another {}", self.path, OUT
            ) from error
        except OSError as error:
            raise UsageError("cannot write to {}: {}; choose another {}", self.path, error.strerror, OUT) from error
        except DipFastError as error:
            raise UsageError(str(error)) from error

    def close(self) -> None:
        """Unlock the folder for other runs."""
        if self._lock is not None:
            os.close(self._lock)

    def snapshots(self) -> dict[int, Path]:
        """List the snapshots by their steps, in order."""
        paths = {path.stem.removeprefix("iter_"): path for path in self.path.glob("snapshots/iter_*.png")}
        return dict(sorted((int(step), path) for step, path in paths.items() if step.isdecimal()))

    def write(self, name: str, data: bytes) -> None:
        """Write a file beside the result; where that fails, say so once and go on: the fit is worth more."""
        try:
            write_atomically(self.path / name, data)
        except DipFastError as error:
            self.note(error)

    def note(self, error: DipFastError) -> None:
        """Remember what could not be written."""
        if not self.problems:
            self.say(f"{error}; going on without it")
        self.problems.append(str(error))

    def write_result(self, name: str, data: bytes) -> Path:
        """Write the result here or, where that fails, wherever it can be written."""
        try:
            write_atomically(self.path / name, data)
        except DipFastError as error:
            self.problems.append(str(error))
            # Cut, since the folder's name may be as long as a name can be.
            return write_elsewhere(f"{self.path.name[:50]}-{name}", data)
        return self.path / name


def _own() -> list[str]:
    """List what a run may leave in its folder, besides the record and the snapshots."""
    results = [f"result{suffix}" for suffix in written_suffixes()]
    models = [f"model{entry.suffix}" for entry in FORMATS.values()]
    return [CHECKPOINT, *results, *models, "contact_sheet.png", "history.csv", "history.png"]


def write_elsewhere(name: str, data: bytes) -> Path:
    """Save a result that could not be written where it belongs: here, at home, or among the temporary files.

    Raises
    ------
    DipFastError
        If no folder can be written.
    """
    for folder in (Path.cwd, Path.home, tempfile.gettempdir):
        try:
            path = Path(folder(), f"dip-fast-{os.getpid()}-{name}")
            write_atomically(path, data)
        except (DipFastError, OSError, RuntimeError) as error:  # no such folder, or no home
            problem = error
            continue
        return path
    raise DipFastError(f"{problem}; no other folder could be written either, and the result is lost")


def _lock(folder: int) -> None:
    """Lock a folder for as long as its descriptor is open, whatever ends the process."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if isinstance(error, BlockingIOError):  # otherwise: some network file systems have no locks
            raise
