"""The formats of model files: what each is, and the functions that write, read and run it.

Importing this module loads no engine: what writes, reads or runs a format is imported when it is called.  A plugin adds
a format of its own with ``FORMATS.register("mine", Format(".mine", ...))``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dip_fast.errors import UsageError
from dip_fast.lazily import lazily
from dip_fast.models.packing import Text
from dip_fast.registry import Registry

if TYPE_CHECKING:
    from dip_fast.programs.program import Program

SCHEMA = 4  # the latest that is read; a file is of the first that can hold its program, `Program.schema`


@dataclass(frozen=True, eq=False)
class Contents:
    """What a model file holds, before its metadata are checked.

    Attributes
    ----------
    format : str
        A name of `FORMATS`.
    data : bytes or memoryview
        The file's content.
    program : Program, optional
        The folded network, where the format can be read back as one.
    metadata : dict
        The JSON in the file.
    blobs : dict of str to str or memoryview
        What goes along with the picture, packed, by name: ``pixels``, ``alpha``, ``icc_profile``, ``geometry``.
    """

    format: str
    data: bytes | memoryview
    program: Program | None
    metadata: dict[str, Any]
    blobs: Mapping[str, Text]


@dataclass(frozen=True)
class Format:
    """A format of model files.

    Attributes
    ----------
    suffix : str
        The suffix of its files.
    device : str
        The devices that draw it.
    replayed_by : str
        The programs that draw it.
    runs_code : bool
        Whether running such a file may run code of its writer's.  Then it is opened only for a user who trusts it.
    sniff : callable
        ``sniff(data) -> bool`` recognises a file by how it begins.
    write : callable
        ``write(program, facts, blobs, fused_ops) -> bytes`` encodes a program with its metadata and texts by name.
    read : callable
        ``read(data) -> Contents`` parses a file from anywhere and never runs code of it.  It raises a `UsageError` for
        what is damaged, foreign or of a later schema version.
    run : callable
        ``run(contents, label, provider, threads) -> ndarray`` draws the picture: float32 ``(H, W, C)``, in its range.
    engine : callable
        ``engine() -> str`` names what `run` draws with when a file is written, for its metadata.
    fused_ops : bool
        Whether a file can call this project's operators.
    """

    suffix: str
    device: str
    replayed_by: str
    runs_code: bool
    sniff: Callable[[bytes | memoryview], bool]
    write: Callable[[Program, dict[str, Any], dict[str, Text], bool], bytes | memoryview]
    read: Callable[[bytes | memoryview], Contents]
    run: Callable[[Contents, str, str, int | None], np.ndarray]
    engine: Callable[[], str]
    fused_ops: bool = False

    def facts(self) -> dict[str, Any]:
        """Return what ``dip-fast formats --json`` prints."""
        return {name: getattr(self, name) for name in ("suffix", "device", "replayed_by", "runs_code")}


def _is_archive(data: bytes | memoryview) -> bool:
    return data[:4] == b"PK\3\4"


FORMATS: Registry[Format] = Registry(
    "format",
    {
        "onnx": Format(
            ".onnx",
            "cpu, cuda",
            "onnxruntime alone, any ONNX engine, dip-fast replay",
            runs_code=False,
            sniff=lambda data: True,  # ONNX files begin with no mark of their own; this format is asked last
            write=lazily("dip_fast.models.onnx_engine:write"),
            read=lazily("dip_fast.models.onnx_engine:read"),
            run=lazily("dip_fast.models.onnx_engine:run"),
            engine=lazily("dip_fast.models.onnx_engine:engine"),
        ),
        "torchscript": Format(
            ".pt",
            "cpu",
            "libtorch (C++) or PyTorch, dip-fast replay --trust",
            runs_code=True,
            sniff=_is_archive,
            write=lazily("dip_fast.models.torch_formats:write_torchscript"),
            read=lazily("dip_fast.models.archives:read"),
            run=lazily("dip_fast.models.archives:run"),
            engine=lazily("dip_fast.models.torch_formats:engine"),
            fused_ops=True,
        ),
        "pt2": Format(
            ".pt2",
            "cpu",
            "PyTorch (torch.export.load), dip-fast replay --trust",
            runs_code=True,
            sniff=_is_archive,
            write=lazily("dip_fast.models.torch_formats:write_pt2"),
            read=lazily("dip_fast.models.archives:read"),
            run=lazily("dip_fast.models.archives:run"),
            engine=lazily("dip_fast.models.torch_formats:engine"),
        ),
    },
)


def recognised(data: bytes | memoryview) -> Format:
    """Return the format that reads a file's content; the last one registered is asked first."""
    return next(FORMATS[name] for name in reversed([*FORMATS]) if FORMATS[name].sniff(data))


def by_suffix(path: Path) -> str:
    """Return the name of the format that a file's suffix stands for.

    Raises
    ------
    UsageError
        If there is none.
    """
    for name, format_ in FORMATS.items():
        if path.suffix.lower() == format_.suffix:
            return name
    suffixes = ", ".join(f"{format_.suffix} ({name})" for name, format_ in FORMATS.items())
    raise UsageError(f'model files are not written as "{path.suffix}": name the file {suffixes}')


def require(*libraries: str) -> None:
    """Check that libraries are installed, before a long run begins that could not be ended without them.

    Raises
    ------
    UsageError
        If a library is missing.
    """
    for name in libraries:
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"{name} is missing, which drawing a model file needs; pip install {name}")
