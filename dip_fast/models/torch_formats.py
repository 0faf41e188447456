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

from dip_fast.errors import DipFastError
from dip_fast.models.replaying import METADATA_ENTRY
from dip_fast.programs.drawing import Drawing
from dip_fast.programs.program import Program


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread and without gradients, and leave things as they were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _torchscript_kept() -> Iterator[None]:
    """Silence the one warning that TorchScript is deprecated: it is one format among others here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is not supported", category=DeprecationWarning)
        yield


def save(format_: str, program: Program, texts: dict[str, str], *, fused: bool = False) -> bytes:
    """Write a program as a TorchScript or .pt2 file.

    Parameters
    ----------
    format_ : {"torchscript", "pt2"}
    program : Program
    texts : dict of str to str
        Extra files by name.
    fused : bool
        Call the project's operators, for users who load the library that CMake builds.
    """
    module = Drawing(program, fused=fused).eval()
    file = io.BytesIO()
    with _one_thread():
        if format_ == "torchscript":
            with _torchscript_kept():
                torch.jit.save(torch.jit.trace(module, (), check_trace=False), file, _extra_files=texts)
        else:
            torch.export.save(torch.export.export(module, (), strict=False), file, extra_files=texts)
    return file.getvalue()


def texts(document: str, blobs: dict[str, str]) -> dict[str, str]:
    """Extra files: the metadata and what goes with them."""
    return {METADATA_ENTRY: document, **{f"{METADATA_ENTRY}.{name}": text for name, text in blobs.items()}}


def load(format_: str, data: bytes, *, fused: bool = False) -> Callable[[], torch.Tensor]:
    """Load a file as a function that draws.  It can run code: only for files that are trusted."""
    if fused:
        import dip_fast.ops  # noqa: F401  (registers the operators)
    file = io.BytesIO(data)
    if format_ == "torchscript":
        with _torchscript_kept():
            module: Any = torch.jit.load(file, map_location="cpu")
        return lambda: module()
    drawing: Any = torch.export.load(file).module()
    return lambda: drawing()


def run(format_: str, data: bytes, label: str, *, fused: bool = False) -> np.ndarray:
    """Draw the picture of a trusted file: ndarray ``(H, W, C)``, float32."""
    try:
        draw = load(format_, data, fused=fused)
        with _one_thread():
            output = draw()
        return np.ascontiguousarray(output.numpy())
    except Exception as error:  # whatever loading or running a foreign program raises
        text = " ".join(str(error).split())[:200]
        raise DipFastError(f"PyTorch cannot draw {label}: {text}; get an intact copy, or see dip-fast info") from error
