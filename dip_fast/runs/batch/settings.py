"""What a batch asks for, the same for all of its pictures."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dip_fast.errors import Argument, Spelling, UsageError, spelling
from dip_fast.pictures import write_atomically
from dip_fast.pictures.files import at_once, is_there, one_line, read_regular
from dip_fast.runs import typed

NAME = "batch.json"  # in the folder of a batch
FORMAT = "dip-fast batch 1"
MAX_BYTES = 2**20
# Settings that no result depends on, or that may differ between the machines that work on one batch.
NOT_OF_THE_RESULT = ("threads",)


@dataclass(frozen=True)
class Settings:
    """What is asked for of every picture.

    Attributes
    ----------
    asked : dict
        Settings by field of `Job`, and options of the task; nothing that was left open.
    inputs : dict of str to str
        Files, or descriptions, of the task's other inputs that all pictures share.
    mask_suffix : str, optional
        What the name of a picture's mask has more than that of the picture.
    reference : str, optional
        A folder of clean pictures.
    preview : str, optional
        The region that is restored.
    max_size : int, optional
        The longer side at most.
    page : int, optional
        Which page of files that have several.
    export : tuple of str, optional
        Formats of the model files.
    overwrite : bool
        Whether runs of other pictures or settings are replaced.
    options : dict of str to list of str
        How messages name arguments, as `Spelling` has it: as those of the process that the batch was asked for in.
    """

    asked: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    mask_suffix: str | None = None
    reference: str | None = None
    preview: str | None = None
    max_size: int | None = None
    page: int | None = None
    export: tuple[str, ...] | None = None
    overwrite: bool = False
    options: dict[str, Any] = field(default_factory=lambda: {**spelling.get().options})

    @property
    def spelling(self) -> Spelling:
        """How messages name arguments."""
        return Spelling(self.options)

    def to_json(self) -> str:
        """Write the settings as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Read what `to_json` wrote."""
        document = json.loads(text)
        export = document.pop("export")
        return cls(**document, export=None if export is None else tuple(export))

    @property
    def formats(self) -> tuple[str, ...]:
        """Formats of the model files."""
        return ("onnx",) if self.export is None else self.export

    def named(self) -> dict[str, Any]:
        """Collect what a result depends on by the names of the arguments, but for files."""
        own = {name: getattr(self, name) for name in ("mask_suffix", "preview", "max_size", "page")}
        found = {**self.asked, **{name: value for name, value in own.items() if value is not None}}
        plain: dict[str, Any] = json.loads(json.dumps(found))
        return {name: value for name, value in sorted(plain.items()) if name not in NOT_OF_THE_RESULT}

    def key(self, files: Mapping[str, str]) -> str:
        """Hash what a result depends on beside its picture.

        Parameters
        ----------
        files : mapping of str to str
            The other inputs and the reference, by name: paths, or descriptions.

        Raises
        ------
        OSError
            If a file cannot be read.
        """
        hashes = {name: _file_hash(path) for name, path in sorted(files.items())}
        document = json.dumps([self.named(), hashes], sort_keys=True)
        return hashlib.sha256(document.encode()).hexdigest()


def _file_hash(path: str) -> str:
    """Hash a file's content; a description, such as that of a kernel, stands for itself."""
    if not is_there(Path(path)):
        return path
    return file_hash(path)


def file_hash(path: str) -> str:
    """Hash a file's content, a piece after the other.

    Raises
    ------
    OSError
        If it cannot be read, or is a device or a pipe, which may have no end.
    """
    with open(path, "rb", opener=at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is no regular file")
        return hashlib.file_digest(file, "sha256").hexdigest()


def agree(folder: Path, settings: Settings, root: str) -> str:
    """Compare the settings with those that the batch in a folder was started with, where there is one.

    Parameters
    ----------
    folder : Path
    settings : Settings
    root : str
        The folder that names of pictures are relative to, where there is no batch yet.

    Returns
    -------
    str
        The folder that names of pictures are relative to.

    Raises
    ------
    UsageError
        Where they differ, naming the first that does, or where the file is none of a batch.
    """
    path, mine = folder / NAME, settings.named()
    if settings.overwrite or not is_there(path):
        return root
    stored = _read(path)
    theirs = stored["settings"]
    for name in sorted(mine.keys() | theirs.keys()):
        if mine.get(name) != theirs.get(name):
            raise UsageError(
                "the batch in {} was started {} {}; give the same, replace its runs with {}, or choose another {}",
                *(folder, *(("with", Argument(name, theirs[name])) if name in theirs else ("without", Argument(name)))),
                *(Argument("overwrite", True), Argument("out")),
            )
    return str(stored["root"])


def keep(folder: Path, settings: Settings, root: str) -> None:
    """Write into the folder of a batch what it was started with.

    Raises
    ------
    DipFastError
        If it cannot be written.
    """
    document = {"format": FORMAT, "root": root, "settings": settings.named()}
    write_atomically(folder / NAME, (json.dumps(document, indent=2) + "\n").encode())


def _read(path: Path) -> dict[str, Any]:
    """Read what a folder says of its batch."""
    try:
        document = typed.parse(read_regular(path, MAX_BYTES) or b"")
        if document["format"] != FORMAT or not isinstance(document["settings"], dict):
            raise ValueError("it is of another version")
    except (OSError, *typed.DAMAGE) as error:
        what = one_line(str(error))[:100]
        raise UsageError(
            "{} is not of a batch of this version ({}); choose another {}", path, what, Argument("out")
        ) from error
    return dict(document)
