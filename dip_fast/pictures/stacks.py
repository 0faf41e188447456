"""Stacks: pictures of one size and kind, such as frames or planes, read one by one and written together."""

from __future__ import annotations

import abc
import glob
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dip_fast.errors import UsageError
from dip_fast.lazily import lazily
from dip_fast.pictures import formats
from dip_fast.pictures.decoded import Decoded
from dip_fast.pictures.files import is_there, one_line
from dip_fast.pictures.kind import Kind

# Formats whose files hold several pictures, with what makes a stack of a file: ``opener(path, keep_metadata)``.
OPENERS: dict[str, Callable[[Path, bool], Stack]] = {"tiff": lazily("dip_fast.pictures.tiff_stacks:TiffStack")}
_BESIDE = ("contact_sheet.png",)  # what lies in a folder of results and is none
MOST = 10_000  # pictures of a stack
MOST_GAPS = 5  # that are named
_NUMBER = re.compile(r"%(0\d+)?d")


class Stack(abc.ABC):
    """Pictures of one size and kind.

    Attributes
    ----------
    name : str
        What messages call it.
    count : int
        How many there are.
    moments : int
        How many of them follow each other in time; what lies between, such as planes of a volume, belongs together.
        1 where time is not among the axes.
    described : str
        The axes, for a user.
    notes : list of str
        What is not kept or is missing, a sentence each.
    kind : Kind
        Of each of them, but for the range, which is that of what is restored together.
    """

    name: str
    count: int
    moments: int
    described: str
    notes: list[str]
    kind: Kind

    @property
    @abc.abstractmethod
    def results(self) -> list[str]:
        """Names of the files that `write` fills."""

    @abc.abstractmethod
    def label(self, number: int) -> str:
        """Name a picture for a user."""

    @abc.abstractmethod
    def write(self, name: str, file: BinaryIO, samples_of: Callable[[int], np.ndarray]) -> None:
        """Write one of the `results`, from the samples ``(H, W, C)`` of each picture by its number."""

    @abc.abstractmethod
    def _decode(self, number: int) -> Decoded:
        """Decode a picture, counted from 0."""

    def close(self) -> None:  # noqa: B027  (most have nothing to close)
        """Close what is open."""

    def read(self, number: int) -> Decoded:
        """Decode a picture, counted from 0, and check that it is of one kind with the others.

        Raises
        ------
        UsageError
        """
        found = self._decode(number)
        facts, wanted = _facts(found), _facts_of(self.kind)
        if facts != wanted:
            raise UsageError(
                f"{one_line(self.label(number))} is {_in_words(facts)} and {one_line(self.label(0))} "
                f"{_in_words(wanted)}; give pictures of one size and kind"
            )
        return found


def kind_of(name: str, found: Decoded, suffix: str) -> Kind:
    """Describe what a stack's first picture is."""
    height, width, channels = found.samples.shape
    return Kind(
        name,
        width,
        height,
        channels,
        found.samples.dtype.name,
        (0.0, 1.0),
        alpha=None if found.alpha is None else found.alpha_kind,
        suffix=suffix,
        colours=found.colours,
    )


def open_stack(sources: Sequence[Path], *, keep_metadata: bool = False) -> Stack:
    """Open what a user names: a file of several pictures, a folder, a pattern such as ``frame_%04d.png``, or files.

    Raises
    ------
    UsageError
        If there are no such files, or they hold one picture.
    """
    from dip_fast.pictures import reading
    from dip_fast.pictures.sequences import Sequence as Files

    paths, name = _files(sources)
    if len(paths) > 1:
        stack = Files(paths, name, keep_metadata)
        stack.notes += _gaps(paths, name)
        return stack
    opened = paths[0].open("rb") if is_there(paths[0]) and paths[0].is_file() else _refused(paths[0])
    with reading.naming(str(paths[0])), opened as file:
        format_ = formats.recognised(file.read(2**12), str(paths[0]))
    for key, opener in OPENERS.items():
        if format_ is formats.FORMATS[key]:
            return opener(paths[0], keep_metadata)
    raise UsageError(f"{one_line(str(paths[0]))} holds one picture; name a folder or several, or take dip-fast run")


def _refused(path: Path) -> BinaryIO:
    what_to_do = "leave out the quotes, or name the folder" if glob.has_magic(path.name) else "check the path"
    raise UsageError(f"cannot read {one_line(str(path))}: there is no such file; {what_to_do}")


def _files(sources: Sequence[Path]) -> tuple[list[Path], str]:
    """List the files, in their order, and name them all."""
    if len(sources) > 1:
        return [*sources], f"{sources[0].name} and {len(sources) - 1} more"
    (source,) = sources
    if is_there(source) and source.is_dir():
        suffixes = {suffix for format_ in formats.FORMATS.values() for suffix in format_.suffixes}
        found = [path for path in source.iterdir() if path.suffix.lower() in suffixes and path.is_file()]
        found = [path for path in found if not path.name.startswith(".") and path.name not in _BESIDE]
    elif _NUMBER.search(source.name) and not is_there(source):
        found = _numbered(source)
    else:
        return [source], source.name
    if not found:
        raise UsageError(f"{one_line(str(source))} names no picture; check the path")
    return sorted(found, key=lambda path: _naturally(path.name)), source.name or str(source)


def _numbered(pattern: Path) -> list[Path]:
    """Find the files of a pattern as ffmpeg has it."""
    wanted = _wanted(pattern.name)
    if not is_there(pattern.parent):
        return []
    return [path for path in pattern.parent.iterdir() if wanted.fullmatch(path.name) and path.is_file()]


def _wanted(pattern: str) -> re.Pattern[str]:
    """Translate a pattern; the number is a group."""
    (place,) = list(_NUMBER.finditer(pattern))[:1]
    digits = rf"(\d{{{int(place[1])},}})" if place[1] else r"(\d+)"
    return re.compile(re.escape(pattern[: place.start()]) + digits + re.escape(pattern[place.end() :]))


def _gaps(paths: Sequence[Path], pattern: str) -> list[str]:
    """Note the numbers that are missing between the first and the last file of a pattern."""
    if not _NUMBER.search(pattern):
        return []
    matches = [_wanted(pattern).fullmatch(path.name) for path in paths]
    numbers = sorted(int(match[1]) for match in matches if match is not None)
    gaps = [(low + 1, high - 1) for low, high in itertools.pairwise(numbers) if high > low + 1]
    texts = [str(first) if first == last else f"{first} to {last}" for first, last in gaps]
    more = f" and {len(texts) - MOST_GAPS} more gaps" if len(texts) > MOST_GAPS else ""
    return [f"There is no file with the number {', '.join(texts[:MOST_GAPS])}{more}."] if texts else []


def _naturally(name: str) -> list[tuple[int, str]]:
    """Order 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _facts(found: Decoded) -> tuple[tuple[int, ...], str, str | None]:
    return found.samples.shape, found.samples.dtype.name, None if found.alpha is None else found.alpha_kind


def _facts_of(kind: Kind) -> tuple[tuple[int, ...], str, str | None]:
    return (*kind.size, kind.channels), kind.dtype, kind.alpha


def _in_words(facts: tuple[tuple[int, ...], str, str | None]) -> str:
    (height, width, channels), dtype, alpha = facts
    return f"{width}x{height}, {in_channels(channels, dtype)}{'' if alpha is None else ' and alpha'}"


def in_channels(channels: int, dtype: str) -> str:
    """Describe the samples of a picture, for a user."""
    return f"{channels} channel{'' if channels == 1 else 's'} of {dtype}"
