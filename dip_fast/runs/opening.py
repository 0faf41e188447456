"""How a run begins and fails, however its picture is fitted: as a whole or in tiles."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import torch

from dip_fast.device import devices, engines, precision
from dip_fast.errors import DipFastError, in_words
from dip_fast.fitting import Fit
from dip_fast.names import counted
from dip_fast.pictures.files import one_line
from dip_fast.runs import estimate
from dip_fast.runs.folder import Folder, Say
from dip_fast.runs.job import Job
from dip_fast.runs.material import Material, Request
from dip_fast.runs.places import NAME
from dip_fast.runs.progress import Emit
from dip_fast.runs.record import Record
from dip_fast.runs.untouched import written_by


@dataclass(eq=False)
class Run:
    """A run that is about to begin, or to go on.

    Attributes
    ----------
    request : Request
    job : Job
    material : Material
    folder : Folder
        Locked and checked.
    stored : Record or None
        Of the run that is resumed.
    formats : tuple of str
        Of the model files.
    needed : int
        Memory in bytes, as estimated.
    said : list of str
        What was said of time and memory before the picture was read.
    say, emit : callable
        As in `dip_fast.runs.run.run`.
    record : Record
    """

    request: Request
    job: Job
    material: Material
    folder: Folder
    stored: Record | None
    formats: tuple[str, ...]
    needed: int
    said: list[str]
    say: Say
    emit: Emit | None
    record: Record = field(init=False)

    def __post_init__(self) -> None:
        request, job = self.request, self.job
        recipe = asdict(job.recipe(self.material.picture.size))
        identity, stored = self.material.identity, self.stored
        record = Record("running", job, recipe, identity, request.files, file=request.file, key=request.key)
        if stored is not None:
            record.started, record.copies, record.written = stored.started, stored.copies, written_by(stored)
            record.attempts = stored.attempts + 1
        self.record = record

    def begin(self, disk: int, first: Fit, notes: Sequence[str]) -> None:
        """Open the folder, and say what is restored, and how.

        Parameters
        ----------
        disk : int
            Bytes that the run may write.
        first : Fit
            The fit, or one of several.
        notes : sequence of str
            What to say besides.
        """
        self.folder.open(self.record, fresh=self.stored is None, overwrite=self.request.overwrite)
        for line in (*self._first_lines(first), *notes):
            self.say(line)
        size = self.material.picture.size
        expected = expected_lines(self.job, size, self.needed, fresh=self.stored is None)
        expected += estimate.lines(None, 0, disk)
        for line in (line for line in expected if line not in self.said):
            self.say(line)

    def _first_lines(self, fit: Fit) -> tuple[str, ...]:
        """Describe what is restored, how, and where."""
        picture, job = self.material.picture, self.job
        height, width = picture.size
        sort = " float" if picture.kind.is_float else " signed" if picture.kind.dtype.startswith("int") else ""
        colours = {1: "gray", 3: "RGB"} if picture.kind.colours is None else {}
        channels = colours.get(picture.channels, counted(picture.channels, "channel"))
        device = devices.describe(torch.device(job.device))
        products = precision.describe(job.precision, fit.device, fit.network)
        return (
            f"device {device}, engine {job.engine}{products} (torch {torch.__version__})"
            + (f", {engines.describe(fit.network)}" if job.engine == "fused" else ""),
            *([engines.build()] if self.request.verbose and job.engine == "fused" else []),
            f"{picture.name}: {width}x{height}, {channels}, {picture.kind.bits} bit{sort}; "
            f"{job.task}, preset {job.preset}, seed {job.seed}",
            *picture.notes,
            *self.material.data.notes,
        )

    @contextlib.contextmanager
    def failures(self, fit: Fit | None = None) -> Iterator[None]:
        """Record that a run has failed; and whatever happens once there is a result, name its place."""
        folder, record = self.folder, self.record
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, Exception):
                text = one_line(str(in_words(error)))
                record.status, record.error = "failed", text
                record.events = record.events if fit is None else fit.events
                folder.write(NAME, record.json)
            if folder.result is None:
                raise
            where = f"the result is in {folder.result}"
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(where) from error
            raise DipFastError(one_line(f"{text}; {where}")) from error


def expected_lines(job: Job, size: tuple[int, int], needed: int, *, fresh: bool) -> list[str]:
    """Describe the time and the memory of a fit, where they are much; of one that goes on, the memory."""
    return estimate.lines(estimate.seconds(job, size) if fresh else None, needed, 0)
