"""Presets: recipes that were measured.  A recipe is a network, its input, and how to fit it.

Plain data; nothing here needs torch.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from dip_fast.errors import Argument, UsageError
from dip_fast.names import STOPS
from dip_fast.registry import Registry, suggest
from dip_fast.values import choice, integer, number

# Numbers of `FitOptions` that have no other bound.
AT_LEAST_NOTHING = (
    "learning_rate", "matrix_rate", "weight_noise", "averaging_window", "patience", "consolidation_learning_rate",
)  # fmt: skip


@dataclass(frozen=True)
class FitOptions:
    """How to fit.

    Attributes
    ----------
    iterations : int
        The fit ends after so many steps at the latest.
    learning_rate : float
        Learning rate of Adam.
    optimizer : {"adam", "muon"}
        `dip_fast.fitting.muon` has the second one.
    matrix_rate : float
        Learning rate of Muon's matrices, as a multiple of the others'.
    warmup : int
        Steps in which the learning rate grows linearly to `learning_rate`; 0 for none.
    decay : {"none", "cosine"}
        How the learning rate falls: not at all, or along half a cosine to nothing at the last of the iterations.
    perturbation : float, optional
        Standard deviation of the fresh noise added to z at each step.  None stands for a third of the picture's own
        noise as estimated, between 1/100 and 1/30: a noisy picture needs the larger one, a clean one is fitted sooner
        with the smaller.
    weight_noise : float
        Standard deviation of the fresh noise added to the weights of each convolution at each step, as a part of their
        own standard deviation; 0 for none.
    averaging : float
        The largest part of themselves that the moving averages of weights and iterates keep at a step, in [0, 1).
    averaging_window : int
        At step t the averages keep ``t / (t + averaging_window)`` while that is less than `averaging`: an average over
        the last ``1 / (averaging_window + 1)`` of the steps.
    stop : {"auto", "never"}
        Whether the moving variance of the iterates ends the fit and chooses the step that is the answer.
    patience : float
        The part of the iterations that a fit goes on without a new minimum of the variance.
    rounds : int
        Rounds of patches and data after a fit of a blurred, reduced, compressed or holed picture, see
        `dip_fast.fitting.patch_prior`; at most one for `start.STEPS_A_ROUND` iterations.
    consolidation : int
        The number of last steps, which fit the averaged network at the fixed input to the averaged picture; a part of
        the iterations where that is less.
    consolidation_part : float
        That part.
    consolidation_learning_rate : float
        The highest learning rate in these steps: it grows for five steps and falls to nothing, both linearly.
    """

    iterations: int
    learning_rate: float = 0.01
    optimizer: Literal["adam", "muon"] = "adam"
    matrix_rate: float = 3.0
    warmup: int = 0
    decay: Literal["none", "cosine"] = "none"
    perturbation: float | None = 1 / 30
    weight_noise: float = 0.0
    averaging: float = 0.99
    averaging_window: int = 9
    stop: Literal["auto", "never"] = "auto"
    patience: float = 0.15
    rounds: int = 0
    consolidation: int = 50
    consolidation_part: float = 0.1
    consolidation_learning_rate: float = 0.003

    def __post_init__(self) -> None:
        for name, least in (("iterations", 1), ("warmup", 0), ("consolidation", 0)):
            integer(name, getattr(self, name), least=least)
        for name, most in (("consolidation_part", 1.0), *dict.fromkeys(AT_LEAST_NOTHING, math.inf).items()):
            number(name, getattr(self, name), least=0.0, most=most)
        if self.perturbation is not None:
            number("perturbation", self.perturbation, least=0.0)
        if number("averaging", self.averaging, least=0.0) >= 1:
            raise UsageError(f"averaging must be less than 1, got {self.averaging}")
        choice("optimizer", self.optimizer, ("adam", "muon"))
        choice("decay", self.decay, ("none", "cosine"))
        choice("stop", self.stop, STOPS)

    @property
    def consolidation_steps(self) -> int:
        """Steps of consolidation that follow the iterations."""
        return min(self.consolidation, int(self.consolidation_part * self.iterations))

    def share(self, networks: int) -> int:
        """Count the steps of each of several networks that are fitted one after another; one goes on without end."""
        return -(-self.iterations // networks) if networks > 1 else sys.maxsize

    def learning_rate_at(self, step: int, share: int = sys.maxsize) -> float:
        """Learning rate of a step, counted from 1, of the iterations or of a network's share of them."""
        rate = self.learning_rate * min(1.0, step / max(self.warmup, 1))
        if self.decay == "cosine":
            rate *= (1 + math.cos(math.pi * (step - 1) / min(share, self.iterations))) / 2
        return rate


@dataclass(frozen=True)
class Masking:
    """How the masked objective shows a picture to the network, see `dip_fast.fitting.masked.MaskedPrediction`.

    Attributes
    ----------
    keep : float
        Probability that a sample is shown.
    crop : int
        Side of the square that a step shows, at most; a multiple of 32.
    margin : int
        How far such a square may reach over the picture's edges, where the picture is mirrored.
    passes : int
        Masks whose predictions are averaged; of several pictures, `masked.MASKS_OF_SEVERAL` of each at most.
    """

    keep: float = 0.8
    crop: int = 512
    margin: int = 16
    passes: int = 64

    def __post_init__(self) -> None:
        for name, least in (("crop", 1), ("margin", 0), ("passes", 1)):
            integer(name, getattr(self, name), least=least)
        number("keep", self.keep, least=0.0, most=1.0)


@dataclass(frozen=True)
class Recipe:
    """A network, its input, and how to fit it.

    Attributes
    ----------
    network : str
        A name in `dip_fast.networks.NETWORKS`.
    network_options : dict
        The network's own arguments.
    in_channels : int
        Channels of a random z.
    distribution : {"uniform", "gaussian", "meshgrid"}
        The distribution of a random z: uniform in [0, 0.1), or N(0, 1); or the coordinates of the pixels, in two
        channels from 0 to 1.
    options : FitOptions
        How to fit.
    masking : Masking, optional
        How z is made of the picture, for the masked objective; None for a random z.
    full_size : int
        Pixels from which on a picture takes the iterations of the options.  A smaller one takes more, as its steps cost
        less: in inverse proportion to the root of its pixels, at most half as many again.  0: all take the same.
    learns_input : bool
        Whether z is fitted along with the weights, from what it is at first.
    """

    network: str
    network_options: dict[str, Any]
    in_channels: int
    distribution: str
    options: FitOptions
    masking: Masking | None = None
    full_size: int = 0
    learns_input: bool = False

    def __post_init__(self) -> None:
        integer("in_channels", self.in_channels, least=1)
        integer("full_size", self.full_size, least=0)

    def least(self) -> Recipe:
        """Return a recipe of one step, for a picture in which there is nothing to fit."""
        options = replace(self.options, iterations=1, consolidation=0)
        masking = None if self.masking is None else replace(self.masking, passes=1)
        return replace(self, options=options, masking=masking, full_size=0)

    def with_(self, **changes: Any) -> Recipe:
        """Copy the recipe with other values.

        Parameters
        ----------
        **changes
            Attributes of the recipe, of its options or of its masking by their names; ``network_options`` are added to
            those there are.  ``width`` stands for the channels of the skip network, ``down`` and ``up``.

        Raises
        ------
        UsageError
            For a name that none of them has.
        """
        parts: dict[str, Any] = {"": self, "options": self.options, "masking": self.masking}
        taken: dict[str, dict[str, Any]] = {part: {} for part in parts}
        network_options = dict(changes.pop("network_options", {}))
        if "width" in changes:
            if self.network != "skip":
                raise UsageError(f"width is of the skip network; pass network_options= for {self.network}")
            network_options |= dict.fromkeys(("down", "up"), changes.pop("width"))
        names = {f.name: part for part, of in reversed(parts.items()) if of is not None for f in fields(of)}
        for name, value in changes.items():
            if name not in names:
                raise UsageError(f"a recipe has no {name!r}{suggest(name, names)}")
            taken[names[name]][name] = value
        for part in ("options", "masking"):
            if taken[part]:
                taken[""].setdefault(part, replace(parts[part], **taken[part]))
        return replace(self, network_options={**self.network_options, **network_options}, **taken[""])

    def iterations(self, size: tuple[int, int]) -> int:
        """Count the iterations of a picture of this height and width."""
        more = math.sqrt(self.full_size / math.prod(size)) if self.full_size else 1.0
        return round(self.options.iterations * min(max(more, 1.0), 1.5))


@dataclass(frozen=True)
class Preset:
    """A recipe with a line on what it is; `figures.preset_cost` says what it costs and reaches."""

    recipe: Recipe
    summary: str

    def with_(self, **changes: Any) -> Preset:
        """Copy the preset with other values, as ``PRESETS["quick"].with_(iterations=60)``; see `Recipe.with_`."""
        return replace(self, recipe=self.recipe.with_(**changes))


def _masked(summary: str, *, iterations: int, passes: int = 64, crop: int = 512) -> Preset:
    """Make a preset of the masked objective.  docs/notes/masked.md has the experiments behind its numbers."""
    return Preset(
        Recipe(
            network="skip",
            network_options={
                "down": 32, "up": 32, "skip": 16, "kernel_skip": 3, "upsampling": "nearest", "corrects": True,
            },
            in_channels=6,
            distribution="uniform",
            options=FitOptions(
                iterations=iterations,
                learning_rate=0.03,
                optimizer="muon",
                warmup=50,
                decay="cosine",
                perturbation=0.0,
                averaging=0.0,
                stop="never",
                rounds=8,
                consolidation=30,  # of another network, which does not correct its input, and has never seen all of it
                consolidation_part=1.0,
                consolidation_learning_rate=0.02,
            ),
            masking=Masking(crop=crop, passes=passes),
            full_size=2**18 if crop == 512 else 0,  # smaller squares take the same time in any picture
        ),
        summary,
    )  # fmt: skip


QUICK = FitOptions(
    iterations=1000,
    learning_rate=0.02,
    warmup=50,
    perturbation=None,
    averaging=0.995,
    averaging_window=4,
    rounds=8,
    consolidation_learning_rate=0.002,
)

PRESETS: Registry[Preset] = Registry(
    "preset",
    {
        "fast": _masked("a first look, from small squares of the picture", iterations=260, passes=8, crop=128),
        "default": _masked("predicts samples that the network does not see", iterations=300),
        "best": _masked("five times the steps of default, in several networks for small pictures", iterations=1500),
        "quick": Preset(
            Recipe(
                network="skip",
                network_options={"down": 32, "up": 32, "skip": 4, "upsampling": "nearest"},
                in_channels=32,
                distribution="uniform",
                options=QUICK,
            ),
            "a quarter of the paper's width, nearest upsampling",
        ),
        "paper": Preset(
            Recipe(
                network="skip",
                network_options={"upsampling": "bilinear"},
                in_channels=32,
                distribution="uniform",
                options=FitOptions(iterations=3000, rounds=8),
            ),
            "the denoising run of the paper",
        ),
        "hourglass": Preset(
            Recipe(
                network="hourglass",
                network_options={},
                in_channels=3,
                distribution="gaussian",
                # The variance of its iterates is least at step 1003 of F16 (22.7 dB); all steps give 26.5 dB.
                options=FitOptions(iterations=5000, learning_rate=0.001, perturbation=0.0, stop="never"),
            ),
            "the small program that this project grew from",
        ),
        "decoder": Preset(
            Recipe(
                network="decoder",
                network_options={},
                in_channels=256,
                distribution="gaussian",
                options=FitOptions(iterations=2500, perturbation=0.0),
            ),
            "ConvDecoder: no encoder, few parameters to overfit with",
        ),
        "outline": Preset(
            Recipe(
                network="coarse",
                network_options={"down": 32, "up": 32, "skip": 4, "upsampling": "nearest"},
                in_channels=32,
                distribution="uniform",
                options=replace(QUICK, stop="never"),
            ),
            "for large holes: quick at a part of the size, whose holes copies of patches fill",
        ),
    },
)


def default(network: str | None, preset: str) -> str:
    """Choose the preset for a user who names none: the first of the network they name, or the task's.

    Parameters
    ----------
    network : str or None
        A network's name.
    preset : str
        The task's preset.
    """
    if network is None or PRESETS[preset].recipe.network == network:
        return preset
    found = [name for name, entry in PRESETS.items() if entry.recipe.network == network]
    if not found:
        raise UsageError("no preset fits a {} network; name one that does with {}", network, Argument("preset"))
    return found[0]


def recipe_of(preset: str | Preset | Recipe) -> Recipe:
    """Find the recipe of a preset's name, or in what was made of one.

    Raises
    ------
    UsageError
        For an unknown name, or anything else.
    """
    found: Any = PRESETS[preset] if isinstance(preset, str) else preset
    found = found.recipe if isinstance(found, Preset) else found
    if not isinstance(found, Recipe):
        got = type(preset).__name__
        raise UsageError("{} must be a name, a Preset or a Recipe, got {}", Argument("preset"), got)
    return found
