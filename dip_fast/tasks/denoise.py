"""Denoising: the picture is there, with noise on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dip_fast.errors import Argument, UsageError
from dip_fast.names import counted
from dip_fast.presets import PRESETS, Recipe
from dip_fast.tasks.task import Baseline, Data, Input, Option, Task, as_target

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from dip_fast.fitting import Degradation, NoiseModel, Objective

BLOCK = 3  # pixels: side of the squares that are predicted where noise is correlated
NOISE = "Noise: auto, poisson, its standard deviation in 1/255 of the range, or a,b for a variance of a + b x."
GUIDE = "What another denoiser made of the same picture: it is mixed into the result as far as it is worth."


class Denoise(Task):
    """Take the noise out of a picture: ``A(x) = x``."""

    name = "denoise"
    summary = "take the noise out of a picture"
    doing = "cleaning"
    inputs = (Input("guide", GUIDE, required=False, is_estimate=True, in_place=True),)
    options = (Option("noise", str, "auto", NOISE),)
    aside = ("hidden", "outliers")
    has_tiles = True

    def preset(self, device: str) -> str:
        """Predict what the network does not see, on every device."""
        return "default"

    def complete(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Fill in the defaults, and check what the noise is said to be."""
        completed = super().complete(options)
        parse_noise(completed["noise"])
        return completed

    def read(self, name: str, source: Path | str | np.ndarray, data: Data, options: Mapping[str, Any]) -> np.ndarray:
        """Read the guide, float32 ``(H, W, C)`` in the picture's range; an array has the range of the image."""
        import numpy as np

        from dip_fast.pictures import read_picture

        if isinstance(source, np.ndarray):
            _check_shape(source.shape, data.image.shape)
            if not np.isfinite(source).all():
                raise UsageError("{} must be finite, got NaN or infinite values", Argument(name))
            return source
        guide = read_picture(Path(source))
        _check_shape(guide.image.shape, data.image.shape)
        return guide.image if data.picture is None else guide.in_range(data.picture.kind)

    def degradation(self, data: Data, options: Mapping[str, Any]) -> Degradation:
        """Leave the picture as it is: all of it is compared."""
        from dip_fast.fitting import Identity, Mask

        known = _known(data)
        return Identity(as_target(data.image)) if known is None else Mask(as_target(data.image), known, composite=False)

    def objective(self, data: Data, options: Mapping[str, Any], recipe: Recipe, seed: int) -> Objective:
        """Predict samples that the network does not see; or fit it from a random z, where the preset says so."""
        from dip_fast.fitting import masked_prediction
        from dip_fast.fitting.noise_level import is_correlated
        from dip_fast.fitting.start import perturbation_for

        if recipe.masking is not None:
            y, known = as_target(data.image), _known(data)
            block = BLOCK if options["noise"] == "auto" and is_correlated(y, known) else 1
            guides = as_target(data.inputs["guide"]) if "guide" in data.inputs else None
            noise = _noise(data, options, y)
            return masked_prediction(y, noise, recipe, block=block, seed=seed, known=known, guides=guides)
        if "guide" in data.inputs:
            able = ", ".join(name for name in PRESETS if PRESETS[name].recipe.masking is not None)
            raise UsageError("{} needs a preset that hides samples; take one of {}", Argument("guide"), able)
        if options["noise"] != "auto" and recipe.options.perturbation is None:
            perturbation = perturbation_for(_noise(data, options).deviation)
            recipe = replace(recipe, options=replace(recipe.options, perturbation=perturbation))
        return super().objective(data, options, recipe, seed)

    def baseline(self, data: Data, options: Mapping[str, Any]) -> Baseline:
        """Filter by non-local means, at the strength of the noise."""
        from dip_fast.guides.non_local import non_local_means

        return Baseline("non-local means", non_local_means(data.image, _noise(data, options).deviation))


def parse_noise(text: str) -> tuple[float, float] | None:
    """Read what a user says of the noise.

    Returns
    -------
    tuple of float or None
        ``(a, b)`` of the variance ``a + b x``; None where the picture has to say: for ``auto`` and ``poisson``.

    Raises
    ------
    UsageError
    """
    if text in ("auto", "poisson"):
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or not all(math.isfinite(n) and n >= 0 for n in numbers) or not any(numbers):
        raise UsageError(
            "{} must be auto, poisson, a standard deviation in 1/255 of the range such as 25, or a,b in units of the "
            "range such as 0.002,0.03; got {}",
            *(Argument("noise"), text),
        )
    return ((numbers[0] / 255) ** 2, 0.0) if len(numbers) == 1 else (numbers[0], numbers[1])


def _check_shape(guide: tuple[int, ...], picture: tuple[int, ...]) -> None:
    """Refuse a guide of another size, or with other channels, than the picture."""
    if guide != picture:
        of_guide, of_picture = (f"{w}x{h} pixels with {counted(c, 'channel')}" for *_, h, w, c in (guide, picture))
        raise UsageError(
            "{} must be {} as the picture is, got {}; give what was made of this picture",
            *(Argument("guide"), of_picture, of_guide),
        )


def _noise(data: Data, options: Mapping[str, Any], y: Tensor | None = None) -> NoiseModel:
    """Make the noise model that the user asks for, or measure it; y is the picture, where it is there already."""
    from dip_fast.fitting import NoiseModel, measure_noise
    from dip_fast.fitting.noise_model import cut_off

    y, said = as_target(data.image) if y is None else y, parse_noise(options["noise"])
    if said is None:
        return measure_noise(y, grows=True if options["noise"] == "poisson" else None, known=_known(data))
    return NoiseModel(*said, *cut_off(y, NoiseModel(*said).deviation))


def _known(data: Data) -> Tensor | None:
    """Find the samples that are to be fitted; None for all."""
    aside = data.aside
    return None if aside is None or aside.all() else as_target(~aside)  # all of a tile may be transparent


DENOISE = Denoise()
