"""A picture of a batch and the folder of its run, as bytes: for machines that share no disk."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from dip_fast.errors import DipFastError
from dip_fast.pictures import write_atomically
from dip_fast.pictures.files import is_there
from dip_fast.runs.batch.plan import Item
from dip_fast.runs.places import NAME

REPORT = "report.html"


@dataclass(frozen=True)
class Parcel:
    """What travels to a worker.

    Attributes
    ----------
    files : dict of str to bytes
        The picture and the other inputs, by their paths here.
    run : dict of str to bytes
        What the run's folder holds already, by the path inside of it.
    """

    files: dict[str, bytes]
    run: dict[str, bytes]


def named(item: Item) -> list[str]:
    """List the files that a picture needs; a description, such as that of a kernel, is none."""
    return [item.picture, *(path for path in item.files.values() if is_there(Path(path)))]


def packed(item: Item) -> Parcel:
    """Read what a picture needs, and what there is of its run.

    Raises
    ------
    OSError
        If a file cannot be read.
    """
    return Parcel({path: Path(path).read_bytes() for path in named(item)}, contents(Path(item.folder)))


def contents(folder: Path) -> dict[str, bytes]:
    """Read the files of a run's folder, and of the folders in it."""
    if not is_there(folder / NAME):
        return {}
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def unpacked(item: Item, parcel: Parcel, place: Path) -> tuple[Item, dict[str, str]]:
    """Write a parcel into an empty folder.

    Returns
    -------
    Item
        With the paths that hold here.
    dict of str to str
        The paths there by the paths here.
    """
    here = {}
    for number, (path, data) in enumerate(parcel.files.items()):
        copy = place / str(number) / Path(path).name
        copy.parent.mkdir(parents=True)
        copy.write_bytes(data)
        here[path] = str(copy)
    folder = place / "run" / Path(item.folder).name
    for name, data in parcel.run.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    moved = replace(
        item,
        picture=here[item.picture],
        folder=str(folder),
        inputs={name: here.get(path, path) for name, path in item.inputs.items()},
        reference=None if item.reference is None else here.get(item.reference, item.reference),
    )
    return moved, {**{there: path for path, there in here.items()}, str(folder): item.folder}


def landed(item: Item, sent: Parcel, run: Mapping[str, bytes], paths: Mapping[str, str]) -> None:
    """Write a run's folder that a worker has sent back: its record last, as a run does.

    Parameters
    ----------
    item : Item
    sent : Parcel
        What the worker was sent; what it has removed of that goes here too.
    run : mapping of str to bytes
        Its files.
    paths : mapping of str to str
        The paths here, by those that were the worker's.

    Raises
    ------
    DipFastError
        If it cannot be written.
    """
    from dip_fast.runs.folder import Folder  # here, since it imports torch

    folder = Path(item.folder)
    kept = Folder(folder, lambda line: None)
    try:
        kept.lock()
        kept.check(fresh=True, overwrite=True)  # no link, and nothing of somebody else's
        for name in sorted(run, key=lambda name: (name == NAME, name)):
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise DipFastError(f"a worker sent a file {name!r}, which belongs into no folder of a run")
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / name, _with_paths(name, run[name], paths))
        for name in sent.run.keys() - run.keys():
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise DipFastError(f"cannot write {folder}: {error.strerror}") from error
    finally:
        kept.close()


def _with_paths(name: str, data: bytes, paths: Mapping[str, str]) -> bytes:
    """Put the paths that hold here into what a worker wrote with its own."""
    if name == NAME:
        return (json.dumps(_renamed(json.loads(data), paths), indent=2) + "\n").encode()
    if name == REPORT:
        for there, here in paths.items():
            data = data.replace(html.escape(there).encode(), html.escape(here).encode())
    return data


def _renamed(value: Any, paths: Mapping[str, str]) -> Any:
    """Rename the paths in a document, and what lies below them."""
    if isinstance(value, dict):
        return {key: _renamed(entry, paths) for key, entry in value.items()}
    if isinstance(value, list):
        return [_renamed(entry, paths) for entry in value]
    if isinstance(value, str):
        for there, here in paths.items():
            if value == there or value.startswith(f"{there}/"):
                return here + value.removeprefix(there)
    return value
