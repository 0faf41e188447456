"""The model of a picture in tiles: a list of ONNX files, one a tile, with what belongs to the whole.

The list is JSON beside these files.  It names each with its SHA-256, so that no other file is ever drawn, and holds
what the metadata of the model file of a whole picture hold.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dip_fast.errors import UsageError
from dip_fast.models import onnx_engine
from dip_fast.models.formats import Contents
from dip_fast.models.model import Model, checked, open_model
from dip_fast.models.packing import as_text, digest, joined, pack, parse_metadata
from dip_fast.models.verifying import tolerance
from dip_fast.models.writing import carried
from dip_fast.pictures import Extras, Kind, write_atomically
from dip_fast.pictures.tiling import Tiling

SCHEMA = 1
PIXELS = '"pixels": "'  # begins the samples in the file: no text within it has such quotes
DAMAGED = "its metadata are damaged; get an intact copy"


@dataclass(frozen=True, eq=False)
class TiledModel(Model):
    """A list of model files, read but not run.

    Attributes
    ----------
    folder : Path
        Where the files are.
    tiling : Tiling
        Of the picture.
    files : tuple of tuple of str
        Name and SHA-256 of the file of each tile.
    """

    folder: Path
    tiling: Tiling
    files: tuple[tuple[str, str], ...]

    def _drawn(self, provider: str, threads: int | None) -> np.ndarray:
        """Draw all tiles, and blend them."""
        return self.tiling.blend(self._parts(provider, threads))

    def _parts(self, provider: str, threads: int | None) -> Iterator[np.ndarray]:
        for box, (name, sha256) in zip(self.tiling.boxes, self.files, strict=True):
            part = open_model(self.folder / name)
            if digest(np.frombuffer(part.data, np.uint8)) != sha256:
                raise UsageError(
                    f"cannot replay {self.label}: {name} is not the file that it lists; get an intact copy"
                )
            kind = part.kind
            if (*kind.size, kind.channels, kind.value_range) != (*box[2:], self.kind.channels, self.kind.value_range):
                raise UsageError(f"cannot replay {self.label}: {name} draws no tile of the picture")
            yield part.draw(provider, threads)


def is_list(data: bytes | memoryview) -> bool:
    """Whether a file's content is JSON, which no model file of one picture is."""
    return data[:1] == b"{"


def read(path: Path, label: str, data: bytes | memoryview) -> TiledModel:
    """Parse a list.

    Raises
    ------
    UsageError
        If it is damaged, foreign or of a later version.
    """
    try:
        document = parse_metadata(str(data, "utf-8"))
        schema, blobs = document.pop("dip_fast_tiles"), document.pop("blobs")
        if schema != SCHEMA:
            raise UsageError(f"it is of schema {schema}, and this version reads {SCHEMA}; get a later version")
        tiling = Tiling(_spans(document["rows"]), _spans(document["columns"]))
        files = tuple((str(each["name"]), str(each["sha256"])) for each in document["files"])
        if len(files) != len(tiling.rows) * len(tiling.columns) or any(Path(name).name != name for name, _ in files):
            raise ValueError("files")
    except UsageError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UsageError(DAMAGED) from error
    found = checked(label, Contents("onnx", data, None, document, blobs))
    if tiling.size != found.kind.size:
        raise UsageError(DAMAGED)
    return TiledModel(label, found.contents, found.kind, found.extras, found.pixels, path.parent, tiling, files)


def _spans(pairs: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    """Check that tiles cover one side of a picture, each reaching up to the next one at least."""
    spans = tuple((first, last) for first, last in pairs)
    if not all(type(number) is int for span in spans for number in span):
        raise ValueError("spans")
    rising = all(a < c <= b < d for (a, b), (c, d) in itertools.pairwise(spans))
    if not spans or not rising or spans[0][0] != 0 or not 0 < spans[-1][1] < 2**31:
        raise ValueError("spans")
    return spans


def write(
    path: Path,
    tiling: Tiling,
    files: Sequence[tuple[str, str]],
    output: np.ndarray,
    *,
    kind: Kind,
    extras: Extras,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write a list.

    Parameters
    ----------
    path : Path
        Beside the model files.
    tiling : Tiling
        Of the result.
    files : sequence of tuple of str
        Name and SHA-256 of the model file of each tile.
    output : ndarray
        What they draw, blended: float32 ``(H, W, C)``, in the picture's range.
    kind, extras
        Of the result.
    facts : mapping
        What is known of the fits.

    Returns
    -------
    dict
        As `dip_fast.models.writing.write`.

    Raises
    ------
    DipFastError
        If it cannot be written.
    """
    samples = kind.rounded(output)
    hashes = [bytes.fromhex(sha256) for _, sha256 in files]
    document = {
        "dip_fast_tiles": SCHEMA,
        **facts,
        "picture": kind.facts(),
        "alpha_rule": "carried through untouched, never drawn",
        "tolerance": tolerance(kind),
        "drawn_by": onnx_engine.version(),
        "sha256": {
            "z": hashlib.sha256(b"".join(hashes)).hexdigest(),
            "float_output": digest(output),
            "pixels": digest(samples),
        },
        "rows": tiling.rows,
        "columns": tiling.columns,
        "files": [{"name": name, "sha256": sha256} for name, sha256 in files],
        "blobs": {"pixels": "", **{name: as_text(text) for name, text in carried(extras).items()}},
    }
    # The samples are as long as all else is short, and are written as they are.
    before, after = json.dumps(document, indent=1, allow_nan=False).split(f'{PIXELS}"')
    text = pack(samples)
    packed = text.encode() if isinstance(text, str) else text
    data = joined([f"{before}{PIXELS}".encode(), packed, f'"{after}\n'.encode()])
    write_atomically(path, data)
    return {
        "path": str(path),
        "format": "onnx",
        "bytes": len(data),
        "sha256": digest(np.frombuffer(data, np.uint8)),
        "pixels": digest(samples),
    }
