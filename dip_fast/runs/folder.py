"""The folder of a run: what is in it, and how it is written."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dip_fast.errors import Argument, BusyError, DipFastError, PlaceError, UsageError
from dip_fast.models.formats import FORMATS
from dip_fast.models.model import LIST
from dip_fast.pictures import write_atomically, write_in
from dip_fast.pictures.files import TEMPORARY, one_line
from dip_fast.pictures.formats import written_suffixes
from dip_fast.runs import places, report
from dip_fast.runs.checkpoints import CHECKPOINT
from dip_fast.runs.places import NAME, described
from dip_fast.runs.record import Record

Say = Callable[[str], None]  # prints a line for the user

OUT = Argument("out")
SNAPSHOTS = "snapshots"
MOST_TILES = 10**5  # no picture that can be read has more


class Folder:
    """The folder of one run.

    It is opened once, and all is written into what was opened then: never through a link, nor into another folder that
    has taken its name meanwhile.

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
    result : Path or None
        Where the result is, once it is written.
    """

    def __init__(self, path: Path, say: Say) -> None:
        self.path = path
        self.say = say
        self.problems: list[str] = []
        self.result: Path | None = None
        self._folder: int | None = None
        self._snapshots: int | None = None

    def lock(self) -> None:
        """Keep other runs out of the folder from here on, if it exists.

        Raises
        ------
        UsageError
            If another run is at work there, or it is no folder.
        """
        if self._folder is not None:
            return
        with self._refusing(), contextlib.suppress(FileNotFoundError):
            self._folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            _lock(self._folder)

    def check(self, *, fresh: bool, overwrite: bool = False) -> None:
        """Refuse a folder in which something would be lost, or that holds what no run leaves there.

        Parameters
        ----------
        fresh : bool
            Whether a new run begins.
        overwrite : bool
            Whether it may replace another one.

        Raises
        ------
        UsageError
        """
        if self._folder is None:
            return
        with self._refusing():
            names = set(os.listdir(self._folder))  # noqa: PTH208  (a descriptor)
            if fresh and NAME in names and not overwrite:
                raise UsageError(
                    "{} exists and holds {}; go on with {}, replace with {}, or choose another {}",
                    *(self.path, described(self.path), Argument("resume", True), Argument("overwrite", True), OUT),
                )
            self._require(SNAPSHOTS, stat.S_ISDIR)
            # A run that was killed before it wrote its record leaves an empty folder of snapshots and files aside.
            inner = [path.name for path in (self.path / SNAPSHOTS).iterdir()] if SNAPSHOTS in names else []
            left = [name for name in (*(names - {SNAPSHOTS}), *inner) if not TEMPORARY.fullmatch(name)]
            if fresh and left and NAME not in names:
                raise UsageError("{} exists, and is not a run's folder; choose another {}", self.path, OUT)
            for name in (NAME, *self.own(), *(f"{SNAPSHOTS}/{name}" for name in self._of_steps())):
                self._require(name, stat.S_ISREG)

    def check_room(self, needed: int) -> None:
        """Refuse a disk that has not the bytes that the run is going to write."""
        place = self.path.absolute()
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        if free < needed:
            raise PlaceError(
                "the run may write {:.0f} MB to {} and {:.0f} MB are free there; make room or choose another {}",
                *(needed / 1e6, self.path, free / 1e6, OUT),
            )

    def open(self, record: Record, *, fresh: bool, overwrite: bool = False) -> None:
        """Create the folder, keep other runs out of it, and write the record, which shows that it can be written.

        In a fresh folder nothing is left of an earlier run; files of the user's own stay.

        Raises
        ------
        UsageError
            If it cannot be written, or has been taken since it was checked.
        """
        with self._refusing():
            self.path.mkdir(parents=True, exist_ok=True)
        self.lock()
        self.check(fresh=fresh, overwrite=overwrite)
        assert self._folder is not None, "it was made just now"
        with self._refusing():
            with contextlib.suppress(FileExistsError):
                os.mkdir(SNAPSHOTS, dir_fd=self._folder)
            self._snapshots = os.open(SNAPSHOTS, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self._folder)
            for folder in (self._folder, self._snapshots):  # all is deleted, or nothing
                if not os.access(".", os.W_OK | os.X_OK, dir_fd=folder):
                    raise PermissionError(0, "it cannot be written to")
            for folder, own in ((self._snapshots, self._of_steps()), (self._folder, self.own())):
                # What a killed process was writing aside, and what an earlier run has left.
                aside = [name for name in os.listdir(folder) if TEMPORARY.fullmatch(name)]  # noqa: PTH208
                for name in (*aside, *(own if fresh else ())):
                    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                        os.unlink(name, dir_fd=folder)
            # Last, for no checkpoint of another run may lie beside the new record.
            try:
                write_in(self._folder, NAME, record.json(), self.path / NAME)
            except DipFastError as error:
                raise PlaceError(str(error)) from error

    def close(self) -> None:
        """Unlock the folder for other runs."""
        for descriptor in (self._snapshots, self._folder):
            if descriptor is not None:
                os.close(descriptor)
        self._snapshots = self._folder = None

    @property
    def place(self) -> Path:
        """Path of the folder as it is now: it may have been moved."""
        if self._folder is None:
            return self.path
        with contextlib.suppress(OSError):
            if os.path.samestat(self.path.stat(), os.fstat(self._folder)):
                return self.path
        try:
            return Path(f"/proc/self/fd/{self._folder}").readlink()
        except OSError:  # a system without /proc
            return self.path

    def snapshots(self) -> dict[int, Path]:
        """List the snapshots by their steps, in order."""
        return self._by_step("iter_", ".png")

    def states(self) -> dict[int, Path]:
        """List the states that an answer can be drawn from, by their steps, in order."""
        return self._by_step("state_", ".safetensors")

    def _by_step(self, prefix: str, suffix: str) -> dict[int, Path]:
        paths = {path.stem.removeprefix(prefix): path for path in self.place.glob(f"{SNAPSHOTS}/{prefix}*{suffix}")}
        return dict(sorted((int(step), path) for step, path in paths.items() if step.isdecimal()))

    def _of_steps(self) -> list[str]:
        """List the names of snapshots and states."""
        return [path.name for path in (*self.snapshots().values(), *self.states().values())]

    def forget(self, state: Path) -> None:
        """Delete a state that `states` has listed."""
        assert self._snapshots is not None, "the folder is not open"
        with contextlib.suppress(OSError):
            os.unlink(state.name, dir_fd=self._snapshots)

    def write(self, name: str, make: Callable[[], bytes]) -> None:
        """Make and write a file beside the result; where that fails, say so once and go on: the fit is worth more."""
        with self.attempt(name):
            self._write(name, make())

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Go on where something of the run cannot be made or written, and remember what: the fit is worth more."""
        try:
            yield
        except DipFastError as error:
            self.note(error)
        except Exception as error:  # whatever it is
            self.note(DipFastError(one_line(f"{name} could not be made ({type(error).__name__}: {error})")))

    def note(self, error: DipFastError) -> None:
        """Remember what could not be written."""
        if not self.problems:
            self.say(f"{error}; going on without it")
        self.problems.append(str(error))

    def rewrite(self, name: str, data: bytes) -> Path:
        """Write a file of the run anew, in a folder that was locked and checked.

        Raises
        ------
        DipFastError
            If it cannot be written.
        """
        self._write(name, data)
        return self.place / name

    def write_result(self, name: str, data: bytes) -> Path:
        """Write the result here or, where that fails, wherever it can be written."""
        if self._snapshots is not None:  # the fit is over; this leaves a descriptor where there are no more
            os.close(self._snapshots)
            self._snapshots = None
        try:
            self._write(name, data)
            self.result = self.place / name
        except DipFastError as error:
            self.problems.append(str(error))
            # Cut, since the folder's name may be as long as a name can be.
            self.result = write_elsewhere(f"{self.path.name[:50]}-{name}", data)
        return self.result

    def _write(self, name: str, data: bytes) -> None:
        """Write a file into the folder that was opened, or into that of its snapshots."""
        folder = self._snapshots if name.startswith(f"{SNAPSHOTS}/") else self._folder
        assert folder is not None, "the folder is not open"
        write_in(folder, Path(name).name, data, self.path / name)

    def own(self) -> list[str]:
        """List what a run may leave in its folder, besides the record and the snapshots."""
        results = [f"result{suffix}" for suffix in written_suffixes()]
        models = [f"model{entry.suffix}" for entry in FORMATS.values()]
        left = [CHECKPOINT, *results, *models, report.NAME, "contact_sheet.png", "history.csv", "history.svg"]
        return [*left, LIST, *self._of_tiles()]

    def _of_tiles(self) -> list[str]:
        """List the files of the tiles that the record in the folder names."""
        tiles = (places.found(self.path) or {}).get("tiles")
        count = min(len(tiles), MOST_TILES) if isinstance(tiles, list) else 0
        return [name for n in range(count) for name in (model_of_tile(n), output_of_tile(n))]

    def remove(self, names: Sequence[str]) -> None:
        """Remove files of the folder's own."""
        for name in names:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._folder)

    def _require(self, name: str, kind: Callable[[int], bool]) -> None:
        """Refuse what has one of the run's names and is not of the kind that a run writes: a link, a folder, a pipe."""
        with contextlib.suppress(FileNotFoundError):
            if not kind(os.stat(name, dir_fd=self._folder, follow_symlinks=False).st_mode):
                wanted = "folder" if kind is stat.S_ISDIR else "file"
                raise UsageError(
                    "{} is no {} as a run writes it; move it away, or choose another {}",
                    *(self.path / name, wanted, OUT),
                )

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """Raise what the system refuses as an error of usage."""
        try:
            yield
        except BlockingIOError as error:
            raise BusyError(
                "another run is at work in {}; wait for it, or choose another {}", self.path, OUT
            ) from error
        except OSError as error:
            raise PlaceError("cannot use {}: {}; choose another {}", self.path, error.strerror, OUT) from error


def model_of_tile(number: int) -> str:
    """Name the model file of a tile, which is counted from 0 here and from 1 in the name."""
    return f"model_{number + 1:04}.onnx"


def output_of_tile(number: int) -> str:
    """Name the file of what the network of a tile draws, as long as the run lasts."""
    return f"tile_{number + 1:04}.npz"


def write_elsewhere(name: str, data: bytes) -> Path:
    """Save a result that could not be written where it belongs: here, at home, or among the temporary files.

    Raises
    ------
    DipFastError
        If no folder can be written.
    """
    for folder in (Path.cwd, Path.home, tempfile.gettempdir):
        try:
            path = Path(folder(), f"dip-fast-{secrets.token_hex(4)}-{name}")  # a name that nobody has used or foreseen
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
