"""Fitted networks as model files: from a result, or from a run's folder."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dip_fast.errors import Argument, UsageError
from dip_fast.models import fitted, formats
from dip_fast.models.formats import FORMATS, require
from dip_fast.models.model import located
from dip_fast.models.writing import write
from dip_fast.pictures import Picture
from dip_fast.pictures.files import check_free, check_suffix

if TYPE_CHECKING:
    from dip_fast.fitting.results import Result


def export(
    result: Result,
    path: str | os.PathLike[str],
    *,
    picture: Picture | None = None,
    fused_ops: bool = False,
    fp16: bool = False,
    license: str = "",
    overwrite: bool = False,
) -> Path:
    """Write the fitted network and its input as a file that draws the picture by itself.

    Parameters
    ----------
    result : Result
        The outcome of `dip_fast.fit`.
    path : str or os.PathLike
        The file, whose suffix names the format: ``.onnx``, ``.pt`` (TorchScript) or ``.pt2``.
    picture : Picture, optional
        The picture that `dip_fast.pictures.read_picture` returned: the model then draws in its range, and a replay has
        its bit depth, its alpha and its profile.  Without one, the model draws float values within the result's limits.
    fused_ops : bool
        Call the project's operators, in TorchScript, for users who load the library that CMake builds.
    fp16 : bool
        Store the weights in 16 bits; the file's metadata hold what it costs.
    license : str
        Your words on what may be done with the file, which go into the metadata unchanged.
    overwrite : bool
        Replace a file that is there.

    Returns
    -------
    Path

    Raises
    ------
    UsageError
        For another suffix, where a file is there already, or where onnx or onnxruntime is missing.
    ValueError
        If the picture has an alpha of another size than the result.
    DipFastError
        If the file draws another picture than the folded network; then nothing is kept.

    Notes
    -----
    The file is run and compared before it is kept.  Its picture is that of the result up to the rounding of the
    engines, within 1e-4 of the range.

    Examples
    --------
    >>> import dip_fast
    >>> dip_fast.export(result, "model.onnx")  # doctest: +SKIP
    >>> image = dip_fast.replay("model.onnx")  # doctest: +SKIP
    """
    require("onnx", "onnxruntime")
    target = Path(path)
    format_ = formats.by_suffix(target)
    check_free(target, overwrite=overwrite)
    kind, extras = None, None
    if picture is not None:
        height, width, channels = result.image.shape
        kind, extras = replace(picture.kind, height=height, width=width, channels=channels), picture.extras
        if picture.kind.size != kind.size:  # what was set aside has no place in a result of another size
            extras = replace(extras, aside=None)
    from dip_fast.device.modes import fresh_state  # here, since it loads torch

    with fresh_state():
        model = fitted.from_result(result, kind, extras)
        write(model, target, format_, fused_ops=fused_ops, fp16=fp16, license_=license)
    return target


def convert(
    source: Path,
    format_: str,
    out: Path | None = None,
    *,
    fp16: bool = False,
    fused_ops: bool = False,
    license_: str = "",
    overwrite: bool = False,
    inputs: str | None = None,
) -> dict[str, Any]:
    """Write the fitted network of a run in another format, as ``dip-fast export`` does.

    Parameters
    ----------
    source : Path
        A run's folder, or an ONNX file that this package wrote.
    format_ : {"onnx", "torchscript", "pt2"}
        A name of `dip_fast.models.formats.FORMATS`.
    out : Path, optional
        The file, with the format's suffix; beside the ONNX file by default: ``model``, ``-fused`` or ``-fp16`` where
        that is so, and the suffix.
    fp16, fused_ops, license_
        As in `dip_fast.models.writing.write`.
    overwrite : bool
        Replace a file that is there.
    inputs : {"z"}, optional
        Write an ONNX file whose network input must be fed, and the input's values beside it as ``.npy``.

    Returns
    -------
    dict
        As `dip_fast.models.writing.write`, and with `inputs` the files of the values.

    Raises
    ------
    UsageError
        If there is no model to export, a file is there already, or its name has another suffix than the format's.
    DipFastError
        As `dip_fast.models.writing.write`.
    """
    require("onnx", "onnxruntime")
    model = located(source)
    if out is None:
        marks = ("-fused" if fused_ops else "") + ("-fp16" if fp16 else "") + ("-inputs" if inputs else "")
        out = model.with_name(f"{model.stem}{marks}{FORMATS[format_].suffix}")
    check_suffix(out, FORMATS[format_].suffix, Argument("format", format_))
    check_free(out, overwrite=overwrite)
    read = fitted.from_file(model)
    options: dict[str, Any] = {"fused_ops": fused_ops, "fp16": fp16, "license_": license_}
    if inputs is None:
        return write(read, out, format_, **options)
    from dip_fast.models import fed

    if format_ != "onnx":
        chosen = Argument("inputs", inputs)
        raise UsageError("{} is for onnx files: {} files draw by themselves; leave it out", chosen, format_)
    files = fed.files_of_inputs(read, out)
    for file in files.values():
        check_free(file, overwrite=overwrite)
    return fed.write_fed(read, out, files, **options)
