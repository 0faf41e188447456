"""The record of a stack, and the folder that it is in."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, TypedDict

from dip_fast.errors import UsageError
from dip_fast.models.formats import FORMATS
from dip_fast.pictures.files import is_there, stream_in
from dip_fast.pictures.stacks import MOST
from dip_fast.runs import places
from dip_fast.runs.checkpoints import CHECKPOINT
from dip_fast.runs.folder import OUT, SNAPSHOTS, Folder, Say
from dip_fast.runs.record import NAME, ModelFile, Record


class Chunk(TypedDict):
    """Pictures that one network is fitted to.

    ``why`` it begins where it does, ``file`` with its results and the SHA-256 of that, once it is done.
    """

    first: int
    count: int
    why: Literal["start", "scene", "size"]
    file: str
    sha256: str | None
    steps: int
    seconds: float
    estimated_psnrs: list[float]


@dataclass
class StackRecord(Record):
    """The content of ``run.json`` for a stack.

    Attributes
    ----------
    chunk : int or None
        Most pictures of a chunk, as the user asked for.
    chunks : list of dict
        See `Chunk`.
    results : list of str
        Names of the files in the folder that are results.
    export : list of str
        Formats of the model files, one for each picture.
    models : list of dict
        Those that are written, of chunks that are done.
    """

    chunk: int | None = None
    chunks: list[Chunk] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    export: list[str] = field(default_factory=list)
    models: list[ModelFile] = field(default_factory=list)

    current = 0  # chunk that is being fitted; no field

    def digest(self) -> str:
        """Hash what the steps of the current chunk depend on."""
        chunk = self.chunks[self.current]
        return hashlib.sha256(f"{super().digest()} {chunk['first']} {chunk['count']}".encode()).hexdigest()


def model_names(first: int, count: int, formats: Sequence[str]) -> list[str]:
    """Name the model files of pictures, which are counted from 0 here and from 1 in the names."""
    return [f"model_{n + 1:04}{FORMATS[key].suffix}" for n in range(first, first + count) for key in formats]


class StackFolder(Folder):
    """The folder of the results of a stack, and of what a run leaves.

    Parameters
    ----------
    path : Path
    say : callable
    """

    def __init__(self, path: Path, say: Say) -> None:
        super().__init__(path, say)
        self.earlier = self._earlier()

    def _earlier(self) -> list[str]:
        """List the results and the model files of the stack whose record is in the folder."""
        document = places.found(self.path) or {}
        chunks = [chunk for chunk in document.get("chunks") or [] if isinstance(chunk, dict)]
        named = document.get("results"), [chunk.get("file") for chunk in chunks], document.get("export")
        lists = [each if isinstance(each, list) else [] for each in named]
        results, files, formats = ([name for name in each if isinstance(name, str)] for each in lists)
        count = sum(chunk["count"] for chunk in chunks if isinstance(chunk.get("count"), int))
        models = model_names(0, min(count, MOST), [key for key in formats if key in FORMATS])
        return [name for name in (*results, *files, *models) if name and Path(name).name == name]

    def own(self) -> list[str]:
        """List what this and an earlier stack leave, besides the record."""
        return [*super().own(), *self.earlier]

    def check_results(self, names: Sequence[str], sources: Sequence[Path]) -> None:
        """Refuse a folder that holds what is read, or in which something else has the name of a result.

        Raises
        ------
        UsageError
        """
        for source in sources:
            holds = source if is_there(source) and source.is_dir() else source.parent
            if is_there(self.path) and is_there(holds) and holds.samefile(self.path):
                raise UsageError("{} is the folder that is read; choose another {}", self.path, OUT)
        for name in {*names} & {NAME, CHECKPOINT, "contact_sheet.png", "history.csv"}:
            raise UsageError("a picture is named {}, as a file that the run writes; rename it", name)
        for name in names:
            if name not in self.earlier and is_there(self.path / name):
                raise UsageError("{} exists, and is no result of this stack; choose another {}", self.path / name, OUT)

    @contextlib.contextmanager
    def stream(self, name: str) -> Iterator[BinaryIO]:
        """Open a file in the folder, which gets its name once it is written.

        Raises
        ------
        DipFastError
            If it cannot be written.
        """
        assert self._folder is not None, "the folder is open"
        with stream_in(self._folder, name, self.path / name) as file:
            yield file

    def remove_snapshots(self) -> None:
        """Remove the folder of snapshots, which a stack has none of."""
        with contextlib.suppress(OSError):  # the user has put something there
            os.rmdir(SNAPSHOTS, dir_fd=self._folder)
