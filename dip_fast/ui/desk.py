"""What lies on the user's desk: pictures of the folder they opened, pictures they dropped, masks they painted.

Nothing outside these places is ever read or written, whatever a browser asks for.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dip_fast import pictures
from dip_fast.errors import UsageError
from dip_fast.pictures import write_atomically
from dip_fast.pictures.formats import FORMATS
from dip_fast.pictures.raster import decode_png, encode_png
from dip_fast.runs.parts import Part
from dip_fast.runs.record import Record
from dip_fast.runs.reporting import preview
from dip_fast.tasks import masks
from dip_fast.tasks.task import Data

HERE, DROPPED = "here", "dropped"  # the first part of a picture's address
MAX_ENTRIES = 2000  # of a folder, that are listed
MAX_NAME = 80  # bytes of a dropped picture's name
MARKS = re.compile(r"alpha|nan|#[0-9a-fA-F]{6}")  # what of a picture itself can say what is to be filled in


@dataclass(frozen=True)
class Facts:
    """What the page has to know of a picture before it is restored: height and width, upright, and what it lacks."""

    size: tuple[int, int]
    has_alpha: bool
    has_missing: bool


@dataclass(frozen=True)
class Desk:
    """The places of one server.

    Attributes
    ----------
    root : Path
        The folder whose pictures can be chosen.
    runs : Path
        Where the folders of runs lie.
    only : str, optional
        The one picture of the folder that can be chosen.
    """

    root: Path
    runs: Path
    only: str | None = None

    @property
    def own(self) -> Path:
        """The folder for what the page needs beside the runs."""
        return self.runs / ".ui"

    def make(self) -> None:
        """Make the folders.

        Raises
        ------
        UsageError
        """
        try:
            for name in (DROPPED, "masks", "drafts", "jobs"):
                (self.own / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError("cannot use {}: {}; choose another folder for runs", self.runs, error.strerror) from error

    def files(self, folder: str) -> dict[str, Any]:
        """List a folder below the root: folders in it and pictures, by their names."""
        path = self.inside(self.root, folder) if folder else self.root
        suffixes = {suffix for format_ in FORMATS.values() for suffix in format_.suffixes}
        folders, found = [], []
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name.lower())[:MAX_ENTRIES]:
                if entry.name.startswith(".") or not _is_text(entry.name):
                    continue
                if self.only is not None and entry.name != self.only:
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.is_file() and Path(entry.name).suffix.lower() in suffixes:
                    found.append(entry.name)
        return {"folder": folder, "folders": folders, "pictures": found}

    def picture(self, address: str) -> Path:
        """Find a picture by its address, ``here/sub/photo.png`` or ``dropped/1a2b-photo.png``.

        Raises
        ------
        UsageError
            If there is none.
        """
        place, _, name = address.partition("/")
        if place == HERE and (self.only is None or name == self.only):
            return self.inside(self.root, name)
        if place == DROPPED:
            return self.inside(self.own / DROPPED, name)
        raise UsageError("there is no such picture")

    def input(self, record: Record) -> Path:
        """Find the picture that a run restores, if it lies in the folder, or was dropped.

        Raises
        ------
        UsageError
            If it does not, or is gone.
        """
        path = Path(record.files.get("picture", "")).absolute()
        for root in (self.root, self.own / DROPPED):
            if path.is_relative_to(root):
                return self.inside(root, str(path.relative_to(root)))
        raise UsageError("the picture lies outside the folder")

    @staticmethod
    def inside(root: Path, name: str) -> Path:
        """Find what lies below a folder, also once links are followed.

        Raises
        ------
        UsageError
            If it does not, or is not there.
        """
        try:
            whole = root.resolve(strict=True)
            path = (whole / name).resolve(strict=True)
        except (OSError, ValueError, RuntimeError) as error:  # not there, a null byte, a circle of links
            raise UsageError("there is no such file") from error
        if path == whole or not path.is_relative_to(whole) or ".." in Path(name).parts:
            raise UsageError("there is no such file")
        return path

    def facts(self, path: Path) -> Facts:
        """Find what the page has to know of a picture."""
        return _facts(path, path.stat().st_mtime_ns)

    def drop(self, name: str, content: bytes) -> str:
        """Keep a picture that was dropped on the page, once it could be read; return its address."""
        suffix = Path(name).suffix.lower()[:10]
        stem = re.sub(r"[^\w.-]+", "-", Path(name.replace("\\", "/")).stem).strip(".-")
        stem = stem.encode()[:MAX_NAME].decode(errors="ignore") or "picture"
        kept = f"{hashlib.sha256(content).hexdigest()[:8]}-{stem}{re.sub(r'[^a-z0-9.]', '', suffix)}"
        pictures.read_picture(content, name=kept, missing=True)
        write_atomically(self.own / DROPPED / kept, content)
        return f"{DROPPED}/{kept}"

    def draft(self, picture: Path) -> Path:
        """Name the file of the mask that is being painted for a picture."""
        return self.own / "drafts" / f"{hashlib.sha256(os.fsencode(picture)).hexdigest()[:32]}.png"

    def paint(self, picture: Path, size: tuple[int, int], bits: bytes) -> str:
        """Keep the mask of a picture; return the name of that state of it.

        Parameters
        ----------
        picture : Path
        size : tuple of int
            Height and width, as the page has them.
        bits : bytes
            A bit a pixel, row by row without gaps, the highest of a byte first: 1 where something is to be filled in.

        Raises
        ------
        UsageError
            If these are not the bits of a mask of the picture.
        """
        height, width = size
        if size != self.facts(picture).size or len(bits) != -(-height * width // 8):
            raise UsageError("the mask is not of the size of the picture; load the page again")
        holes = np.unpackbits(np.frombuffer(bits, np.uint8), count=height * width).reshape(height, width)
        write_atomically(self.draft(picture), _encoded(holes == 0))
        return hashlib.sha256(bits).hexdigest()

    def loaded(self, picture: Path, name: str, content: bytes) -> bytes:
        """Read a file as the mask of a picture, as the command line does; return it as a PNG file, black and white."""
        size = self.facts(picture).size
        return _encoded(pictures.read_mask(content, size, name=name or "mask"))

    def marked(self, picture: Path, by: str) -> bytes:
        """Find what is to be filled in by the picture itself: by ``alpha``, ``nan`` or a colour such as ``#ff00ff``.

        Raises
        ------
        UsageError
            If it is by something else, or no pixel is so.
        """
        if not MARKS.fullmatch(by):  # another text would be the name of a file
            raise UsageError("a mask is by alpha, nan or a colour such as #ff00ff")
        read = pictures.read_picture(picture, missing=True)
        known = masks.known(by, Data(read.image, picture=read))
        if known.all():
            raise UsageError("no pixel of the picture is so ({}); paint what is to be filled in", by)
        return _encoded(known)

    def painted(self, picture: Path, state: str) -> Path:
        """Keep the mask that was painted for a run, whatever is painted later; return its file.

        Raises
        ------
        UsageError
            If another tab has painted another one meanwhile, or nothing is painted.
        """
        draft = self.draft(picture)
        if not draft.exists():
            raise UsageError("paint what is to be filled in, or load a mask")
        data = draft.read_bytes()
        holes = decode_png(data).reshape(-1) == 0
        if hashlib.sha256(np.packbits(holes).tobytes()).hexdigest() != state:
            raise UsageError("the mask was changed in another tab; load the page again to see it")
        kept = self.own / "masks" / f"{picture.stem[:40]}-{state[:12]}.png"
        write_atomically(kept, data)
        return kept


def shown(path: Path, part: Part | None = None, page: int | None = None) -> bytes:
    """Encode a picture, or a part of it, as an 8-bit PNG file of the same size, which every browser shows."""
    return preview((part or Part()).of(pictures.read_picture(path, missing=True, page=page)).image)


def _encoded(known: np.ndarray) -> bytes:
    """Encode a mask as a PNG file: black is to be filled in."""
    return encode_png(np.where(known, 255, 0).astype(np.uint8)[..., None])


@lru_cache(maxsize=64)
def _facts(path: Path, changed: int) -> Facts:
    read = pictures.read_picture(path, missing=True)
    alpha = read.extras.alpha
    has_alpha = alpha is not None and bool(alpha.min() != alpha.max())
    return Facts(read.size, has_alpha, read.missing is not None and bool(read.missing.any()))


def _is_text(name: str) -> bool:
    """Whether a name can be written in UTF-8; JSON and addresses hold no other."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
