"""Model files, read and checked but not run.  The ONNX path imports neither torch nor the extension.

TorchScript and .pt2 files can run code when they are loaded, so they are opened only for a user who trusts where they
come from.
"""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dip_fast.device import memory
from dip_fast.errors import Argument, UsageError
from dip_fast.models import formats
from dip_fast.models.formats import FORMATS, Contents
from dip_fast.models.packing import as_text, parse_metadata, unpack
from dip_fast.models.verifying import is_finite
from dip_fast.pictures import Extras, Kind, encode_samples
from dip_fast.pictures.files import read_apart
from dip_fast.pictures.geometry import Geometry
from dip_fast.pictures.kind import IN_MODELS
from dip_fast.programs import tiles
from dip_fast.programs.program import Program

IN_FOLDER = "model.onnx"  # in the folder of a run
LIST = "model.json"  # in that of a picture in tiles, see `tiled`
LARGEST_FILE = 2**31 - 1  # of protobuf; model files are kept below it when they are written


@dataclass(frozen=True, eq=False)
class Model:
    """A model file, read but not run.

    Attributes
    ----------
    label : str
        The model's name in messages.
    contents : Contents
        What the file holds.
    kind : Kind
        The kind of its picture.
    extras : Extras
        The picture's alpha and ICC profile.
    pixels : ndarray
        The samples that were drawn at export: what `verify` compares with.
    """

    label: str
    contents: Contents
    kind: Kind
    extras: Extras
    pixels: np.ndarray

    @property
    def format(self) -> str:
        """The format's name, a key of `FORMATS`."""
        return self.contents.format

    @property
    def data(self) -> bytes | memoryview:
        """The file's content."""
        return self.contents.data

    @property
    def program(self) -> Program | None:
        """The folded network, where the format can be read back as one: ONNX."""
        return self.contents.program

    @property
    def metadata(self) -> dict[str, Any]:
        """The JSON in the file."""
        return self.contents.metadata

    def draw(self, provider: str = "cpu", threads: int | None = None) -> np.ndarray:
        """Run the model: float32 ``(H, W, C)``, in the picture's range.

        Raises
        ------
        DipFastError
            If the engine fails.
        UsageError
            If there is no such provider or not enough memory, or what it draws is no picture.
        """
        if self.program is not None:
            needed, available = tiles.needed_bytes(self.program), memory.available_bytes()
            if needed > available:
                raise UsageError(
                    f"cannot replay {self.label}: drawing it takes {needed / 1e9:.3g} GB of memory and "
                    f"{available / 1e9:.3g} GB are free; free some, or use a larger machine"
                )
        output = self._drawn(provider, threads)
        if output.shape != (*self.kind.size, self.kind.channels) or output.dtype != np.float32:
            raise UsageError(f"cannot replay {self.label}: it draws no picture of the size that it names")
        if not is_finite(output):
            raise UsageError(f"cannot replay {self.label}: it draws NaN or infinite values; get an intact copy")
        return output

    def _drawn(self, provider: str, threads: int | None) -> np.ndarray:
        """Run the model as its format does."""
        return FORMATS[self.format].run(self.contents, self.label, provider, threads)

    def samples(self, output: np.ndarray) -> np.ndarray:
        """Turn what was drawn into the picture's samples, ``(H, W, C)``."""
        return self.kind.rounded(output)

    def encode(self, samples: np.ndarray, suffix: str | None = None) -> bytes:
        """Encode samples as a file of the picture's kind, with its alpha and its profile."""
        return encode_samples(samples, self.kind, self.extras, suffix=suffix)


def open_model(path: str | os.PathLike[str], *, trust: bool = False) -> Model:
    """Read a model file of any format.

    Parameters
    ----------
    path : str or os.PathLike
        The file, or a run's folder, whose ONNX file, or list of such files, is read.
    trust : bool
        Open formats that can run code.

    Raises
    ------
    UsageError
        In one line, if the file is missing, damaged, foreign, of a later schema version, or not trusted.
    """
    from dip_fast.models import tiled  # here, since it is made of such models

    path = located(path)
    label = str(path).encode("utf-8", "replace").decode()
    try:
        data = _file_content(path)
        if tiled.is_list(data):
            return tiled.read(path, label, data)
        return checked(label, _read(data, trust))
    except UsageError as error:
        # The message as it is, with the arguments that it names.
        template, parts = (error.template, error.parts) if error.parts else ("{}", (str(error),))
        raise UsageError(f"cannot replay {{}}: {template}", label, *parts) from error


def located(path: str | os.PathLike[str]) -> Path:
    """Find the model file that a path stands for: the file itself, or the ONNX file in a run's folder.

    Raises
    ------
    UsageError
        For a folder without one.
    """
    path = Path(path)
    if not os.path.isdir(path):  # noqa: PTH112  (Path.is_dir raises for a name that is too long)
        return path
    for name in (IN_FOLDER, LIST):
        if (path / name).exists():
            return path / name
    if not (path / "run.json").exists():
        raise UsageError(f"{path} is not a run's folder; name one, or a {IN_FOLDER}")
    if any(path.glob("model_*.onnx")):
        raise UsageError(
            f"{path} holds a model file for each picture of a stack; name one, as {path / 'model_0001.onnx'}"
        )
    # A command to type, and so in its own spelling.
    raise UsageError(
        f"{path} holds no {IN_FOLDER}; make it with dip-fast run PICTURE ... --resume --export onnx, "
        "but for a stack: no file draws all of it"
    )


def _file_content(path: Path) -> bytes | memoryview:
    try:
        data = read_apart(path, LARGEST_FILE)
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        raise UsageError(f"{getattr(error, 'strerror', None) or error}; check the path") from error
    if data is None:
        raise UsageError("it is larger than any model file; get the right one")
    return data


def _read(data: bytes | memoryview, trust: bool) -> Contents:
    """Parse a file, and refuse it if it could run code and is not trusted."""
    format_ = formats.recognised(data)
    contents = format_.read(data)
    if (format_.runs_code or FORMATS[contents.format].runs_code) and not trust:
        raise UsageError(
            f"it is a {contents.format} file, and loading such a file can run any code that its writer put in; "
            "give {} if you know where it comes from, or use the ONNX file, which cannot",
            Argument("trust", True),
        )
    return contents


def checked(label: str, contents: Contents) -> Model:
    """Make a model of what a file holds, whose metadata are checked against one another and against the program.

    Raises
    ------
    UsageError
        If they are damaged.
    """
    program, metadata, blobs = contents.program, contents.metadata, contents.blobs
    try:
        kind = Kind.of(metadata["picture"])
        if program is not None:
            _check_program(program, kind)
        _check_metadata(metadata)
        pixels = unpack(blobs["pixels"], (*kind.size, kind.channels), kind.dtype)
        if not np.isfinite(pixels).all():
            raise ValueError("the pixels are not finite")
        alpha = None if kind.alpha is None else unpack(blobs["alpha"], kind.size, kind.dtype)
        profile = base64.b64decode(blobs["icc_profile"], validate=True) if "icc_profile" in blobs else None
        geometry = Geometry.of(parse_metadata(as_text(blobs["geometry"]))) if "geometry" in blobs else None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, binascii.Error, MemoryError) as error:
        raise UsageError("its metadata are damaged; get an intact copy") from error
    return Model(label, contents, kind, Extras(alpha, profile, geometry=geometry), pixels)


def _check_program(program: Program, kind: Kind) -> None:
    """Check that a program draws a picture of a kind."""
    if program.size != kind.size:
        raise ValueError("the picture is of another size")
    if (program.channels, program.value_range) != (kind.channels, kind.value_range):
        raise ValueError("the picture has other channels, or another range")
    held = [] if program.known is None else [program.known[1]]
    held += [] if program.blend is None else [program.blend.samples]
    if any(samples.dtype != (kind.dtype if kind.dtype in IN_MODELS else "float32") for samples in held):
        raise ValueError("the known pixels, or those it is blended with, are of another kind")


def _check_metadata(metadata: dict[str, Any]) -> None:
    """Check what `verify` relies on."""
    hashes, allowed = metadata["sha256"], metadata["tolerance"]
    if not all(isinstance(hashes[name], str) and len(hashes[name]) == 64 for name in ("z", "float_output", "pixels")):
        raise ValueError("a hash is not one")
    numbers = [allowed["float"], allowed["fraction"], *([] if allowed["levels"] is None else [allowed["levels"]])]
    if not all(isinstance(number, int | float) and 0 <= number < 2**20 for number in numbers):
        raise ValueError("a tolerance is not one")
