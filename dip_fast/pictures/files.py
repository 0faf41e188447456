"""Files read only where they end, and written so that a crash never leaves a part of one."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dip_fast import large
from dip_fast.errors import Argument, DipFastError, UsageError


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes | None:
    """Read a regular file that is not longer than a limit.

    Parameters
    ----------
    path : str or os.PathLike
        A file, or a symbolic link to one.
    limit : int
        In bytes.

    Returns
    -------
    bytes or None
        None where the file is longer.

    Raises
    ------
    UsageError
        For a device, a pipe or a socket, which may have no end; none is waited for.
    OSError, ValueError
        As `open`.
    """
    with open(path, "rb", opener=at_once) as file:
        size = _size(file)
        # No more than was there when it was opened: what grows meanwhile is cut short, and its reader finds that.
        return file.read(size) if size <= limit else None


def read_apart(path: str | os.PathLike[str], limit: int) -> bytes | memoryview | None:
    """Read a file as `read_regular` does, but a large one into a file where large arrays are."""
    with open(path, "rb", opener=at_once) as file:
        size = _size(file)
        if size > limit:
            return None
        content = large.empty((size,), np.uint8)
        if not large.is_in_file(content):
            return file.read(size)
        done = sum(file.readinto(part.data) for part in large.parts(content))
        return content.data[:done]


def _size(file: BinaryIO) -> int:
    """Find the length of a regular file, and refuse any other."""
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode):
        raise UsageError("it is a device or a pipe, not a regular file; save its content as a file")
    return found.st_size


def at_once(path: str, flags: int) -> int:
    """Open a file without a wait, as the opener of `open`: to open a pipe would be to wait for its writer."""
    return os.open(path, flags | os.O_NONBLOCK)  # which means nothing to a regular file


def check_free(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Refuse, before any work is done, a name that is taken, or that no file can have or be written under.

    Parameters
    ----------
    path : str or os.PathLike
        Where a file is to be written.
    overwrite : bool
        Whether one that is there is to be replaced.

    Raises
    ------
    UsageError
    """
    name = os.fspath(path)
    target = Path(os.path.realpath(name)) if os.path.islink(name) else Path(name)  # noqa: PTH114  (never raises)
    folder = target.parent
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        if not folder.is_dir():
            raise UsageError("cannot write {}: there is no folder {}; make it first", name, folder) from None
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError("cannot write {}: {}; choose another name", name, reason) from error
    else:
        if not stat.S_ISREG(mode):
            raise UsageError("cannot write {}: it is no regular file; choose another name", name)
        if not overwrite:
            raise UsageError("{} exists; choose another name or give {}", name, Argument("overwrite", True))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError("cannot write {}: you may not write to the folder {}; choose another place", name, folder)


def check_suffix(path: str | os.PathLike[str], suffix: str, what: Argument | str) -> None:
    """Refuse a name that says another format than the file is going to have.

    Parameters
    ----------
    path : str or os.PathLike
        Where a file is to be written.
    suffix : str
        That of the only format it is written in.
    what : Argument or str
        What the file is, in words, or the argument that chose its format.

    Raises
    ------
    UsageError
    """
    if Path(path).suffix.lower() != suffix:
        raise UsageError("{}: {} is written as a file {}; give a name that ends so", os.fspath(path), what, suffix)


TEMPORARY = re.compile(r"\.dip-fast-[\w.-]*\.tmp")  # names of what is written aside, which a kill leaves behind


def write_atomically(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write a file so that a crash leaves either the old content or the new one, never a part.

    Parameters
    ----------
    path : str or os.PathLike
        A regular file or a free name in an existing folder; a symbolic link is followed.
    data : bytes or memoryview
        The whole content.

    Raises
    ------
    DipFastError
        Where the system refuses; nothing is left behind.
    """
    target = Path(os.path.realpath(path))
    try:
        folder = os.open(target.parent, os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        write_in(folder, target.name, data, path)
    finally:
        os.close(folder)


def write_in(folder: int, name: str, data: bytes | memoryview, path: str | os.PathLike[str]) -> None:
    """Write a file as `write_atomically` does, but into an open folder, wherever its name leads by now.

    A symbolic link of that name is replaced, and what it leads to stays as it is.

    Parameters
    ----------
    folder : int
        Descriptor of the folder.
    name : str
        A name in it.
    data : bytes or memoryview
        The whole content.
    path : str or os.PathLike
        What messages call the file.

    Raises
    ------
    DipFastError
        Where the system refuses; nothing is left behind.
    """
    with stream_in(folder, name, path) as file:
        for part in large.parts(np.frombuffer(data, np.uint8)):
            file.write(part.data)


@contextlib.contextmanager
def stream_in(folder: int, name: str, path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file that gets its name, as with `write_in`, once all of it is written; otherwise nothing is left of it.

    Raises
    ------
    DipFastError
        Where the system refuses.
    """
    # A short name of its own: a suffix on a name of the longest length allowed would be too long.
    temporary = f".dip-fast-{secrets.token_hex(8)}.tmp"
    try:
        with contextlib.suppress(FileNotFoundError):
            mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
                raise OSError("it is not a regular file")
        try:
            opened = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=folder)
            with open(path, "w+b", opener=lambda *_: opened) as file:  # which then has a name, as libraries expect
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            with contextlib.suppress(OSError):  # it has got its name, or the folder takes nothing any more
                os.unlink(temporary, dir_fd=folder)
    except OSError as error:
        raise _unwritable(path, error) from error
    # The new name lives in the folder.  Some network file systems have no fsync for folders; the file is there anyway.
    with contextlib.suppress(OSError):
        opened = os.open(".", os.O_RDONLY, dir_fd=folder)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _unwritable(path: str | os.PathLike[str], error: OSError) -> DipFastError:
    """Make the error of a file that the system refuses to write."""
    text = f"cannot write {os.fspath(path)}: {error.strerror or error}; choose another place or make room there"
    return DipFastError(one_line(text))


def one_line(text: str) -> str:
    """Return a text as one line that any terminal shows: no line breaks, no undecodable bytes of a file name."""
    return " ".join(text.split()).encode("utf-8", "replace").decode("utf-8")


def is_there(path: Path) -> bool:
    """Whether there is a file or a folder of this name; there is none of a name that no file can have."""
    with contextlib.suppress(OSError, ValueError):
        return path.exists()
    return False
