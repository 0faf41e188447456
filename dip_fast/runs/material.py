"""What the user asked for, and what is read for it: the picture, the task's other inputs and the reference."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dip_fast import pictures
from dip_fast.errors import UsageError
from dip_fast.models.packing import digest
from dip_fast.names import counted
from dip_fast.pictures import Kind, Picture
from dip_fast.pictures.reading import read_content
from dip_fast.runs import places
from dip_fast.runs.job import Job
from dip_fast.runs.parts import Part
from dip_fast.runs.target import Target
from dip_fast.tasks import Data, Task


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes
    ----------
    source : Path or bytes
        The picture.
    asked : dict
        Settings by field of `Job`, and options of the task; nothing that was left open.
    inputs : dict of str to Path
        Files, or descriptions, of the task's other inputs by name.
    content : bytes, optional
        The content of the picture's file, where it was read before.
    out : Path, optional
        The run's folder; ``runs/<name of the picture>`` by default.
    target : Target, optional
        A file for the result, beside the folder.
    part : Part
        What is taken of the picture.
    reference : Path, optional
        The ground truth.
    resume, overwrite, quiet, verbose : bool
        Whether to go on with a run, to replace one, to show nothing, to show each figure of a step.
    export : tuple of str, optional
        Formats of the model files to write; ONNX by default.
    page : int, optional
        Which page of a file that has several, counted from 1.
    goes_on : bool
        Whether to go on with the run in the folder where there is one, and to begin it otherwise.
    key : str, optional
        What a batch knows the run by, see `Record`.
    """

    source: Path | bytes
    asked: dict[str, Any]
    inputs: dict[str, Path] = field(default_factory=dict)
    content: bytes | None = None
    out: Path | None = None
    target: Target | None = None
    part: Part = field(default_factory=Part)
    reference: Path | None = None
    resume: bool = False
    overwrite: bool = False
    quiet: bool = False
    verbose: bool = False
    export: tuple[str, ...] | None = None
    page: int | None = None
    goes_on: bool = False
    key: str | None = None

    @cached_property
    def data(self) -> bytes:
        """The content of the picture's file."""
        if isinstance(self.source, bytes):
            return self.source
        return read_content(self.source) if self.content is None else self.content

    @cached_property
    def file(self) -> str:
        """SHA-256 of the picture's file."""
        return hashlib.sha256(self.data).hexdigest()

    def forget_content(self) -> None:
        """Let go of the content of the picture's file, of which only the hash is needed once it is decoded."""
        if isinstance(self.source, Path) and self.file:
            vars(self).update(content=None)
            vars(self).pop("data", None)

    @cached_property
    def folder(self) -> Path:
        """The run's folder."""
        if self.out is not None:
            return self.out
        name = self.source.stem if isinstance(self.source, Path) else "stdin"
        name += "" if self.part.region is None else "-preview"
        copy = None if self.target is None else self.target.name
        return places.default(name, self.file, copy, resume=self.resume)

    @property
    def paths(self) -> list[Path]:
        """The files that the run reads."""
        named = [self.source, self.reference, *self.inputs.values()]
        return [path for path in named if isinstance(path, Path)]

    @property
    def files(self) -> dict[str, str]:
        """Where the picture and the other files are, as the user named them."""
        picture = str(self.source) if isinstance(self.source, Path) else "-"
        reference = {} if self.reference is None else {"reference": str(self.reference)}
        return {"picture": picture, **{name: str(path) for name, path in self.inputs.items()}, **reference}


@dataclass(frozen=True, eq=False)
class Material:
    """All that was read for a run.

    Attributes
    ----------
    picture : Picture
        The damaged one.
    data : Data
        What the task works on.
    reference : ndarray or None
        The ground truth, in the picture's range.
    identity : dict of str to dict
        Name and SHA-256 of all of these.
    """

    picture: Picture
    data: Data
    reference: np.ndarray | None
    identity: dict[str, dict[str, Any]]


def read(request: Request, job: Job, task: Task) -> Material:
    """Read the picture, the task's other inputs and the reference, and identify them."""
    picture = pictures.read_picture(
        request.source,
        keep_metadata=job.keep_metadata,
        missing=task.may_miss,
        aside=task.aside,
        page=request.page,
        content=request.data,
    )
    reference, part, result = None, request.part, task.result_kind(picture.kind, job.options)
    scale = result.size[0] // picture.size[0]
    if request.reference is not None:
        reference = part.array(_reference(request.reference, result), picture.size, scale)
    data, options = Data(picture.image, picture=picture), task.complete(job.options)
    in_place = {entry.name for entry in task.inputs if entry.in_place}
    inputs = {}
    for name, path in request.inputs.items():
        array = task.read(name, path, data, options)
        by = scale if name in in_place and array.shape[:2] != picture.size else 1
        inputs[name] = part.array(array, picture.size, by)
    picture = part.of(picture)
    aside = None if picture.extras.aside is None else picture.extras.aside[0]
    data = Data(picture.image, picture=picture, aside=aside, notes=data.notes)
    height, width = picture.size
    kind = {"width": width, "height": height, "channels": picture.channels, "dtype": picture.kind.dtype}
    beside = [array for array in (picture.extras.alpha, *(picture.extras.aside or ())) if array is not None]
    sha256 = digest(picture.image, *beside)
    page = {} if request.page is None else {"page": request.page}
    identity = {"picture": {"name": picture.name, **kind, **page, **part.facts(), "sha256": sha256}}
    for name, path in request.inputs.items():
        identity[name] = {"name": path.name, "sha256": digest(inputs[name])}
    if reference is not None and request.reference is not None:
        identity["reference"] = {"name": request.reference.name, "sha256": digest(reference)}
    return Material(picture, replace(data, inputs=inputs), reference, identity)


def _reference(path: Path, kind: Kind) -> np.ndarray:
    """Read the ground truth, in the range of the result's kind."""
    reference = pictures.read_picture(path)
    if reference.size != kind.size:
        height, width = reference.size
        raise UsageError(
            f"the reference {reference.name} is {width}x{height} and the picture {kind.width}x{kind.height}; "
            "give one of the same size"
        )
    if reference.channels != kind.channels:
        raise UsageError(
            f"the reference {reference.name} has {counted(reference.channels, 'channel')} "
            f"and the picture {kind.channels}; give one of the same kind"
        )
    return reference.in_range(kind)
