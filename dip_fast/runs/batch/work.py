"""One picture of a batch, as a worker restores it, wherever that runs."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dip_fast.errors import BusyError, DipFastError, PlaceError, TooLargeError, UsageError, in_words
from dip_fast.pictures.files import one_line
from dip_fast.runs.batch.plan import Item
from dip_fast.runs.batch.settings import Settings
from dip_fast.runs.folder import Folder, Say
from dip_fast.runs.job import complete
from dip_fast.runs.material import Request
from dip_fast.runs.parts import Part
from dip_fast.runs.places import NAME, found
from dip_fast.runs.progress import Emit
from dip_fast.runs.record import Record, UnreadableError, now
from dip_fast.runs.run import run

# "busy": another process is at work in the folder, such as a worker of a driver that was killed.
Status = Literal["done", "incomplete", "interrupted", "bad", "too-large", "failed", "busy"]


@dataclass(frozen=True)
class Outcome:
    """What became of a picture.

    Attributes
    ----------
    status : str
        ``bad`` and ``too-large`` are worth no second try, ``failed`` is.  ``incomplete`` has a result, and lacks
        another file, which would fail again.
    error : str or None
        Why it is not done.
    """

    status: Status
    error: str | None = None


def check(settings: Settings) -> None:
    """Refuse settings that are wrong for every picture, or not available here.

    Raises
    ------
    UsageError
    """
    given = {*settings.inputs, *(["mask"] if settings.mask_suffix is not None else [])}
    complete(settings.asked, given)
    Part(settings.preview, settings.max_size).check()


def perform(settings: Settings, item: Item, say: Say, emit: Emit | None = None) -> Outcome:
    """Restore a picture, or go on with its run; whatever happens, it is an outcome.

    Parameters
    ----------
    settings : Settings
    item : Item
    say : callable
        Prints a line for the user.
    emit : callable, optional
        Takes the progress as events.
    """
    request = _request(settings, item)
    with settings.spelling.in_use():
        return _tried(request, settings, item, say, emit)


def _tried(request: Request, settings: Settings, item: Item, say: Say, emit: Emit | None) -> Outcome:
    """Restore a picture, and make an outcome of whatever is raised."""
    try:
        return _perform(request, settings, item, say, emit)
    except KeyboardInterrupt:
        return Outcome("interrupted")
    except BusyError as error:
        return Outcome("busy", str(error))
    except PlaceError as error:  # it says nothing of the picture
        return Outcome("failed", str(error))
    except UsageError as error:
        status: Literal["bad", "too-large"] = "too-large" if isinstance(error, TooLargeError) else "bad"
        leave(settings, item, status, str(error))
        return Outcome(status, str(error))
    except Exception as error:  # whatever it is, the other pictures are to be restored
        return Outcome("failed", one_line(str(in_words(error))))


def _request(settings: Settings, item: Item) -> Request:
    """Ask for a picture as the command line does."""
    try:
        key = settings.key(item.files)
    except OSError:  # a file that is not there, which `run` finds out
        key = None
    return Request(
        source=Path(item.picture),
        asked=settings.asked,
        inputs={name: Path(path) for name, path in item.inputs.items()},
        out=Path(item.folder),
        part=Part(settings.preview, settings.max_size),
        reference=None if item.reference is None else Path(item.reference),
        quiet=True,
        export=settings.formats,
        page=settings.page,
        goes_on=True,
        key=key,
    )


def _perform(request: Request, settings: Settings, item: Item, say: Say, emit: Emit | None) -> Outcome:
    if item.problem is not None:
        raise UsageError("{}", item.problem)
    request.data  # noqa: B018  (a file that cannot be read leaves no folder)
    folder = request.folder
    with contextlib.suppress(OSError):  # made now, so that it is locked from the start; `run` says why it cannot be
        folder.mkdir(parents=True, exist_ok=True)
    stored = found(folder)
    if stored is None:
        return _outcome(request, say, emit)
    status, again = stored.get("status"), replace(request, goes_on=False, overwrite=True)
    is_own = stored.get("key") == request.key and stored.get("file") == request.file
    if status in ("bad", "too-large") or (settings.overwrite and not is_own):
        return _outcome(again, say, emit)
    # Bits do not depend on the threads of fused layers, and those of others are kept: a run goes on as it began.
    going_on = replace(request, asked={name: value for name, value in request.asked.items() if name != "threads"})
    try:
        return _outcome(going_on, say, emit)
    except (PlaceError, TooLargeError):
        raise
    except UsageError as error:
        if not is_own or status == "done":
            raise
        # A checkpoint that is damaged or of another version, or of a machine with more cores: no result is lost.
        say(f"{error}: starting again")
        return _outcome(again, say, emit)


def _outcome(request: Request, say: Say, emit: Emit | None) -> Outcome:
    """Run, and judge by the summary."""
    summary = run(request, say, emit)
    if summary.problems:
        return Outcome("incomplete", summary.problems[0])
    return Outcome("interrupted" if summary.stop_reason == "interrupted" else "done")


def leave(settings: Settings, item: Item, status: Literal["bad", "too-large", "failed"], error: str) -> None:
    """Write into the record of a picture what has become of it, where no run could do so itself.

    The record of a run is left alone, unless the run has failed and nobody is at work on it: its worker was killed.
    """
    path = Path(item.folder)
    # The driver's manifest has it in any case.
    with contextlib.suppress(DipFastError, OSError, UnreadableError), contextlib.closing(_Quiet(path)) as folder:
        document = found(path)
        if document is None or document.get("status") in ("bad", "too-large"):
            folder.open(_record(settings, item, status, error), fresh=True, overwrite=document is not None)
        elif status == "failed":
            folder.lock()
            record = Record.load(path)
            if record.status == "running":
                record.status, record.error, record.ended = status, error, now()
                folder.rewrite(NAME, record.json())


class _Quiet(Folder):
    """A folder that says nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, lambda line: None)


def _record(settings: Settings, item: Item, status: Literal["bad", "too-large", "failed"], error: str) -> Record:
    """Make the record of a picture that no run could begin with."""
    request = _request(settings, item)
    file = None
    with contextlib.suppress(DipFastError):
        file = request.file
    given = {*request.inputs, *(["mask"] if settings.mask_suffix is not None else [])}
    return Record(
        status=status,
        settings=complete(settings.asked, given),
        recipe={},
        inputs={"picture": {"name": Path(item.picture).name}},
        files=request.files,
        file=file,
        key=request.key,
        error=error,
        ended=now(),
    )
