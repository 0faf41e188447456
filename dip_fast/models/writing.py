"""A fitted model as a file: encoded, run, compared with the network, and only then kept."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from dip_fast.errors import Argument, DipFastError, UsageError
from dip_fast.models import onnx_engine
from dip_fast.models.fitted import FittedModel
from dip_fast.models.formats import FORMATS, Contents
from dip_fast.models.model import LARGEST_FILE, open_model
from dip_fast.models.packing import Text, digest, pack
from dip_fast.models.verifying import are_same, require_alike, tolerance
from dip_fast.pictures import Extras, write_atomically


def write(
    fitted: FittedModel,
    path: Path,
    format_: str,
    *,
    fused_ops: bool = False,
    fp16: bool = False,
    license_: str = "",
    threads: int | None = None,
) -> dict[str, Any]:
    """Write one model file, run it, compare it, and keep it if it draws the network's picture.

    Parameters
    ----------
    fitted : FittedModel
        The folded network with its picture.
    path : Path
        The file; one that is there is replaced.
    format_ : {"onnx", "torchscript", "pt2"}
        A name of `dip_fast.models.formats.FORMATS`.
    fused_ops : bool
        Call the project's operators; TorchScript alone.
    fp16 : bool
        Store the weights in 16 bits.
    license_ : str
        The user's own words, for the metadata.
    threads : int, optional
        CPU threads of onnxruntime; the bits do not depend on it.

    Returns
    -------
    dict
        ``path``, ``format``, ``bytes`` and ``sha256`` of the file, ``pixels``, the SHA-256 of the samples that it
        draws, and with ``fp16`` its ``error``.

    Raises
    ------
    UsageError
        For options that exclude each other.
    DipFastError
        If the file cannot be written, or draws something else; then nothing is kept.
    """
    if fused_ops and not FORMATS[format_].fused_ops:
        calling = ", ".join(name for name, found in FORMATS.items() if found.fused_ops)
        raise UsageError(
            f"{{}} is for {calling} files: {format_} has standard operators only; leave it out",
            Argument("fused_ops", True),
        )
    stored = _halved(fitted) if fp16 else fitted
    facts = _facts(stored, format_, fused_ops=fused_ops, fp16=fp16, license_=license_)
    output = _run(stored, facts, str(path), threads, drawn=None if fp16 else fitted.output)
    samples = fitted.kind.rounded(output)
    facts["drawn_by"] = FORMATS[format_].engine()
    facts["sha256"] = {
        "z": digest(*(part.codes for part in stored.program.inputs)),
        "float_output": digest(output),
        "pixels": digest(samples),
    }
    if fp16:
        facts["fp16_error"] = _cost(output, fitted)
    blobs = {"pixels": pack(samples), **carried(fitted.extras)}
    data = FORMATS[format_].write(stored.program, facts, blobs, fused_ops)
    if len(data) > LARGEST_FILE:
        raise DipFastError(f"{path} would be larger than a model file may be ({len(data) / 1e9:.1f} GB)")
    _keep(path, data, lambda aside: _compare(aside, path, stored, output, facts, threads))
    written = {
        "path": str(path),
        "format": format_,
        "bytes": len(data),
        "sha256": digest(np.frombuffer(data, np.uint8)),
        "pixels": facts["sha256"]["pixels"],
    }
    return written | ({"error": facts["fp16_error"]} if fp16 else {})


def _halved(fitted: FittedModel) -> FittedModel:
    """Return a fitted model whose weights are stored in 16 bits, and what PyTorch draws with them."""
    from dip_fast.programs import drawing

    with np.errstate(over="ignore"):
        arrays = {name: array.astype(np.float16) for name, array in fitted.program.arrays.items()}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise DipFastError("some weights are too large for 16 bits; leave out {}", Argument("fp16", True))
    program = replace(fitted.program, arrays=arrays)
    return replace(fitted, program=program, reference=drawing.draw(program))


def _facts(fitted: FittedModel, format_: str, *, fused_ops: bool, fp16: bool, license_: str) -> dict[str, Any]:
    """Return the metadata that are known before the file is run, in the order in which they stand in it."""
    return {
        "format": format_,
        "fused_ops": fused_ops,
        "weights": "float16" if fp16 else "float32",
        **fitted.facts,
        "picture": fitted.kind.facts(),
        "alpha_rule": "carried through untouched, never drawn",
        "tolerance": tolerance(fitted.kind),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "license": license_,
    }


def _run(
    fitted: FittedModel, facts: dict[str, Any], label: str, threads: int | None, drawn: np.ndarray | None
) -> np.ndarray:
    """Return what the file draws, for its own hashes; its program does not depend on the metadata beside it.

    ONNX draws `drawn`, what onnxruntime drew from the same program before, where that is passed.
    """
    name = facts["format"]
    if name == "onnx" and drawn is not None:
        return drawn
    data = FORMATS[name].write(fitted.program, facts, {}, facts["fused_ops"])
    return FORMATS[name].run(Contents(name, data, fitted.program, facts, {}), label, "cpu", threads)


def _compare(
    aside: Path, path: Path, fitted: FittedModel, output: np.ndarray, facts: dict[str, Any], threads: int | None
) -> None:
    """Check that a written file draws the network's picture, with the bits that it names.

    Raises
    ------
    DipFastError
        If it does not.
    """
    model = open_model(aside, trust=True)
    if model.program is not None and output is fitted.output and are_same(model.program, fitted.program):
        del model  # it may be large.  It holds the program that has drawn `output`, which PyTorch's picture is like.
        same = onnx_engine.draws(fitted.program, output, threads=threads, label=str(path))
    else:
        again = model.draw(threads=threads)
        require_alike(again, fitted.reference, fitted.kind, f"{path} was not kept: the file")
        same = digest(again) == facts["sha256"]["float_output"]
    if not same:
        raise DipFastError(f"{path} was not kept: it draws other bits each time it is loaded; please report it")


def _keep(path: Path, data: bytes | memoryview, check: Callable[[Path], None]) -> None:
    """Write a file under another name, check it, and rename it if it passes; else nothing is left of it."""
    # Without the name, to which nothing can be added where it is of the longest length allowed.
    aside = path.with_name(f".dip-fast-{secrets.token_hex(8)}.tmp")
    try:
        try:
            write_atomically(aside, data)
        except DipFastError as error:
            raise DipFastError(str(error).replace(str(aside), str(path))) from error
        check(aside)
        try:
            aside.replace(path)
        except OSError as error:
            raise DipFastError(f"cannot write {path}: {error.strerror}; choose another place") from error
    finally:
        aside.unlink(missing_ok=True)


def carried(extras: Extras) -> dict[str, Text]:
    """Return what goes along with a picture as texts by name, as `Contents` holds them."""
    texts: dict[str, Text] = {} if extras.alpha is None else {"alpha": pack(extras.alpha)}
    if extras.icc_profile is not None:
        texts["icc_profile"] = base64.b64encode(extras.icc_profile).decode()
    if extras.geometry is not None:
        texts["geometry"] = json.dumps(extras.geometry.facts(), allow_nan=False)
    return texts


def _cost(output: np.ndarray, fitted: FittedModel) -> dict[str, float]:
    """Return what 16-bit weights cost: difference in parts of the range, PSNR in dB, part of changed samples."""
    low, high = fitted.kind.value_range
    off = (output.astype(np.float64) - fitted.output) / (high - low)
    return {
        "largest": float(np.abs(off).max()),
        "psnr": float(-10 * np.log10(max(np.mean(off**2), 1e-30))),
        "fraction": float((fitted.kind.rounded(output) != fitted.samples).mean()),
    }
