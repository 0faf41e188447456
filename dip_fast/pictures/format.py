"""What a format of picture files is: how it is recognised, read and written, and the library that it may need."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dip_fast.errors import UsageError
from dip_fast.pictures.decoded import Decoded

if TYPE_CHECKING:
    from dip_fast.pictures.kind import Kind
    from dip_fast.pictures.picture import Extras


@dataclass(frozen=True)
class Library:
    """A library that reads a format and is installed on request.

    Attributes
    ----------
    module : str
        What it is imported as.
    extra : str
        The extra of this package that installs it.
    instead : str
        What to do without it.
    """

    module: str
    extra: str
    instead: str

    def require(self, name: str) -> None:
        """Refuse a picture of the format of this name where the library is missing.

        Raises
        ------
        UsageError
            With the line that installs it.
        """
        if importlib.util.find_spec(self.module) is None:
            raise UsageError(
                f'it is {name}, and the library for that is missing: pip install "dip-fast[{self.extra}]", '
                f"or {self.instead}"
            )


@dataclass(frozen=True)
class Format:
    """A format of picture files.

    Attributes
    ----------
    name : str
        The name that messages show.
    suffixes : tuple of str
        Suffixes of file names, in lower case with their dot, the usual one first.
    sniff : callable
        ``sniff(data) -> bool`` recognises a file by how it begins.
    read : callable
        ``read(data, keep_metadata) -> Decoded`` decodes a file.  It calls `check_size` before it decodes any pixel,
        raises a `UsageError` for what it refuses, and may raise anything for a damaged file.
    result_suffix : str
        The suffix of the file that a picture restored from this format is written to.
    write : callable, optional
        ``write(samples, kind, extras) -> bytes`` encodes a file, without loss but for JPEG.  None where results are
        never written in this format.
    dtypes : tuple of str
        The dtypes of the samples that `write` can encode.
    read_page : callable, optional
        ``read_page(data, keep_metadata, page) -> Decoded`` decodes one page, counted from 1; None where files have one.
    any_channels : bool
        Whether `write` can encode channels that are neither gray nor RGB.
    gray_only : bool
        Whether `write` can encode one channel alone.
    alpha : tuple of str
        The kinds of alpha that `write` can encode, in the words of `Decoded`.
    library : Library, optional
        The library that both take, where it comes with an extra of this package.
    measure : callable, optional
        ``measure(data) -> (height, width, channels)`` reads the size, without alpha, and decodes nothing.
    """

    name: str
    suffixes: tuple[str, ...]
    sniff: Callable[[bytes], bool]
    read: Callable[[bytes, bool], Decoded]
    result_suffix: str
    write: Callable[[np.ndarray, Kind, Extras], bytes] | None = None
    dtypes: tuple[str, ...] = ()
    read_page: Callable[[bytes, bool, int], Decoded] | None = None
    any_channels: bool = False
    gray_only: bool = False
    alpha: tuple[str, ...] = ("unassalpha", "assocalpha", "unspecified")
    library: Library | None = None
    measure: Callable[[bytes], tuple[int, int, int]] | None = None

    def holds_channels(self, channels: int, *, is_rgb: bool) -> bool:
        """Whether results of so many channels, without alpha, can be written."""
        if self.gray_only:
            return channels == 1
        return self.any_channels or channels == (3 if is_rgb else 1)

    def holds(self, kind: Kind) -> bool:
        """Whether results of a kind can be written."""
        return (
            self.write is not None
            and kind.dtype in self.dtypes
            and self.holds_channels(kind.channels, is_rgb=kind.is_rgb)
            and (kind.alpha is None or kind.alpha in self.alpha)
        )

    def require_library(self) -> None:
        """Refuse a picture of this format where its library is missing."""
        if self.library is not None:
            self.library.require(self.name)
