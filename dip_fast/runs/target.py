"""The file that a user names for the result, beside the run's folder or in place of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dip_fast.errors import Argument, DipFastError, UsageError
from dip_fast.pictures import Extras, Kind, encode_samples, write_atomically
from dip_fast.pictures.files import check_free, is_there
from dip_fast.pictures.writing import check_writable
from dip_fast.runs.folder import OUT, Folder, write_elsewhere


@dataclass(frozen=True)
class Target:
    """A file for the result.

    Attributes
    ----------
    path : Path
        Its suffix names the format.
    quality : int, optional
        Of a JPEG file, 1 to 100; by default that of the picture where it is JPEG itself, and 95 otherwise.
    alone : bool
        Whether nothing else of the run is kept.
    """

    path: Path
    quality: int | None = None
    alone: bool = False

    @property
    def name(self) -> str:
        """The path from the root on, by which the record knows the file."""
        return str(self.path.absolute())

    def check(self, inputs: Iterable[Path], *, overwrite: bool, own: str | None = None) -> None:
        """Refuse, before any work is done, a file that cannot be written, or that would be lost.

        Parameters
        ----------
        inputs : iterable of Path
            The files that the run reads, none of which is ever replaced.
        overwrite : bool
            Whether a file that is there may be replaced.
        own : str, optional
            The SHA-256 of what an earlier part of this run has written there.

        Raises
        ------
        UsageError
        """
        is_own = False
        if is_there(self.path):
            for path in inputs:
                if is_there(path) and path.samefile(self.path):
                    raise UsageError("{} is read by this run, and is not replaced; choose another {}", self.path, OUT)
            if own is not None and self.path.is_file():
                is_own = hashlib.sha256(self.path.read_bytes()).hexdigest() == own
        check_free(self.path, overwrite=overwrite or is_own)

    def check_kind(self, kind: Kind) -> None:
        """Refuse, before the fit, a format that cannot hold the result.

        Raises
        ------
        UsageError
        """
        check_writable(kind, self.path.suffix)
        if self.quality is not None and self.path.suffix.lower() not in (".jpg", ".jpeg"):
            raise UsageError("{} is for JPEG files; leave it out, or name the result .jpg", Argument("quality"))

    def write(self, folder: Folder, samples: np.ndarray, kind: Kind, extras: Extras) -> tuple[Path, str]:
        """Write the result; where that fails, the folder of the run has it, or whatever place can be written.

        Returns
        -------
        path : Path
            Where it is.
        sha256 : str
            Of the file.
        """
        if self.quality is not None:
            extras = replace(extras, jpeg={"quality": self.quality})
        data = encode_samples(samples, kind, extras, suffix=self.path.suffix)
        path = self.path
        try:
            write_atomically(path, data)
        except DipFastError as error:
            folder.problems.append(str(error))
            assert folder.result is not None, "it was written just now"
            path = write_elsewhere(self.path.name[-100:], data) if self.alone else folder.result
        return path, hashlib.sha256(data).hexdigest()
