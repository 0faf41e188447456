"""A fitted network as a file that draws its picture anywhere: folded, written, run, compared, and only then kept."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from dip_fast import __version__
from dip_fast.errors import DipFastError, UsageError
from dip_fast.fitting.results import Result
from dip_fast.models import replaying
from dip_fast.models.formats import FORMATS, Kind, compare, digest, pack, tolerance
from dip_fast.pictures.picture import Picture, write_atomically
from dip_fast.pictures.samples import from_unit, to_dtype
from dip_fast.programs.program import Program


@dataclass(frozen=True, eq=False)
class Drawing:
    """What a fit comes to: the folded network, and the picture that it draws in onnxruntime.

    Attributes
    ----------
    program : Program
    output : ndarray
        float32, ``(H, W, C)``, in the picture's range.
    kind : Kind
    facts : dict
        What goes into the metadata beside the picture.
    blobs : dict of str to str
        Alpha and ICC profile, as they are carried.
    reference : ndarray
        The same as ``output`` from PyTorch, within the tolerance.
    engine : str
        What drew it.
    """

    program: Program
    output: np.ndarray
    kind: Kind
    facts: dict[str, Any]
    blobs: dict[str, str]
    reference: np.ndarray
    engine: str

    @property
    def samples(self) -> np.ndarray:
        """The picture, ``(H, W, C)`` in its dtype."""
        return to_dtype(self.output, np.dtype(self.kind.dtype))


def fold(result: Result, picture: Picture | None) -> tuple[Program, Kind, dict[str, str]]:
    """Fold a result's network, and say of which kind its picture is; without a picture it is float in [0, 1]."""
    from dip_fast.programs import folding

    height, width, channels = result.image.shape
    if picture is None:
        kind = Kind("", width, height, channels, "float32", (0.0, 1.0), suffix=".tif")
    else:
        kind = Kind(
            name=picture.name.encode("utf-8", "replace").decode(),
            width=width,
            height=height,
            channels=channels,
            dtype=picture.dtype.name,
            value_range=picture.value_range,
            alpha=None if picture.alpha is None else picture.alpha_kind,
            suffix=picture.suffix,
        )
    known = None
    if result.kept is not None:
        mask, image = result.kept
        # What is drawn over tells nothing of the picture but what the picture shows: unknown samples are left out.
        samples = np.where(mask, from_unit(image, kind.value_range, np.dtype(kind.dtype)), np.dtype(kind.dtype).type(0))
        known = mask, samples
    blobs = {} if picture is None else _carried(picture.alpha, picture.icc_profile)
    program = folding.fold(result.network, result.z, (height, width), kind.value_range, known)
    return program, kind, blobs


def _carried(alpha: np.ndarray | None, icc_profile: bytes | None) -> dict[str, str]:
    """Give what goes along with a picture as texts by name."""
    blobs = {} if alpha is None else {"alpha": pack(alpha)}
    return blobs if icc_profile is None else blobs | {"icc_profile": base64.b64encode(icc_profile).decode()}


def draw(
    result: Result,
    picture: Picture | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    seed: int | None = None,
    threads: int | None = None,
) -> Drawing:
    """Fold the network of a result and draw its picture with onnxruntime, as every replay will.

    Parameters
    ----------
    result : Result
    picture : Picture, optional
        What the result goes back into; without one it is a float picture in [0, 1].
    options : mapping, optional
        What was asked for, for the metadata.
    seed : int, optional
    threads : int, optional
        Of onnxruntime; the bits do not depend on it.

    Returns
    -------
    Drawing

    Raises
    ------
    DipFastError
        If onnxruntime fails, or draws another picture than PyTorch does.
    """
    import torch

    from dip_fast.models import onnx_format
    from dip_fast.programs import drawing as torch_program

    program, kind, blobs = fold(result, picture)
    facts = {
        "options": dict(options or {}),
        "seed": seed,
        "steps": result.steps,
        "best_step": result.best_step,
        "stop_reason": result.stop_reason,
        "dip_fast": __version__,
        "torch": torch.__version__,
    }
    reference = torch_program.draw(program)
    output = replaying.run_onnx(onnx_format.write(program), threads=threads)
    _require_alike(output, reference, kind, "onnxruntime")
    import onnxruntime

    return Drawing(program, output, kind, facts, blobs, reference, f"onnxruntime {onnxruntime.__version__}")


def _require_alike(output: np.ndarray, expected: np.ndarray, kind: Kind, name: str) -> None:
    """Refuse what is beyond the tolerance of two engines, in float and in samples.

    Raises
    ------
    DipFastError
        Saying by how much.
    """
    low, high = kind.value_range
    allowed = tolerance(kind)
    if output.shape != expected.shape or not np.isfinite(output).all():
        raise DipFastError(f"{name} drew no picture")
    largest = float(np.abs(output.astype(np.float64) - expected).max()) / (high - low)
    difference = compare(output, to_dtype(expected, np.dtype(kind.dtype)), kind, allowed)
    if largest > allowed["float"] or not difference.within:
        raise DipFastError(
            f"{name} drew another picture than PyTorch does: off by {largest:.2g} of the range "
            f"(allowed: {allowed['float']:g}); {difference.text()}"
        )


def write(
    drawing: Drawing,
    path: Path,
    format_: str,
    *,
    fused_ops: bool = False,
    fp16: bool = False,
    license_: str = "",
    threads: int | None = None,
) -> dict[str, Any]:
    """Write one model file, run it, compare it, and keep it if it draws what it should.

    Parameters
    ----------
    drawing : Drawing
    path : Path
    format_ : {"onnx", "torchscript", "pt2"}
    fused_ops : bool
        Call the project's operators; TorchScript alone.
    fp16 : bool
        Store the weights in 16 bits.
    license_ : str
        The user's own words.
    threads : int, optional
        Of onnxruntime.

    Returns
    -------
    dict
        ``path``, ``format``, ``bytes``, ``sha256`` of the pixels, and with ``fp16`` its ``error``.

    Raises
    ------
    UsageError
        For options that exclude each other.
    DipFastError
        If the file cannot be written, or draws something else; then nothing is kept.
    """
    import onnxruntime
    import torch

    from dip_fast.models import onnx_format, torch_formats
    from dip_fast.programs import drawing as torch_program

    if fused_ops and format_ != "torchscript":
        raise UsageError(f"--fused-ops is for torchscript files: {format_} has standard operators only; leave it out")
    program, kind = drawing.program, drawing.kind
    if fp16:
        with np.errstate(over="ignore"):
            arrays = {name: array.astype(np.float16) for name, array in program.arrays.items()}
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise DipFastError("some weights are too large for 16 bits; leave out --fp16")
        program = replace(program, arrays=arrays)
    expected = torch_program.draw(program) if fp16 else drawing.reference

    facts: dict[str, Any] = {
        "format": format_,
        "fused_ops": fused_ops,
        "weights": "float16" if fp16 else "float32",
        **drawing.facts,
        "picture": kind.facts(),
        "alpha_rule": "carried through untouched, never drawn",
        "tolerance": tolerance(kind),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "license": license_,
    }

    def encode(facts: dict[str, Any], blobs: dict[str, str]) -> bytes:
        if format_ == "onnx":
            return onnx_format.write(program, facts, blobs)
        document = json.dumps({"schema": program.schema, **facts}, allow_nan=False)
        return torch_formats.save(format_, program, torch_formats.texts(document, blobs), fused=fused_ops)

    # What the file draws, for its own hashes; its program does not change by what stands beside it.
    if format_ == "onnx":
        output = replaying.run_onnx(encode(facts, {}), threads=threads) if fp16 else drawing.output
        facts["drawn_by"] = f"onnxruntime {onnxruntime.__version__}, cpu"
    else:
        output = torch_formats.run(format_, encode(facts, {}), str(path), fused=fused_ops)
        facts["drawn_by"] = f"torch {torch.__version__}, cpu, one thread"
    samples = to_dtype(output, np.dtype(kind.dtype))
    facts["sha256"] = {
        "z": digest(*(part.codes for part in program.inputs)),
        "float_output": digest(output),
        "pixels": digest(samples),
    }
    if fp16:
        facts["fp16_error"] = _error(output, drawing)
    data = encode(facts, {"pixels": pack(samples), **drawing.blobs})
    if len(data) > replaying.LARGEST_FILE:
        raise DipFastError(f"{path} would be larger than a model file may be ({len(data) / 1e9:.1f} GB)")
    aside = path.with_name(f".dip-fast-{os.getpid()}-{path.name[-100:]}.tmp")
    try:
        try:
            write_atomically(aside, data)
        except DipFastError as error:
            raise DipFastError(str(error).replace(str(aside), str(path))) from error
        model = replaying.open_model(aside, trust=True)
        again = model.draw(threads=threads)
        _require_alike(again, expected, kind, f"{path} was not kept: the file")
        if digest(again) != facts["sha256"]["float_output"]:
            raise DipFastError(f"{path} was not kept: it draws other bits each time it is loaded; please report it")
        try:
            aside.replace(path)
        except OSError as error:
            raise DipFastError(f"cannot write {path}: {error.strerror}; choose another place") from error
    finally:
        aside.unlink(missing_ok=True)
    facts_of_it = {"path": str(path), "format": format_, "bytes": len(data), "sha256": facts["sha256"]["pixels"]}
    return facts_of_it | ({"error": facts["fp16_error"]} if fp16 else {})


def _error(output: np.ndarray, drawing: Drawing) -> dict[str, float]:
    """Say what 16-bit weights cost: largest difference in parts of the range, PSNR in dB, values that changed."""
    low, high = drawing.kind.value_range
    off = (output.astype(np.float64) - drawing.output) / (high - low)
    dtype = np.dtype(drawing.kind.dtype)
    return {
        "largest": float(np.abs(off).max()),
        "psnr": float(-10 * np.log10(max(np.mean(off**2), 1e-30))),
        "fraction": float((to_dtype(output, dtype) != drawing.samples).mean()),
    }


def read(path: Path) -> Drawing:
    """Read an ONNX file of ours as something to write in other formats.

    Raises
    ------
    UsageError
        If it is none.
    """
    from dip_fast.programs import drawing as torch_program

    model = replaying.open_model(path)
    assert model.program is not None
    if model.metadata.get("weights") != "float32":
        raise UsageError(f"{path} holds 16-bit weights; export from the file with all of them")
    names = ("options", "seed", "steps", "best_step", "stop_reason", "dip_fast", "torch")
    facts = {name: model.metadata.get(name) for name in names}
    kept = _carried(model.alpha, model.icc_profile)
    output, reference = model.draw(), torch_program.draw(model.program)
    return Drawing(model.program, output, model.kind, facts, kept, reference, str(model.metadata.get("drawn_by")))


def convert(
    source: Path,
    format_: str,
    out: Path | None = None,
    *,
    fp16: bool = False,
    fused_ops: bool = False,
    license_: str = "",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the fitted network of a run in another format, as ``dip-fast export`` does.

    Parameters
    ----------
    source : Path
        A run's folder, or an ONNX file of ours.
    format_ : {"onnx", "torchscript", "pt2"}
    out : Path, optional
        Beside the ONNX file by default: ``model``, ``-fused`` or ``-fp16`` where that is so, and the suffix.
    fp16, fused_ops, license_
        As in `write`.
    overwrite : bool

    Returns
    -------
    dict
        As `write`.

    Raises
    ------
    UsageError
        If there is no model to export, or a file in the way.
    DipFastError
        As `write`.
    """
    replaying.require("onnx", "onnxruntime")
    model = source / "model.onnx" if source.is_dir() else source
    if source.is_dir() and not model.exists():
        if not (source / "run.json").exists():
            raise UsageError(f"{source} is not a run's folder; name one, or a model.onnx")
        raise UsageError(f"{source} holds no model.onnx; make it with the run's own command and --resume --export onnx")
    if out is None:
        marks = ("-fused" if fused_ops else "") + ("-fp16" if fp16 else "")
        out = model.with_name(f"{model.stem}{marks}{FORMATS[format_].suffix}")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists; name another file with -o, or give --overwrite")
    return write(read(model), out, format_, fused_ops=fused_ops, fp16=fp16, license_=license_)


def format_of(path: Path) -> str:
    """Name of the format that a suffix stands for.

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


def export(
    result: Result,
    path: str | os.PathLike[str],
    *,
    picture: Picture | None = None,
    fused_ops: bool = False,
    fp16: bool = False,
    license: str = "",
) -> Path:
    """Write the fitted network and its input as a file that draws the picture by itself.

    Parameters
    ----------
    result : Result
        Of `dip_fast.fit`.
    path : str or os.PathLike
        Where to; the suffix says the format: ``.onnx``, ``.pt`` (TorchScript) or ``.pt2``.  A file there is replaced.
    picture : Picture, optional
        As `dip_fast.pictures.read_picture` gives it: the model then draws in its range, and a replay has its bit
        depth, its alpha and its profile.  Without one, the model draws float values in [0, 1].
    fused_ops : bool
        Call the project's operators, in TorchScript, for users who load the library that CMake builds.
    fp16 : bool
        Store the weights in 16 bits; the file's metadata say what it costs.
    license : str
        Goes into the metadata as it is.

    Returns
    -------
    Path

    Raises
    ------
    UsageError
        For another suffix, or where onnx or onnxruntime is missing.
    DipFastError
        If the file draws another picture than the folded network; then nothing is kept.

    Notes
    -----
    The file was run and compared before it is kept.  Its picture is ``result.image`` up to the rounding of the
    engines, within 2e-5 of the range.

    Examples
    --------
    >>> import dip_fast
    >>> dip_fast.export(result, "model.onnx")  # doctest: +SKIP
    >>> image = dip_fast.replay("model.onnx")  # doctest: +SKIP
    """
    replaying.require("onnx", "onnxruntime")
    target = Path(path)
    format_ = format_of(target)
    drawing = draw(result, picture)
    write(drawing, target, format_, fused_ops=fused_ops, fp16=fp16, license_=license)
    return target
