"""Fitted models: a folded network with the picture that it draws, ready to be written in any format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dip_fast import __version__, large
from dip_fast.errors import UsageError
from dip_fast.models import onnx_engine
from dip_fast.models.model import open_model
from dip_fast.models.verifying import require_alike
from dip_fast.pictures import Extras, Kind
from dip_fast.pictures.kind import IN_MODELS
from dip_fast.pictures.writing import check_alpha
from dip_fast.programs.blend import Blend
from dip_fast.programs.program import INPUT, InputPart, Layer, Program

if TYPE_CHECKING:
    from dip_fast.fitting.results import Result

_FACTS = ("options", "seed", "steps", "best_step", "stop_reason", "dip_fast", "torch")


@dataclass(frozen=True, eq=False)
class FittedModel:
    """A folded network, and the picture that it draws in onnxruntime.

    Attributes
    ----------
    program : Program
        The folded network with its input.
    output : ndarray
        The picture from onnxruntime: float32, ``(H, W, C)``, in the picture's range.
    kind : Kind
        The kind of the picture.
    extras : Extras
        The alpha and the ICC profile that go along with the picture; EXIF data never go into a model file.
    facts : dict
        What the metadata hold about the fit.
    reference : ndarray
        The picture from PyTorch, which equals ``output`` within the tolerance.
    engine : str
        The name of the engine that drew ``output``.
    """

    program: Program
    output: np.ndarray
    kind: Kind
    extras: Extras
    facts: dict[str, Any]
    reference: np.ndarray
    engine: str

    @property
    def samples(self) -> np.ndarray:
        """The picture, ``(H, W, C)`` in its dtype."""
        return self.kind.rounded(self.output)


def fold(result: Result, kind: Kind, extras: Extras | None = None) -> Program:
    """Fold a result's network into a program that draws its picture in the range of a kind, with what was set aside."""
    from dip_fast.programs import folding

    known = None
    if result.kept is not None:
        mask, image = result.kept
        known = mask, kind.to_samples(image)
    if extras is not None and extras.aside is not None:
        mask, samples = extras.aside
        known = (mask, samples) if known is None else (known[0] | mask, np.where(mask, samples, known[1]))
    if known is not None:
        mask, samples = known
        if mask.shape[2] > 1 and (mask == mask[..., :1]).all():
            mask = mask[..., :1].copy()
        # Where the network draws, the samples of the picture are left out: a user may have painted over them.
        samples = np.where(mask, samples, np.zeros((), samples.dtype))
        known = mask, samples if kind.dtype in IN_MODELS else samples.astype(np.float32)
    if kind.is_constant:
        return _constant(kind, known)
    program = folding.fold(result.network, result.z, kind.size, kind.value_range, known)
    return program if kind.channel_ranges is None else _with_ranges(program, kind)


def _constant(kind: Kind, known: tuple[np.ndarray, np.ndarray] | None) -> Program:
    """Make the program of a picture whose channels are constant, in which a network has nothing to draw."""
    (low, _), (least, most) = kind.limits, kind.value_range
    layer = Layer("conv", "constant", (INPUT,), {"stride": 1, "padding": 0, "padding_mode": "zeros"})
    weight = np.zeros((kind.channels, 1, 1, 1), np.float32)
    arrays = {"constant.weight": weight, "constant.bias": ((low - least) / (most - least)).astype(np.float32)}
    z = InputPart(np.zeros((1, 1, *kind.size), np.uint8), 1)
    program = Program((layer,), arrays, (z,), kind.size, kind.value_range, known)
    program.check()
    return program


def _with_ranges(program: Program, kind: Kind) -> Program:
    """Add a layer that takes each channel to its own part of the range."""
    low, high = kind.limits
    least, most = kind.value_range
    name = "channels"
    while any(layer.name == name for layer in program.layers):
        name += "_"
    layer = Layer("affine", name, (program.layers[-1].name,), {})
    scale, shift = ((values / (most - least)).astype(np.float32)[:, None, None] for values in (high - low, low - least))
    arrays = program.arrays | {f"{name}.weight": scale, f"{name}.bias": shift}
    ranged = replace(program, layers=(*program.layers, layer), arrays=arrays)
    ranged.check()
    return ranged


def from_result(
    result: Result,
    kind: Kind | None = None,
    extras: Extras | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    seed: int | None = None,
    threads: int | None = None,
) -> FittedModel:
    """Fold the network of a result and draw its picture with onnxruntime, as every replay will.

    Parameters
    ----------
    result : Result
        The outcome of a fit.
    kind : Kind, optional
        The kind of the result's picture; float values within the result's limits when left out.
    extras : Extras, optional
        The alpha and the ICC profile that go along with the picture.
    options : mapping, optional
        The options of the fit, for the metadata.
    seed : int, optional
        The seed of the fit, for the metadata.
    threads : int, optional
        CPU threads of onnxruntime; the bits do not depend on it.

    Raises
    ------
    ValueError
        If the image, the kind and the alpha differ in size.
    UsageError
        If the result has several pictures.
    DipFastError
        If onnxruntime fails, or draws another picture than PyTorch does.
    """
    import torch

    if result.images is not None:
        raise UsageError(
            f"the result holds {len(result.images)} pictures, and a model file draws one; dip-fast stack ... --export "
            "onnx writes one for each"
        )
    height, width, channels = result.image.shape
    if kind is None:
        kind = Kind("", width, height, channels, "float32", result.limits, suffix=".tif")
    elif (kind.height, kind.width, kind.channels) != result.image.shape:
        raise ValueError(f"kind must be of {result.image.shape} as the result is, got {(*kind.size, kind.channels)}")
    extras = Extras() if extras is None else replace(extras, exif=None)
    check_alpha(kind, extras.alpha)
    program = fold(result, kind, extras)
    facts = {
        "options": dict(options or {}),
        "seed": seed,
        "steps": result.steps,
        "best_step": result.best_step,
        "stop_reason": result.stop_reason,
        "dip_fast": __version__,
        "torch": torch.__version__,
    }
    reference = _reference(result, program, kind)
    output = onnx_engine.draw(program, threads=threads)
    require_alike(output, reference, kind, "onnxruntime")
    return FittedModel(program, output, kind, extras, facts, reference, onnx_engine.version())


def _reference(result: Result, program: Program, kind: Kind) -> np.ndarray:
    """Draw the program's picture with PyTorch, unless that has drawn it: a frozen network, by the same layers."""
    from dip_fast.programs import drawing, folding, tiles

    if kind.is_constant or not folding.is_frozen(result.network):
        return drawing.draw(program)
    low, high = (np.asarray(bound, np.float32) for bound in kind.limits)
    picture = large.empty(result.image.shape)
    for rows in large.bands(picture.shape):
        picture[rows] = tiles.finished(program, low + (high - low) * result.image[rows], (rows, slice(0, kind.width)))
    return picture


def blended(
    model: FittedModel, samples: np.ndarray | None, strength: float, *, threads: int | None = None
) -> FittedModel:
    """Blend the picture of a fitted model with another one, in the model itself.

    Parameters
    ----------
    model : FittedModel
        Where it is blended already, its own picture takes the place of that.
    samples : ndarray or None
        The other picture, ``(H, W, C)`` in the dtype of the model's; None where the strength is 1.
    strength : float
        From 0, the other picture, to 1, that of the model alone.
    threads : int, optional
        CPU threads of onnxruntime; the bits do not depend on it.

    Raises
    ------
    DipFastError
        As `from_result`.
    """
    from dip_fast.programs import drawing

    blend = None
    if strength < 1:
        assert samples is not None
        if model.program.known is not None:  # what comes from the picture as it is has no need of it twice
            samples = np.where(model.program.known[0], np.zeros((), samples.dtype), samples)
        blend = Blend(samples if model.kind.dtype in IN_MODELS else samples.astype(np.float32), strength)
    program = replace(model.program, blend=blend)
    program.check()
    reference, output = drawing.draw(program), onnx_engine.draw(program, threads=threads)
    require_alike(output, reference, model.kind, "onnxruntime")
    return replace(model, program=program, output=output, reference=reference, engine=onnx_engine.version())


def from_file(path: Path) -> FittedModel:
    """Read an ONNX file that this package wrote, to write it in other formats.

    Raises
    ------
    UsageError
        If it is not such a file, holds 16-bit weights, or lists the files of tiles.
    """
    from dip_fast.programs import drawing

    model = open_model(path)
    if model.program is None:
        raise UsageError(f"{path} lists files of tiles, and holds no network of its own; name one of them")
    if model.metadata.get("weights") != "float32":
        raise UsageError(f"{path} holds 16-bit weights; export from the file with all of them")
    facts = {name: model.metadata.get(name) for name in _FACTS}
    output, reference = model.draw(), drawing.draw(model.program)
    engine = str(model.metadata.get("drawn_by"))
    return FittedModel(model.program, output, model.kind, model.extras, facts, reference, engine)
