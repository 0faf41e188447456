"""From a recipe and a damaged picture, or an objective, to a fit that is ready for its first step."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from dip_fast import networks
from dip_fast.device import devices, engines
from dip_fast.device.modes import drawn_from, fresh_state
from dip_fast.device.precision import require
from dip_fast.errors import UsageError
from dip_fast.fitting.degradations import Degradation, as_float32
from dip_fast.fitting.filling import MaskedFilling
from dip_fast.fitting.loop import Fit
from dip_fast.fitting.masked import MaskedPrediction
from dip_fast.fitting.noise_model import NoiseModel
from dip_fast.fitting.objectives import DeepImagePrior, Objective
from dip_fast.fitting.patch_prior import PatchPrior
from dip_fast.networks import field
from dip_fast.networks.learned_input import LearnedInput
from dip_fast.networks.network_input import NetworkInput, draw
from dip_fast.presets import Masking, Recipe

# A network that predicts dropped samples makes about so many steps with each pixel, but not fewer than it needs to
# learn anything; where there are more, another one is begun.  docs/notes/masked.md has what more of them cost.
STEPS_A_PIXEL = 0.007
FEWEST_STEPS = 400
# The network that draws the answer of a large picture, and after rounds: it is shown the answer, and what it corrects
# is next to nothing, so it is small.
REDRAWER: dict[str, Any] = {
    "down": 8,
    "up": 8,
    "skip": 4,
    "scales": 2,
    "upsampling": "nearest",
    "corrects": True,
}
STEPS_A_ROUND = 30  # of a fit for each round of patches and data that follows it, at least

Masked = TypeVar("Masked", bound=MaskedPrediction)


def streams(seed: int) -> tuple[int, int, int]:
    """Derive the seeds of the first weights, of the network input, and of what is drawn at each step."""
    for_weights, for_input, for_steps = (int(s) for s in np.random.SeedSequence(seed).generate_state(3))
    return for_weights, for_input, for_steps


class Place(NamedTuple):
    """Where the picture of a fit lies in a larger one, which others are fitted to parts of.

    Attributes
    ----------
    start : tuple of int
        Row and column of its first pixel.
    whole : tuple of int
        Height and width of the larger one.
    """

    start: tuple[int, int]
    whole: tuple[int, int]


def perturbation_for(noise: float) -> float:
    """Choose the standard deviation of what is added to z at each step, for the noise of a picture."""
    return min(max(noise / 3, 1 / 100), 1 / 30)


def deep_image_prior(
    degradation: Degradation,
    recipe: Recipe,
    *,
    seed: int = 0,
    z: NetworkInput | None = None,
    place: Place | None = None,
) -> DeepImagePrior:
    """Make the objective of a fit from random codes.

    Parameters
    ----------
    degradation : Degradation
    recipe : Recipe
        Its network, channels and distribution decide on z, its options on the perturbation: where that is None it is
        a third of the picture's noise, between 1/100 and 1/30.
    seed : int
        Seed of the fit.
    z : NetworkInput, optional
        Drawn by default.
    place : Place, optional
        Of a part of a larger picture: its z is a part of one field.
    """
    _, for_input, for_steps = streams(seed)
    if z is None:
        size = networks.input_size(recipe.network, degradation.scene, **recipe.network_options)
        z = _drawn(recipe, size, degradation, place, for_input)
    perturbation = recipe.options.perturbation
    if perturbation is None:
        perturbation = perturbation_for(degradation.noise())
    turns = rounds(recipe)
    if not (turns and degradation.has_patches):
        return DeepImagePrior(degradation, z, perturbation=perturbation, seed=for_steps)
    redrawer = _redrawer(2 * degradation.channels, degradation.channels, seed)
    return PatchPrior(degradation, z, turns, redrawer, perturbation=perturbation, seed=for_steps)


def _drawn(
    recipe: Recipe, size: tuple[int, int], degradation: Degradation, place: Place | None, seed: int
) -> NetworkInput:
    """Draw a random z of a size; of a part of a larger picture as a part of one field, at the scene's place in it."""
    if place is None:
        return draw(recipe.distribution, recipe.in_channels, size, seed=seed)
    starts, wholes = [], []
    sides = zip(place.start, place.whole, degradation.border, degradation.scene, size, strict=True)
    for start, whole, border, scene, side in sides:
        first = start - border
        # As large as the scene at least, which lies in its middle; or coarser, as that of a decoder is.
        starts.append(first - (side - scene) // 2 if side >= scene else first * side // scene)
        wholes.append(whole if side >= scene else max(whole * side // scene, side))
    return field.window(
        recipe.distribution, recipe.in_channels, (starts[0], starts[1]), size, (wholes[0], wholes[1]), seed=seed
    )


def rounds(recipe: Recipe) -> int:
    """Count the rounds of patches and data, where a fit has such."""
    return min(recipe.options.rounds, recipe.options.iterations // STEPS_A_ROUND)


def _redrawer(in_channels: int, channels: int, seed: int) -> networks.Network:
    """Build the network that is shown a picture, and channels of ones, and draws it."""
    with drawn_from(torch.Generator().manual_seed(streams(seed)[0])):
        return networks.build("skip", in_channels, channels, **REDRAWER)


def _with_redrawer(objective: Masked, seed: int) -> Masked:
    """Let a small network draw the answer where the picture is large."""
    if objective.is_large:
        objective.redrawer = _redrawer(objective.z.channels, objective.channels, seed)
    return objective


def masked_prediction(
    y: Tensor,
    noise: NoiseModel,
    recipe: Recipe,
    *,
    block: int = 1,
    seed: int = 0,
    known: Tensor | None = None,
    guides: Tensor | None = None,
) -> MaskedPrediction:
    """Make the objective of a fit to samples that the network does not see.

    Parameters
    ----------
    y : Tensor
        The noisy pictures, ``(N, C, H, W)``, range [0, 1], floats of any precision: one network is fitted to them all.
    noise : NoiseModel
        Of all of them.
    recipe : Recipe
        One with `masking`.
    block : int
        Side of the squares that masks drop, see `MaskedPrediction`.
    seed : int
        Seed of the fit.
    known : Tensor, optional
        Samples that are to be predicted, bool, of the shape of y; all by default.
    guides : Tensor, optional
        What another denoiser made of each picture, of the shape and the range of y.
    """
    masking, y = recipe.masking, as_float32("y", y)
    assert masking is not None
    side, several = _squares(y, recipe, masking)
    iterations = recipe.options.iterations
    made = MaskedPrediction(y, noise, masking, side, iterations, block, streams(seed)[2], several, known, guides)
    return _with_redrawer(made, seed)


def masked_filling(y: Tensor, known: Tensor, recipe: Recipe, *, seed: int = 0) -> MaskedFilling:
    """Make the objective of a fit to known pixels that the network does not see, for holes that are not large.

    Parameters
    ----------
    y : Tensor
        The picture, ``(1, C, H, W)``, range [0, 1], floats of any precision; unknown pixels hold anything finite.
    known : Tensor
        bool, ``(1, 1, H, W)``.
    recipe : Recipe
        One with `masking`.
    seed : int
        Seed of the fit.
    """
    masking, y = recipe.masking, as_float32("y", y)
    assert masking is not None
    side, several = _squares(y, recipe, masking)
    iterations = recipe.options.iterations
    made = MaskedFilling(y, known, masking, side, iterations, streams(seed)[2], several, rounds(recipe))
    return _with_redrawer(made, seed)


def _squares(y: Tensor, recipe: Recipe, masking: Masking) -> tuple[int, int]:
    """Compute the side of the squares that steps see, and how many networks see them."""
    side = min(masking.crop, min(y.shape[2:]) + 2 * masking.margin)
    side = networks.input_size(recipe.network, (side, side), **recipe.network_options)[0]
    most = max(STEPS_A_PIXEL * len(y) * y.shape[2] * y.shape[3], FEWEST_STEPS)
    return side, max(1, round(recipe.options.iterations / most))


@fresh_state()
def prepare(
    target: Degradation | Objective,
    recipe: Recipe,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    engine: str = "auto",
    precision: str = "tf32",
    reference: Tensor | None = None,
    steps_between_syncs: int | None = None,
    network: networks.Network | None = None,
) -> Fit:
    """Build the network of a recipe, ready for the first step of a fit.

    The parameters are those of `dip_fast.fit`, and `Fit`'s ``steps_between_syncs``; a ``network`` is fitted in
    place of the recipe's.  The seed gives the first weights, and with a degradation z and the perturbations, each its
    own stream; no random state of the caller's is used or changed.
    """
    where = devices.choose(device)
    require(precision, where)
    objective = target if isinstance(target, Objective) else deep_image_prior(target, recipe, seed=seed)
    in_channels, channels = objective.z.channels, objective.channels
    own, others = network is not None, []
    if network is None:
        with drawn_from(torch.Generator().manual_seed(streams(seed)[0])):
            network, *more = (
                networks.build(recipe.network, in_channels, channels, **recipe.network_options)
                for _ in range(objective.networks)
            )
        others = [dict(one.named_parameters()) for one in more]
    if recipe.learns_input:
        if not objective.draws_iterates:
            raise UsageError("learns_input needs a fit whose input is the same at all steps; take another preset")
        network = LearnedInput(network, in_channels, network.input_size(*objective.scene))
    chosen = engines.choose(engine, network, where)
    if not own:  # what anybody's network needs is not known
        step_size = objective.step_size if objective.is_large else None
        devices.require_memory(recipe, channels, objective.scene, where, chosen, in_channels, step_size, precision)
    network.use(chosen)
    if objective.redrawer is not None:
        objective.redrawer.use(engines.choose(engine, objective.redrawer, where))
    return Fit(
        network,
        objective,
        recipe.options,
        device=where,
        reference=reference,
        precision=precision,
        steps_between_syncs=steps_between_syncs,
        others=others,
    )
