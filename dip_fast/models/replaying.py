"""A model file in, its picture out: `replay` from Python, and `run` as ``dip-fast replay`` does.

The ONNX path imports neither torch nor the extension.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dip_fast import large
from dip_fast.errors import Argument, UsageError
from dip_fast.models.model import Model, located, open_model
from dip_fast.models.packing import digest
from dip_fast.models.verifying import difference_picture, verify
from dip_fast.pictures import write_atomically
from dip_fast.pictures.files import check_free, check_suffix


def replay(
    path: str | os.PathLike[str], *, provider: str = "cpu", threads: int | None = None, trust: bool = False
) -> np.ndarray:
    """Draw the picture of a model file.

    Parameters
    ----------
    path : str or os.PathLike
        A file that ``dip-fast run``, ``dip-fast export`` or `dip_fast.export` wrote, or a run's folder, which holds
        ``model.onnx``.
    provider : {"cpu", "cuda"}
        The execution provider of onnxruntime, for ONNX files.
    threads : int, optional
        CPU threads of onnxruntime, one a core by default; the bits do not depend on it.
    trust : bool
        Open TorchScript and .pt2 files, which can run code.

    Returns
    -------
    ndarray
        The picture's samples, ``(H, W, C)`` in its dtype, C 1 or 3 and one more where there is an alpha.

    Raises
    ------
    UsageError
        If the file is not one that this package wrote, or is not trusted, or there is no such provider.
    DipFastError
        If the engine fails.

    Examples
    --------
    >>> import dip_fast
    >>> dip_fast.replay("runs/photo/model.onnx").shape  # doctest: +SKIP
    (512, 512, 3)
    """
    model = open_model(path, trust=trust)
    samples = model.samples(model.draw(provider, threads))
    alpha = model.extras.alpha
    return samples if alpha is None else np.dstack([samples, alpha])


@dataclass(frozen=True)
class Request:
    """The options of one replay.

    Attributes
    ----------
    path : Path
        The model file, or a run's folder.
    out : Path, optional
        The picture's file: by default ``<name of the model>-replay.png`` (or ``.tif``) in the working folder, or none
        when it is only verified; ``-`` is standard output.
    verify : bool
        Whether the picture is compared with the one that was recorded when the file was written.
    provider : {"cpu", "cuda"}
        The execution provider of onnxruntime, for ONNX files.
    threads : int, optional
        The number of CPU threads of onnxruntime.
    trust : bool
        Whether formats that can run code are opened.
    difference : Path, optional
        The file, .png, of a picture of the differences.
    overwrite : bool
        Whether files that are there are replaced.
    """

    path: Path
    out: Path | None = None
    verify: bool = False
    provider: str = "cpu"
    threads: int | None = None
    trust: bool = False
    difference: Path | None = None
    overwrite: bool = False


def run(request: Request) -> tuple[dict[str, Any], bytes | None]:
    """Replay a model file as ``dip-fast replay`` does.

    Returns
    -------
    dict
        The summary that ``--json`` prints; ``verdict`` is None where nothing was verified.
    bytes or None
        The picture's file, where it goes to standard output.

    Raises
    ------
    UsageError, DipFastError
        As `replay`; a result in the way is not overwritten.
    """
    if request.difference is not None and not request.verify:
        raise UsageError("{} shows what {} compares; give both", Argument("difference"), Argument("verify", True))
    if request.difference is not None:
        check_suffix(request.difference, ".png", Argument("difference"))
    with large.arrays_in((request.out or Path("-")).parent):
        return _replayed(request)


def _replayed(request: Request) -> tuple[dict[str, Any], bytes | None]:
    model = open_model(request.path, trust=request.trust)
    out, to_stdout = request.out, request.out == Path("-")
    if out is None and not request.verify:
        out = Path(f"{located(request.path).stem}-replay{model.kind.suffix}")
    for path in (None if to_stdout else out, request.difference):
        if path is not None:
            check_free(path, overwrite=request.overwrite)
    output = model.draw(request.provider, request.threads)
    samples = model.samples(output)
    summary = _summary(request, model, output, samples) | {"result": None if out is None else str(out)}
    if request.verify:
        summary |= _verified(request, model, output, samples)
    if out is None:
        return summary, None
    if to_stdout:
        return summary, model.encode(samples)
    write_atomically(out, model.encode(samples, out.suffix))
    return summary, None


def _summary(request: Request, model: Model, output: np.ndarray, samples: np.ndarray) -> dict[str, Any]:
    """Return what ``--json`` prints of every replay."""
    return {
        "model": str(located(request.path)),
        "format": model.format,
        "provider": request.provider,
        "result": None,
        "width": model.kind.width,
        "height": model.kind.height,
        "channels": model.kind.channels,
        "dtype": model.kind.dtype,
        "sha256": {"float_output": digest(output), "pixels": digest(samples)},
        "verdict": None,
    }


def _verified(request: Request, model: Model, output: np.ndarray, samples: np.ndarray) -> dict[str, Any]:
    """Verify the picture, write the picture of the differences where one is wanted, and return the verdict."""
    found = verify(model, output)
    if request.difference is not None:
        write_atomically(request.difference, difference_picture(samples, model.pixels, model.kind))
    names = ("largest", "samples", "pixels", "fraction", "worst", "box")
    return {
        "verdict": found.verdict,
        "text": found.text,
        **{name: getattr(found.difference, name) for name in names},
    }
