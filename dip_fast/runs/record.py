"""The record of a run, ``run.json``: all that is needed to repeat it, and what came of it."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dip_fast import __version__
from dip_fast.errors import Argument, UsageError
from dip_fast.runs.job import Job, check

NAME = "run.json"
STATUSES = ("running", "done", "interrupted", "failed")


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
    """

    result: str
    folder: str
    steps: int
    best_step: int
    stop_reason: str
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
    baseline: dict[str, Any] | None
    sha256: str
    drawn_by: str
    models: list[dict[str, Any]]
    problems: list[str]


def now() -> str:
    """Write the time of now, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Collect the versions that a result's bits depend on."""
    return {"dip_fast": __version__, "torch": torch.__version__, "numpy": np.__version__}


@dataclass
class Record:
    """The content of ``run.json``.

    Attributes
    ----------
    status : {"running", "done", "interrupted", "failed"}
        How far the run has come.
    settings : Job
        What was asked for, completed.
    recipe : dict
        The recipe that these settings stand for.
    inputs : dict of str to dict
        Name, size and SHA-256 of the picture, of the other inputs and of the reference.
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
    error : str or None
        Why it failed.
    """

    status: str
    settings: Job
    recipe: dict[str, Any]
    inputs: dict[str, dict[str, Any]]
    versions: dict[str, str] = field(default_factory=versions)
    python: str = field(default_factory=platform.python_version)
    platform: str = field(default_factory=platform.platform)
    started: str = field(default_factory=now)
    ended: str | None = None
    seconds_per_step: float | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    summary: Summary | None = None
    error: str | None = None

    def json(self) -> bytes:
        """Write the record as JSON; what is None is left out."""
        document = {name: value for name, value in asdict(self).items() if value is not None}
        return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Read the record of a run to resume.

        Raises
        ------
        UsageError
            If there is none, or it is damaged or of another version.
        """
        path, again = folder / NAME, Argument("overwrite", True)
        try:
            document = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise UsageError(
                "nothing to resume: {} holds no {}; leave out {}", folder, NAME, Argument("resume", True)
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError("cannot resume: {} is unreadable ({}); start again with {}", path, error, again) from error
        if not isinstance(document, dict):
            raise UsageError("cannot resume: {} is not a run's record; start again with {}", path, again)
        try:
            return cls._parse(document)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                "cannot resume: {} is damaged, or not of this version; start again with {}", path, again
            ) from error

    @classmethod
    def _parse(cls, document: dict[str, Any]) -> Record:
        """Check and convert a document; any error means that it is no record of this version."""
        entries = {entry.name: document[entry.name] for entry in fields(cls) if entry.name in document}
        entries["settings"] = Job(**document["settings"])
        if entries.get("summary") is not None:
            entries["summary"] = Summary(**document["summary"])
        record = cls(**entries)
        check(record.settings)
        texts = (record.python, record.platform, record.started)
        if record.status not in STATUSES or not all(isinstance(text, str) for text in texts):
            raise ValueError("status")
        for mapping in (record.recipe, record.inputs, record.versions):
            if not isinstance(mapping, dict):
                raise TypeError("mapping")
        return record
