"""A stack of files, each of which holds one picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dip_fast.errors import UsageError
from dip_fast.names import counted
from dip_fast.pictures import formats
from dip_fast.pictures.decoded import Decoded
from dip_fast.pictures.reading import naming, read_content, result_suffix
from dip_fast.pictures.stacks import MOST, Stack, kind_of
from dip_fast.pictures.upright import extras_of, upright
from dip_fast.pictures.writing import encode_samples


class Sequence(Stack):
    """Files of one picture each; the results have their names.

    Parameters
    ----------
    paths : list of Path
        In their order.
    name : str
        What messages call all of them.
    keep_metadata : bool
        Whether the results have the EXIF data too.
    """

    def __init__(self, paths: list[Path], name: str, keep_metadata: bool) -> None:
        if len(paths) > MOST:
            raise UsageError(f"{name}: {len(paths)} pictures are more than {MOST}; restore a part of them at a time")
        self.paths, self.name, self.keep_metadata = paths, name, keep_metadata
        self.count = self.moments = len(paths)
        self.described = counted(len(paths), "file")
        self.notes = []
        first, format_ = self._read(0)
        suffix = result_suffix(format_, first.samples.dtype.name, first.samples.shape[2])
        self.kind = kind_of(name, first, suffix)
        written = formats.writer(suffix)
        assert written is not None, "results are written with this suffix"
        kept = [path.suffix.lower() in written.suffixes for path in paths]
        self._results = [
            path.name if is_kept else f"{path.stem}{suffix}" for path, is_kept in zip(paths, kept, strict=True)
        ]
        if not all(kept):
            self.notes.append(f"Results are {written.name} files: {self._results[0]} and so on.")
        twice = [found for found, number in Counter(self._results).items() if number > 1]
        if twice:
            raise UsageError(f"two of the pictures would have the result {twice[0]}; rename one of them")

    @property
    def results(self) -> list[str]:
        """One for each picture, with its name."""
        return self._results

    def label(self, number: int) -> str:
        """Name the file."""
        return self.paths[number].name

    def write(self, name: str, file: BinaryIO, samples_of: Callable[[int], np.ndarray]) -> None:
        """Write the result of one picture, with what goes along with that."""
        number = self._results.index(name)
        extras = extras_of(self.read(number), keep_metadata=self.keep_metadata)
        kind = replace(self.kind, name=self.label(number))
        file.write(encode_samples(samples_of(number), kind, extras, suffix=Path(name).suffix))

    def _decode(self, number: int) -> Decoded:
        return self._read(number)[0]

    def _read(self, number: int) -> tuple[Decoded, formats.Format]:
        path = self.paths[number]
        content = read_content(path)
        with naming(str(path)):
            format_, found, _ = upright(content, path.name, keep_metadata=self.keep_metadata)
        return found, format_
