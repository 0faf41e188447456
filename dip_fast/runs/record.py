"""The record of a run, ``run.json``: all that is needed to repeat it, and what came of it."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch

from dip_fast import __version__
from dip_fast.errors import Argument, UsageError
from dip_fast.pictures.files import one_line, read_regular
from dip_fast.runs import typed
from dip_fast.runs.job import Job, check
from dip_fast.runs.places import MAX_BYTES, NAME

# Settings that no step depends on.
WITHOUT_STEPS = ("snapshot_every", "keep_metadata")
SUMMARIES = ("summary", "first")


class UnreadableError(ValueError):
    """A record that is damaged, or of another version; its text says which."""


class ModelFile(TypedDict):
    """A model file, as `dip_fast.models.writing.write` describes it."""

    path: str
    format: str
    bytes: int
    sha256: str
    pixels: str


class TileFile(TypedDict):
    """A tile of a picture: its place, ``file`` with what its network draws, and the SHA-256 of that once it is done.

    ``model`` is the SHA-256 of its model file; None where there is none.
    """

    top: int
    left: int
    height: int
    width: int
    file: str
    sha256: str | None
    model: str | None
    steps: int
    seconds: float


class Shared(TypedDict):
    """What the fits of all tiles have in common.

    ``probes`` are the tiles whose fits choose the steps of all: their numbers, with the steps that were best in each.
    """

    perturbation: float
    deviation: float | None
    probes: list[list[int]]
    iterations: int | None


class Quality(TypedDict):
    """Figures against the reference, where there is one."""

    psnr: float | None
    ssim: float | None


class BaselineFigures(Quality):
    """What the classical method of a task reached."""

    name: str


@dataclass(frozen=True)
class Summary:
    """What a run gave, as ``--json`` prints it.

    Attributes
    ----------
    result, folder : str
        Paths.
    steps, best_step : int
        Steps done, and the one whose averages are the answer.
    stop_reason : {"iterations", "variance", "interrupted"}
        Why there were no more.
    seconds : float
        Spent in the loop.
    device, engine, precision, seed
        Those of the job.
    psnr, ssim, psnr_input, ssim_input : float or None
        Of the result and of the picture against the reference, where there is one of their size.
    estimated_psnr : float or None
        PSNR of the result, in dB, as estimated without a reference; None where the objective has no such estimate.
    baseline : dict or None
        ``name``, and with a reference ``psnr`` and ``ssim``, of the task's classical method.
    sha256 : str
        Of the result's samples.
    drawn_by : str
        The library that drew the result, with its version.
    models : list of dict
        The model files.
    problems : list of str
        What could not be written.
    copy : str or None
        The file that the user named for the result, beside the one in the folder.
    strength : float
        How far the result goes from the input to the answer of the fit: 1 unless the user has picked less.
    file : str
        SHA-256 of the file of the result; empty in a record of an earlier version.
    guide_psnr : float or None
        As `estimated_psnr`, of the guide alone; None where there was none that was mixed in.
    """

    result: str
    folder: str
    steps: int
    best_step: int
    stop_reason: Literal["iterations", "variance", "interrupted"]
    seconds: float
    device: str
    engine: str
    precision: str
    seed: int
    psnr: float | None
    ssim: float | None
    psnr_input: float | None
    ssim_input: float | None
    estimated_psnr: float | None
    baseline: BaselineFigures | None
    sha256: str
    drawn_by: str
    models: list[ModelFile]
    problems: list[str]
    copy: str | None = None
    strength: float = 1.0
    file: str = ""
    guide_psnr: float | None = None


def now() -> str:
    """Write the time of now, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def host() -> str:
    """Return the name of this machine."""
    return platform.node()


def versions() -> dict[str, str]:
    """Collect the versions that a result's bits depend on."""
    return {"dip_fast": __version__, "torch": torch.__version__, "numpy": np.__version__}


@dataclass
class Record:
    """The content of ``run.json``.

    Attributes
    ----------
    status : {"running", "done", "interrupted", "failed", "bad", "too-large"}
        How far the run has come.  The last two are of pictures that a batch could not begin with: of such a one nothing
        was read, or it needs more memory than there is.
    settings : Job
        What was asked for, completed.
    recipe : dict
        The recipe that these settings stand for.
    inputs : dict of str to dict
        Name, size and SHA-256 of the picture, of the other inputs and of the reference.
    files : dict of str to str
        Where each of these was, as the user named it: a path, or a description; ``-`` for standard input.
    versions : dict of str to str
        Versions of the libraries that made it.
    python, platform, started, ended : str
        Where and when; ``ended`` is None while it runs.
    seconds_per_step : float or None
        Mean time of a step.
    events : list of dict
        Losses that went wrong.
    summary : Summary or None
        What it gave.
    first : Summary or None
        What it gave before the user picked another answer.
    error : str or None
        Why it failed.
    file : str or None
        SHA-256 of the picture's file.
    copies : dict of str to str
        SHA-256 of files that the result was written to besides, by their paths.
    attempts : int
        How often the run was begun or resumed.
    host : str
        The machine that it was begun or resumed on last.
    key : str or None
        SHA-256 of what a batch asked for, by which it knows its own runs.
    written : dict of str to str
        SHA-256 of the result and the model files by name, as they were before it was resumed.
    sources : list of str or None
        What a stack was read from, as the user named it; None for one picture.
    tiles : list of dict or None
        Those of a picture that is restored in tiles, see `TileFile`.
    shared : dict or None
        See `Shared`; None before it is known.
    """

    status: Literal["running", "done", "interrupted", "failed", "bad", "too-large"]
    settings: Job
    recipe: dict[str, Any]
    inputs: dict[str, dict[str, Any]]
    files: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=versions)
    python: str = field(default_factory=platform.python_version)
    platform: str = field(default_factory=platform.platform)
    started: str = field(default_factory=now)
    ended: str | None = None
    seconds_per_step: float | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    summary: Summary | None = None
    first: Summary | None = None
    error: str | None = None
    file: str | None = None
    copies: dict[str, str] = field(default_factory=dict)
    attempts: int = 1
    host: str = field(default_factory=host)
    key: str | None = None
    written: dict[str, str] = field(default_factory=dict)
    sources: list[str] | None = None
    tiles: list[TileFile] | None = None
    shared: Shared | None = None

    part = ""  # what is fitted now, where there are several fits; no field

    def json(self) -> bytes:
        """Write the record as JSON; what is None is left out."""
        document = {name: value for name, value in asdict(self).items() if value is not None}
        return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()

    def digest(self) -> str:
        """Hash all that the steps made so far depend on, besides the versions.

        The number of iterations is left out where no step depends on it: such a run can be extended.
        """
        settings, options = asdict(self.settings), dict(self.recipe["options"])
        for name in WITHOUT_STEPS:
            del settings[name]
        if options["decay"] == "none":
            del settings["iterations"], options["iterations"]
        if settings["tile"] == "never":  # as the settings of earlier versions were
            del settings["tile"]
        document = [self.inputs, {**self.recipe, "options": options}, settings, *([self.part] if self.part else [])]
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Read the record of a run to resume.

        Raises
        ------
        UsageError
            If there is none, or it is damaged or of another version.
        """
        try:
            return cls.load(folder)
        except FileNotFoundError as error:
            raise UsageError(
                "nothing to resume: {} holds no {}; leave out {}", folder, NAME, Argument("resume", True)
            ) from error
        except UnreadableError as error:
            raise UsageError(
                "cannot resume: {} {}; start again with {}", folder / NAME, error, Argument("overwrite", True)
            ) from error

    @classmethod
    def load(cls, folder: Path) -> Record:
        """Read the record of a run, for whatever purpose.

        Raises
        ------
        FileNotFoundError
            If there is none.
        UnreadableError
            If it is damaged or of another version.
        """
        try:
            data = read_regular(folder / NAME, MAX_BYTES)
            if data is None:
                raise ValueError(f"it is larger than {MAX_BYTES} bytes")
            document = typed.parse(data)
        except FileNotFoundError:
            raise
        except (OSError, UsageError, ValueError, RecursionError) as error:
            raise UnreadableError(f"is unreadable ({one_line(str(error))[:200]})") from error
        if not isinstance(document, dict):
            raise UnreadableError("is not a run's record")
        try:
            return cls._parse(document)
        except typed.DAMAGE as error:
            raise UnreadableError("is damaged, or not of this version") from error

    @classmethod
    def _parse(cls, document: dict[str, Any]) -> Record:
        """Check and convert a document; any error means that it is no record of this version."""
        entries = {entry.name: document[entry.name] for entry in fields(cls) if entry.name in document}
        typed.require(document["settings"], Job)
        entries["settings"] = Job(**document["settings"])
        check(entries["settings"])
        for name in SUMMARIES:
            if entries.get(name) is not None:
                typed.require(document[name], Summary)
                entries[name] = Summary(**document[name])
        typed.require({name: value for name, value in entries.items() if name not in ("settings", *SUMMARIES)}, cls)
        return cls(**entries)
