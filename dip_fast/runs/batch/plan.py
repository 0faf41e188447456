"""What a batch has to do: its pictures, their names, what belongs to each, and the order."""

from __future__ import annotations

import glob
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dip_fast.errors import Argument, UsageError
from dip_fast.pictures.files import at_once, is_there
from dip_fast.pictures.formats import FORMATS
from dip_fast.pictures.reading import check_header
from dip_fast.runs.batch.settings import Settings, file_hash
from dip_fast.runs.places import found

HEADER = 2**20  # bytes from the start of a file, in which most formats say how large the picture is
BYTES_A_PIXEL = 3  # of a file that does not say it: enough to choose an order by

Standing = Literal["waiting", "done", "bad", "blocked"]


@dataclass(frozen=True)
class Item:
    """A picture of a batch.

    Attributes
    ----------
    name : str
        Its path from the root of the batch, which is also that of its folder from the folder of the batch: two pictures
        of one name have two paths, and a file's path never leads into another file's.
    picture, folder : str
        Paths of the file and of the run's folder.
    inputs : dict of str to str
        The task's other inputs.
    reference : str or None
        The ground truth.
    pixels : int
        About how many it has.
    problem : str or None
        What is wrong with it, where that shows already.
    """

    name: str
    picture: str
    folder: str
    inputs: dict[str, str]
    reference: str | None = None
    pixels: int = 0
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what `Item` takes."""
        return asdict(self)

    @property
    def files(self) -> dict[str, str]:
        """The other inputs and the reference."""
        return self.inputs if self.reference is None else {**self.inputs, "reference": self.reference}


@dataclass(frozen=True)
class Found:
    """The files that were named.

    Attributes
    ----------
    pictures : list of str
        Absolute paths, in order.
    ignored : list of str
        Files in the folders that are of no format of pictures.
    root : str
        The folder that names are relative to.
    """

    pictures: list[str]
    ignored: list[str]
    root: str


def find(sources: Sequence[str | Path], out: Path, *, recursive: bool = False) -> Found:
    """Find the pictures in folders, by patterns and by name.

    Hidden files and the folder of the batch itself are left out; no link to a folder is followed.

    Raises
    ------
    UsageError
        If there is nothing of a name, or not one picture.
    """
    pictures: dict[str, None] = {}
    ignored: dict[str, None] = {}
    roots = []
    for source in [os.fspath(source) for source in sources]:
        if os.path.isdir(source):  # noqa: PTH112  (a name that no file can have is not there)
            roots.append(os.path.abspath(source))  # noqa: PTH100  (a link keeps its name)
            for path in _walk(source, out, recursive=recursive):
                (pictures if Path(path).suffix.lower() in _suffixes() else ignored)[path] = None
            continue
        matches = [source] if is_there(Path(source)) else sorted(glob.glob(source, recursive=True))  # noqa: PTH207
        files = [os.path.abspath(path) for path in matches if os.path.isfile(path)]  # noqa: PTH100, PTH113
        if not files:
            raise UsageError("there is no picture {}; name files, folders, or a pattern in quotes", source)
        pictures |= dict.fromkeys(files)
        roots.append(_fixed_part(source))
    if not pictures:
        raise UsageError(
            "there is no picture in {}; name another folder"
            + ("" if recursive else ", or give {} to look into folders"),
            *(", ".join(map(str, sources)), Argument("recursive", True)),
        )
    return Found(list(pictures), list(ignored), os.path.commonpath(roots))


def _fixed_part(pattern: str) -> str:
    """Return the folder that all files lie in which a pattern can match."""
    folder = os.path.dirname(os.path.abspath(pattern))  # noqa: PTH100, PTH120
    while glob.has_magic(folder) and not is_there(Path(folder)):
        folder = os.path.dirname(folder)  # noqa: PTH120
    return folder


def _suffixes() -> set[str]:
    return {suffix for format_ in FORMATS.values() for suffix in format_.suffixes}


def _walk(folder: str, out: Path, *, recursive: bool) -> Iterator[str]:
    """List the files of a folder in order."""
    own = out.absolute()
    for place, folders, files in os.walk(os.path.abspath(folder)):  # noqa: PTH100
        kept = [name for name in sorted(folders) if not name.startswith(".") and Path(place, name) != own]
        folders[:] = kept if recursive else []
        yield from (os.path.join(place, name) for name in sorted(files) if not name.startswith("."))  # noqa: PTH118


def items(files: Found, out: Path, settings: Settings, root: str) -> list[Item]:
    """List the pictures with what belongs to each, the largest first.

    Parameters
    ----------
    files : Found
    out : Path
        The folder of the batch.
    settings : Settings
    root : str
        The folder that names are relative to, as the batch was started with; where pictures lie elsewhere by now, that
        of the files.

    Raises
    ------
    UsageError
        If the folder of references is none, the folder of the batch is that of the pictures, or all of them are masks.
    """
    if any(os.path.commonpath([root, path]) != root for path in files.pictures):
        root = files.root
    if os.path.realpath(out) == os.path.realpath(root):  # each run's folder would have the path of its picture
        raise UsageError("{} holds the pictures; choose another folder, which may lie in it", Argument("out", str(out)))
    references = None if settings.reference is None else Path(settings.reference)
    if references is not None and not (is_there(references) and references.is_dir()):
        raise UsageError("{} is no folder; name one of clean pictures", Argument("reference", str(references)))
    pictures, masks = _without_masks(files.pictures, settings.mask_suffix)
    if not pictures:
        raise UsageError(
            "there are masks and no picture: all names end with {}", Argument("mask_suffix", settings.mask_suffix)
        )
    planned = []
    for path in pictures:
        name = os.path.relpath(path, root)
        inputs, problem = dict(settings.inputs), None
        if settings.mask_suffix is not None:
            mask, problem = _mask(path, settings.mask_suffix, masks)
            inputs |= {"mask": mask} if mask is not None else {}
        reference = None if references is None else _reference(references / name)
        planned.append(Item(name, path, str(out / name), inputs, reference, _pixels(path), problem))
    return sorted(planned, key=lambda item: (-item.pixels, item.name))


def _without_masks(paths: Iterable[str], suffix: str | None) -> tuple[list[str], dict[str, list[str]]]:
    """Tell masks from pictures: the masks by their paths without the suffix of the file."""
    pictures: list[str] = []
    masks: dict[str, list[str]] = {}
    for path in paths:
        stem = os.path.splitext(path)[0]  # noqa: PTH122
        if suffix is not None and stem.endswith(suffix):
            masks.setdefault(stem, []).append(path)
        else:
            pictures.append(path)
    return pictures, masks


def _mask(path: str, suffix: str, masks: Mapping[str, list[str]]) -> tuple[str | None, str | None]:
    """Find the mask of a picture: of the same kind of file, or the only one; and what is wrong where there is none."""
    stem, kind = os.path.splitext(path)  # noqa: PTH122
    named = [f"{stem}{suffix}{own}" for own in sorted(_suffixes())]
    there = masks.get(stem + suffix) or [name for name in named if is_there(Path(name))]
    if f"{stem}{suffix}{kind}" in there:
        return f"{stem}{suffix}{kind}", None
    if len(there) == 1:
        return there[0], None
    what = f"there are {len(there)} masks" if there else "there is no mask"
    return None, f"{what} {stem}{suffix}.*; {'keep one' if there else 'put one beside the picture'}"


def _reference(path: Path) -> str | None:
    """Find the reference of a picture: the same name, or the only one that differs by its suffix."""
    if is_there(path):
        return str(path)
    others = [path.with_suffix(suffix) for suffix in sorted(_suffixes()) if is_there(path.with_suffix(suffix))]
    return str(others[0]) if len(others) == 1 else None


def _pixels(path: str) -> int:
    """Read how large a picture is from the start of its file, or take it from the file's length."""
    try:
        with open(path, "rb", opener=at_once) as file:
            length = os.fstat(file.fileno()).st_size
            head = file.read(HEADER)
    except OSError:
        return 0
    try:
        size = check_header(head, path)
    except Exception:  # cut off, or no picture: whoever restores it says what is wrong
        size = None
    return length // BYTES_A_PIXEL if size is None else math.prod(size[:2])


def shard(planned: Iterable[Item], part: tuple[int, int] | None) -> list[Item]:
    """Choose the pictures of one job of an array, by a hash of their names: each belongs to one job.

    Parameters
    ----------
    planned : iterable of Item
    part : tuple of int, optional
        Which job, counted from 1, and how many there are.
    """
    if part is None:
        return list(planned)
    index, count = part
    return [item for item in planned if _number(item.name) % count == index - 1]


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big")


def standing(item: Item, settings: Settings) -> tuple[Standing, str | None]:
    """Find out from the record in a picture's folder whether anything is to be done, and why not.

    Returns
    -------
    standing : {"waiting", "done", "bad", "blocked"}
        Blocked is a folder that holds the run of another picture or of other settings.
    error : str or None
    """
    document = found(Path(item.folder))
    if document is None:
        return "waiting", None
    status = document.get("status")
    try:
        same = document.get("file") == file_hash(item.picture) and document.get("key") == settings.key(item.files)
    except OSError:  # whoever restores it says what is wrong
        return "waiting", None
    if status in ("bad", "too-large"):
        return ("bad", str(document.get("error"))) if same and status == "bad" else ("waiting", None)
    if not same:
        if settings.overwrite:
            return "waiting", None
        other = "another picture" if document.get("key") == settings.key(item.files) else "other settings"
        return "blocked", f"{item.folder} holds the run of {other}; move it away, or have it overwritten"
    return ("done" if status == "done" and _is_whole(document, Path(item.folder), settings) else "waiting"), None


def _is_whole(document: Mapping[str, Any], folder: Path, settings: Settings) -> bool:
    """Whether a finished run has left all that it should, and it is still there."""
    try:
        summary = document["summary"]
        written = {model["format"]: Path(model["path"]).name for model in summary["models"]}
        names = [Path(summary["result"]).name, *written.values()]
        is_all = not summary["problems"] and set(settings.formats) <= written.keys()
    except (KeyError, TypeError, AttributeError):
        return False
    return is_all and all((folder / name).is_file() for name in names)
