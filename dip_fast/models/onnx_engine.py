"""ONNX files drawn by onnxruntime.  Imports neither torch nor the extension.

A file is parsed, compared with what this package writes (`onnx_format`), and only then is its program given to
onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from dip_fast.errors import Argument, DipFastError, UsageError
from dip_fast.models.formats import Contents, require
from dip_fast.models.packing import Buffer, Text
from dip_fast.programs import tiles
from dip_fast.programs.program import Program, part_name


def write(program: Program, facts: dict[str, Any], blobs: dict[str, Text], fused_ops: bool = False) -> Buffer:
    """Encode a program as an ONNX file of standard operators."""
    from dip_fast.models import onnx_format

    assert not fused_ops, "ONNX has standard operators only"
    return onnx_format.write(program, facts, blobs)


def read(data: Buffer) -> Contents:
    """Parse an ONNX file from anywhere; nothing of it is executed.

    Raises
    ------
    UsageError
        If it is damaged, foreign or of a later schema version, or a library is missing.
    """
    require("onnx", "onnxruntime")
    from dip_fast.models import onnx_format

    program, document, blobs = onnx_format.read(data)
    return Contents("onnx", data, program, document, blobs)


def run(contents: Contents, label: str, provider: str, threads: int | None) -> np.ndarray:
    """Draw the picture of a file that was read: float32 ``(H, W, C)``, in its range."""
    assert contents.program is not None
    # Not the file's own bytes: nothing that two parsers could read in two ways reaches the engine.
    return draw(contents.program, provider=provider, threads=threads, label=label)


def version() -> str:
    """Name onnxruntime with its version."""
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def engine() -> str:
    """Name what draws a file when it is written."""
    return f"{version()}, cpu"


def draw(
    program: Program, *, provider: str = "cpu", threads: int | None = None, label: str = "the model"
) -> np.ndarray:
    """Draw the picture of a program, in tiles where it is large: float32 ``(H, W, C)``, in its range.

    Parameters
    ----------
    program : Program
    provider : {"cpu", "cuda"}
        The execution provider of onnxruntime.
    threads : int, optional
        CPU threads, one a core by default; the bits do not depend on it.
    label : str
        The model's name in messages.

    Raises
    ------
    UsageError
        If onnxruntime has no such provider.
    DipFastError
        If it fails.
    """
    return tiles.draw(program, _drawer(provider, threads, label))


def draws(program: Program, picture: np.ndarray, *, threads: int | None = None, label: str = "the model") -> bool:
    """Whether a program draws the bits of a picture on the CPU; of a large one a few tiles are looked at.

    Parameters
    ----------
    program, threads, label
        As in `draw`.
    picture : ndarray
        float32 ``(H, W, C)``, in the picture's range.

    Raises
    ------
    DipFastError
        If onnxruntime fails.
    """
    return tiles.draws(program, _drawer("cpu", threads, label), picture)


def _drawer(provider: str, threads: int | None, label: str) -> Callable[[Program], np.ndarray]:
    """Make what draws programs that differ in the codes of their inputs alone, by one session."""
    from dip_fast.models import onnx_format

    session: Any = None

    def draw_part(part: Program) -> np.ndarray:
        nonlocal session
        if session is None:
            session = _session(onnx_format.write(part), provider, threads, label)
        drawn: np.ndarray = session({part_name(i): codes for i, (codes, _) in enumerate(part.inputs)})
        return drawn

    return draw_part


def run_file(
    data: bytes | memoryview,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    label: str = "the model",
    inputs: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """Draw the picture of an ONNX file that this package has written.

    Parameters
    ----------
    data : bytes
        The file's content.
    provider, threads, label
        As in `draw`.
    inputs : mapping of str to ndarray, optional
        What to feed, by name; a file without values of its own needs all of its inputs.

    Raises
    ------
    UsageError, DipFastError
        As `draw`.
    """
    return _session(data, provider, threads, label)(inputs or {})


def _session(
    data: bytes | memoryview, provider: str, threads: int | None, label: str
) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """Load an ONNX file; what is returned draws its picture from the codes that it is called with, or its own."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; they are raised as well
    options.intra_op_num_threads = threads or 0
    # The arena keeps twice the memory that a picture takes, and is no faster for one picture: 1.6 for 3.1 GB.
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # one picture; do not wait for more
    providers: list[Any] = ["CPUExecutionProvider"]
    if provider == "cuda":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise UsageError(
                "{}: this onnxruntime has no CUDA; pip install onnxruntime-gpu in place of onnxruntime",
                Argument("provider", provider),
            )
        providers = [("CUDAExecutionProvider", {"use_tf32": "0"}), *providers]
    with _failures(label):
        session = onnxruntime.InferenceSession(bytes(data), options, providers=providers)
    if provider == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        other = Argument("provider", "cpu")
        raise UsageError("{}: onnxruntime finds no usable GPU; use {}", Argument("provider", provider), other)

    def run(codes: Mapping[str, np.ndarray]) -> np.ndarray:
        with _failures(label):
            output: np.ndarray = session.run(None, dict(codes))[0]
        return output

    return run


@contextmanager
def _failures(label: str) -> Iterator[None]:
    """Name the model that onnxruntime fails with."""
    try:
        yield
    except Exception as error:  # onnxruntime has a kind for each of its status codes
        text = " ".join(str(error).split())[:200]
        raise DipFastError(f"onnxruntime cannot draw {label}: {text}; see dip-fast info") from error
