"""Programs as TorchScript and .pt2 files: written, and run.

Both are modules that are called with nothing and draw the picture.  They run on one thread: PyTorch's convolutions add
in another order on two.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from dip_fast.device.modes import fresh_state
from dip_fast.errors import DipFastError
from dip_fast.models import archives
from dip_fast.programs.drawing import Drawing
from dip_fast.programs.program import Program


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread and without gradients, whatever the caller's state, which is as it was afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with fresh_state(), torch.no_grad():
            yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _torchscript_kept() -> Iterator[None]:
    """Silence the warning that TorchScript is deprecated: it is one format among others here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is not supported", category=DeprecationWarning)
        yield


def write_torchscript(program: Program, facts: dict[str, Any], blobs: dict[str, str], fused_ops: bool = False) -> bytes:
    """Encode a program as a TorchScript file.

    Parameters
    ----------
    program : Program
    facts : dict
        JSON that goes into the file beside the schema version.
    blobs : dict of str to str
        Further texts by name.
    fused_ops : bool
        Call the project's operators, for users who load the library that CMake builds.
    """
    file = io.BytesIO()
    with _one_thread(), _torchscript_kept():
        module = Drawing(program, fused=fused_ops).eval()
        traced = torch.jit.trace(module, (), check_trace=False)
        torch.jit.save(traced, file, _extra_files=archives.texts(program.schema, facts, blobs))
    return file.getvalue()


def write_pt2(program: Program, facts: dict[str, Any], blobs: dict[str, str], fused_ops: bool = False) -> bytes:
    """Encode a program as a .pt2 file, as `write_torchscript` does, with standard operators alone."""
    assert not fused_ops, ".pt2 files have standard operators only"
    file = io.BytesIO()
    with _one_thread():
        exported = torch.export.export(Drawing(program).eval(), (), strict=False)
        torch.export.save(exported, file, extra_files=archives.texts(program.schema, facts, blobs))
    return file.getvalue()


def engine() -> str:
    """Name what draws a file when it is written."""
    return f"torch {torch.__version__}, cpu, one thread"


def load(format_: str, data: bytes | memoryview, *, fused: bool = False) -> Callable[[], torch.Tensor]:
    """Load a file as a function that draws.  Loading can run code: call it for trusted files alone."""
    if fused:
        import dip_fast.ops  # noqa: F401  (registers the operators)
    file = io.BytesIO(data)
    if format_ == "torchscript":
        with _torchscript_kept():
            module: Any = torch.jit.load(file, map_location="cpu")
        return lambda: module()
    drawing: Any = torch.export.load(file).module()
    return lambda: drawing()


def run(format_: str, data: bytes | memoryview, label: str, *, fused: bool = False) -> np.ndarray:
    """Draw the picture of a trusted file: ndarray ``(H, W, C)``, float32."""
    try:
        with _one_thread():
            output = load(format_, data, fused=fused)()
        return np.ascontiguousarray(output.numpy())
    except Exception as error:  # whatever loading or running a foreign program raises
        text = " ".join(str(error).split())[:200]
        raise DipFastError(f"PyTorch cannot draw {label}: {text}; get an intact copy, or see dip-fast info") from error
