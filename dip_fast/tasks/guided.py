"""Guided restoration: another picture of the same scene has the edges that this one lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dip_fast.errors import Argument, UsageError
from dip_fast.presets import Recipe
from dip_fast.tasks.task import Baseline, Data, Input, Option, Task, as_target

if TYPE_CHECKING:
    import numpy as np

    from dip_fast.fitting import Degradation
    from dip_fast.networks import NetworkInput
    from dip_fast.pictures import Kind

MAX_SCALE = 16
# Found with quick at 96x96, a picture in warm light with noise of sigma 25 and one in white light as its guide: .02
# gives 32.0 dB, .05 33.5 and .1 33.6; 1000 steps give what 600 do, and noise in the input of 1/30 gives .1 dB less.
# Enlarged 4 times, the former reaches 31.3 dB at .05.  The paper has 601 steps at .1.
LEARNING_RATE, STEPS = 0.05, 600
GUIDE = "Another picture of the same scene, in place: one with flash, or the colours that belong to a depth."
KERNEL = "How the picture was reduced, as with superres; with a scale of 1, the blur that it has."


class Guided(Task):
    """Restore or enlarge a picture, drawn from another one: ``A(x) = (k * x)[::s, ::s]`` with the guide as z."""

    name = "guided"
    summary = "restore or enlarge a picture with the edges of another one"
    doing = "restoring"
    inputs = (Input("guide", GUIDE, in_place=True), Input("kernel", KERNEL, required=False))
    options = (Option("scale", int, 1, f"How many times larger the guide is: from 1 to {MAX_SCALE}."),)
    has_tiles = True

    def complete(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Fill in the defaults, and check the scale."""
        completed = super().complete(options)
        if not 1 <= completed["scale"] <= MAX_SCALE:
            raise UsageError("{} must be from 1 to {}", Argument("scale", completed["scale"]), MAX_SCALE)
        return completed

    def adapted(self, recipe: Recipe, options: Mapping[str, Any]) -> Recipe:
        """Fit faster and without noise, since the edges are in the input."""
        if recipe.masking is not None:
            return recipe
        changes: dict[str, Any] = {"perturbation": 0.0, "iterations": min(recipe.options.iterations, STEPS)}
        if recipe.network == "skip":
            changes["learning_rate"] = LEARNING_RATE
        if options["scale"] > 1:  # a reduced picture has little noise
            changes["stop"] = "never"
        return recipe.with_(**changes)

    def read(self, name: str, source: Path | str | np.ndarray, data: Data, options: Mapping[str, Any]) -> np.ndarray:
        """Read the guide, float32 ``(H, W, C)`` in [0, 1], or make the kernel."""
        from dip_fast.networks.network_input import require_contrast
        from dip_fast.tasks import kernels

        scale = options["scale"]
        if name == "kernel":
            kernel = kernels.of_reduction(source, scale) if scale > 1 else kernels.blur(source)
            kernels.check_size(kernel, data.image, scale)
            return kernel
        guide = _of_array(source) if hasattr(source, "shape") else _of_file(source)
        _check_size(guide.shape[:2], data.image.shape[:2], scale)
        require_contrast("guide", as_target(guide))
        return guide

    def network_input(self, data: Data, options: Mapping[str, Any]) -> NetworkInput | None:
        """Take the guide; a tile in which that has no contrast is drawn from a random input."""
        from dip_fast.networks.network_input import of_image

        guide = data.inputs["guide"]
        return None if data.tile is not None and (guide == guide[:1, :1]).all() else of_image(as_target(guide))

    def has_rounds(self, recipe: Recipe, options: Mapping[str, Any]) -> bool:
        """Whether rounds may follow: after an enlargement; the options do not say whether a blur is undone."""
        return options["scale"] > 1

    def degradation(self, data: Data, options: Mapping[str, Any]) -> Degradation:
        """Compare the result, reduced to its size, with the picture."""
        import torch

        from dip_fast.fitting import Convolution, Identity
        from dip_fast.tasks import kernels

        target, kernel, scale = as_target(data.image), data.inputs.get("kernel"), options["scale"]
        if kernel is None and scale == 1:
            return Identity(target)
        kernel = kernels.of_reduction("bicubic", scale) if kernel is None else kernel
        return Convolution(target, torch.from_numpy(kernel), scale)

    def result_kind(self, kind: Kind, options: Mapping[str, Any]) -> Kind:
        """Describe the result: of the guide's size."""
        return replace(kind, width=options["scale"] * kind.width, height=options["scale"] * kind.height)

    def baseline(self, data: Data, options: Mapping[str, Any]) -> Baseline:
        """Enlarge by bicubic interpolation, and filter along the guide's edges."""
        from dip_fast.guides.bicubic import enlarge
        from dip_fast.guides.guided_filter import guided_filter

        large = enlarge(data.image, options["scale"]) if options["scale"] > 1 else data.image
        return Baseline("guided filter", guided_filter(large, data.inputs["guide"]))


def _of_file(source: Path | str) -> np.ndarray:
    """Read the guide's file."""
    from dip_fast.pictures import read_picture

    return read_picture(Path(source)).image


def _of_array(source: Any) -> np.ndarray:
    """Convert an array ``(H, W)`` or ``(H, W, C)``, of any range."""
    import numpy as np

    from dip_fast.pictures.samples import as_samples, to_unit, value_range

    if source.ndim not in (2, 3) or not source.size or source.dtype.kind not in "biuf":
        raise UsageError(f"guide must be numbers (H, W) or (H, W, C), got {source.shape} of {source.dtype}")
    samples = as_samples(source.reshape(*source.shape[:2], -1))
    if not np.isfinite(samples).all():
        raise UsageError("guide must be finite, got NaN or infinite values")
    return to_unit(samples, value_range(samples))


def _check_size(guide: tuple[int, ...], picture: tuple[int, ...], scale: int) -> None:
    """Refuse a guide of another size than the result, and name the scale that would fit."""
    if guide == tuple(scale * side for side in picture):
        return
    found = guide[0] // picture[0]
    fits = 1 <= found <= MAX_SCALE and guide == tuple(found * side for side in picture)
    raise UsageError(
        "{} must be {}x{} pixels, {} times the picture, got {}x{}; "
        + ("give {}" if fits else "align and resize it first"),
        *(Argument("guide"), scale * picture[1], scale * picture[0], scale, guide[1], guide[0]),
        *([Argument("scale", found)] if fits else []),
    )


GUIDED = Guided()
