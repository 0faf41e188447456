"""A batch from what is asked for to its manifest."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dip_fast.errors import Argument, BusyError, DipFastError, UsageError
from dip_fast.names import counted
from dip_fast.runs.batch import manifest, plan
from dip_fast.runs.batch.cluster import Cluster
from dip_fast.runs.batch.driver import Driver, Emit
from dip_fast.runs.batch.local import LocalPool
from dip_fast.runs.batch.manifest import Row
from dip_fast.runs.batch.plan import Item
from dip_fast.runs.batch.pool import Pool
from dip_fast.runs.batch.ray_pool import RayPool
from dip_fast.runs.batch.settings import Settings, agree, keep
from dip_fast.runs.places import run_folders

SECONDS_BETWEEN_MANIFESTS = 10.0
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # of some network file systems; the run folders have theirs
FAULTS = ("bad", "too-large", "failed", "blocked", "incomplete")


@dataclass(frozen=True)
class Batch:
    """What is asked for.

    Attributes
    ----------
    sources : sequence of str or Path
        Folders, files and patterns.
    out : Path
        The folder of the batch.
    settings : Settings
    recursive : bool
        Whether to look into folders of folders.
    workers : int or None
        How many pictures are restored at a time; None for as many as the cluster has room for.
    retries, max_failures : int
        As in `Driver`.
    shard : tuple of int, optional
        As in `plan.shard`.
    cluster : Cluster, optional
        Where; this machine by default.
    """

    sources: Sequence[str | Path]
    out: Path
    settings: Settings
    recursive: bool = False
    workers: int | None = 1
    retries: int = 2
    max_failures: int = 20
    shard: tuple[int, int] | None = None
    cluster: Cluster | None = None

    @property
    def part(self) -> str:
        """What the names of files have that belong to one job of an array."""
        return "" if self.shard is None else f"-{self.shard[0]}-of-{self.shard[1]}"

    @property
    def manifest(self) -> Path:
        """Where the manifest is written; `manifest.MANIFEST` is that of all jobs of an array."""
        return self.out / f"manifest{self.part}.csv"


@dataclass
class Plan:
    """What there is to do.

    Attributes
    ----------
    items : list of Item
        What is to be restored, in order.
    rows : dict of str to Row
        A row of the manifest for each picture.
    skipped : int
        How many pictures are done already.
    faults : list of str
        Names of those that nothing is done about as things are; their rows say why.
    root : str
        The folder that names are relative to.
    ignored : list of str
        Files that are no pictures.
    """

    items: list[Item]
    rows: dict[str, Row]
    skipped: int
    faults: list[str]
    root: str
    ignored: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """What a batch gave.

    Attributes
    ----------
    rows : list of Row
        Of the manifest, in the order of their paths.
    skipped : int
        How many pictures were done before.
    is_stopped, gave_up : bool
        As in `Driver`.
    manifest : Path
    index : Path or None
        The page with all runs.
    """

    rows: list[Row]
    skipped: int
    is_stopped: bool
    gave_up: bool
    manifest: Path
    index: Path | None

    @property
    def counts(self) -> dict[str, int]:
        """How many pictures there are by their status."""
        return dict(sorted(Counter(row["status"] for row in self.rows).items()))

    @property
    def faults(self) -> int:
        """How many pictures cannot be restored as things are."""
        return sum(row["status"] in FAULTS for row in self.rows)


def planned(batch: Batch) -> Plan:
    """Find out what is to be done.

    Raises
    ------
    UsageError
        If there are no pictures, or the folder is of a batch with other settings or holds another manifest.
    """
    manifest.check(batch.manifest)
    files = plan.find(batch.sources, batch.out, recursive=batch.recursive)
    root = agree(batch.out, batch.settings, files.root)
    items = plan.shard(plan.items(files, batch.out, batch.settings, root), batch.shard)
    waiting, rows, skipped, faults = [], {}, 0, []
    for item in items:
        standing, error = plan.standing(item, batch.settings)
        rows[item.name] = manifest.row(item.name, Path(item.folder))
        if standing == "waiting":
            waiting.append(item)
        else:
            skipped += standing == "done"
            faults += [item.name] if standing != "done" else []
            rows[item.name] |= {"status": standing, "error": error}
    return Plan(waiting, rows, skipped, sorted(faults), root, files.ignored)


def run(batch: Batch, emit: Emit, make_pool: Callable[[Batch], Pool] | None = None) -> Result:
    """Restore what is not done yet, and write the manifest and the index.

    Parameters
    ----------
    batch : Batch
    emit : callable
        Takes what happens, see `dip_fast.runs.batch.pool` and `Driver`.
    make_pool : callable, optional
        Makes the pool; by default that of `pool_of`.

    Raises
    ------
    UsageError
        As `planned`, if another batch is at work in the folder, or the settings are wrong for all pictures.
    DipFastError
        If no worker can start, or the manifest cannot be written.
    """
    with _made(batch.out), _locked(batch):
        found = planned(batch)
        counts = {"pictures": len(found.rows), "waiting": len(found.items), "done": found.skipped}
        faults = [
            {"picture": name, "status": found.rows[name]["status"], "error": found.rows[name]["error"]}
            for name in found.faults
        ]
        emit({"event": "batch", **counts, "ignored": found.ignored, "faults": faults})
        if batch.settings.reference is not None and (lacking := sum(item.reference is None for item in found.items)):
            lack = "has" if lacking == 1 else "have"
            pictures = counted(len(found.items), "picture")
            text = f"{lacking} of {pictures} {lack} none of their name in {batch.settings.reference}"
            emit({"event": "note", "text": f"{text}, and get no PSNR"})
        keeper = _Keeper(batch, found, emit)
        if not found.items:
            return keeper.result(None)
        pool = (make_pool or pool_of)(batch)
        try:
            driver = Driver(pool, found.items, keeper.take, retries=batch.retries, max_failures=batch.max_failures)
            driver.run()
        finally:
            pool.close()
        return keeper.result(driver)


def status(folder: Path) -> Result:
    """Write the manifest of a folder again, from the records of the runs in it.

    What has no run yet is taken from the manifests that are there.

    Raises
    ------
    UsageError
        If it is no folder, or holds no run.
    """
    rows = manifest.rebuilt(folder) if folder.is_dir() else []
    if not rows:
        raise UsageError("{} holds no runs; name the folder of a batch", Argument("status", str(folder)))
    manifest.check(folder / manifest.MANIFEST)
    manifest.write(folder / manifest.MANIFEST, rows)
    return Result(rows, 0, False, False, folder / manifest.MANIFEST, None)


def pool_of(batch: Batch) -> Pool:
    """Make a pool of processes, on this machine or on the nodes of a cluster."""
    if batch.cluster is not None:
        return RayPool(batch.settings, batch.cluster, batch.out, batch.workers)
    return local_pool(batch)


def local_pool(batch: Batch) -> LocalPool:
    """Make a pool of processes on this machine."""
    return LocalPool(batch.settings, batch.workers or 1, batch.settings.asked.get("threads"))


class _Keeper:
    """Keeps the rows of a batch up to date, and the manifest on disk."""

    def __init__(self, batch: Batch, found: Plan, emit: Emit) -> None:
        self.batch, self.rows, self.skipped, self.emit = batch, found.rows, found.skipped, emit
        self._items = {item.name: item for item in found.items}
        self._root, self._is_begun, self._written = found.root, False, 0.0
        self._in_hand: set[str] = set()

    def take(self, event: dict[str, Any]) -> None:
        """Follow an event, and hand it on."""
        if event["event"] == "started":
            self._in_hand.add(event["picture"])
            if not self._is_begun:  # only now it is known that the settings are good
                keep(self.batch.out, self.batch.settings, self._root)
                self.write()  # so that it is known what waits, whatever happens
                self._is_begun = True
        elif event["event"] == "picture":
            name, status = event["picture"], event["status"]
            item = self._items[name]
            self._in_hand.discard(name)
            if status == "failed":
                from dip_fast.runs.batch import work  # here, since it imports torch

                work.leave(self.batch.settings, item, "failed", event["error"])
            row = manifest.row(name, Path(item.folder))
            self.rows[name] = {**row, "status": status, "error": event["error"] or row["error"]}
            if time.monotonic() - self._written > SECONDS_BETWEEN_MANIFESTS:
                self.write()
        self.emit(event)

    def write(self) -> None:
        """Write the manifest."""
        manifest.write(self.batch.manifest, self.sorted())
        self._written = time.monotonic()

    def sorted(self) -> list[Row]:
        """Return the rows in the order of their paths."""
        return [self.rows[name] for name in sorted(self.rows)]

    def result(self, driver: Driver | None) -> Result:
        """Write what a batch leaves."""
        for name in self._in_hand:  # of a batch that was ended at once
            self.rows[name] = manifest.row(name, Path(self._items[name].folder))
        self.write()
        return Result(
            rows=self.sorted(),
            skipped=self.skipped,
            is_stopped=driver is not None and driver.is_stopped,
            gave_up=driver is not None and driver.gave_up,
            manifest=self.batch.manifest,
            index=None if driver is None or self.batch.shard is not None else self._index(),
        )

    def _index(self) -> Path | None:
        """Write the page with all runs; without it, the batch is worth no less."""
        if next(run_folders(self.batch.out), None) is None:
            return None
        from dip_fast.runs import rewriting  # here, since it imports torch

        try:
            return rewriting.rewrite(self.batch.out, lambda line: None, overwrite=self.batch.settings.overwrite)
        except DipFastError as error:
            self.emit({"event": "note", "text": str(error)})
            return None


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make the folder of a batch; it goes again where nothing was written into it."""
    was_there = folder.is_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError("cannot use {}: {}; choose another {}", folder, error.strerror, Argument("out")) from error
    try:
        yield
    finally:
        if not was_there:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def _locked(batch: Batch) -> Iterator[None]:
    """Keep other drivers of the same batch out, or of the same job of an array; a dead one holds no lock.

    The folder itself is locked, by jobs of an array for all of them, and by each a file of its own besides.
    """
    with contextlib.ExitStack() as stack:
        try:
            opened = [os.open(batch.out, os.O_RDONLY | os.O_DIRECTORY)]
            stack.callback(os.close, opened[0])
            if batch.shard is not None:
                opened.append(os.open(batch.out / f".batch{batch.part}.lock", os.O_WRONLY | os.O_CREAT, 0o666))
                stack.callback(os.close, opened[1])
            for descriptor in opened:
                is_shared = batch.shard is not None and descriptor == opened[0]
                fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(
                "another batch is at work in {}; wait for it, or choose another {}", batch.out, Argument("out")
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise UsageError(
                    "cannot use {}: {}; choose another {}", batch.out, error.strerror, Argument("out")
                ) from error
        yield
