"""Inpainting: some pixels are missing, and a mask says which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dip_fast.errors import Argument, UsageError
from dip_fast.names import counted
from dip_fast.tasks.task import Baseline, Data, Input, Option, Task, as_target

if TYPE_CHECKING:
    import numpy as np

    from dip_fast.fitting import Degradation, Objective
    from dip_fast.pictures import Extras
    from dip_fast.presets import Recipe


MASK = (
    "White = known, black = to be filled in; of a partly transparent one, what is painted on it is filled in.  Or, in "
    "place of a file: alpha for what is not opaque in the picture, nan, or a colour such as #ff00ff."
)


def doubts(known: np.ndarray) -> tuple[str, ...]:
    """Describe a doubt where most of a picture is unknown: many programs mark the unknown pixels instead."""
    unknown = 1 - known.mean()
    if not 0.5 < unknown < 1:
        return ()
    return (f"the mask leaves {unknown:.0%} of the picture to be drawn: if it marks the unknown part, invert it",)


def are_small(known: np.ndarray) -> bool:
    """Whether no hole is large, as none of a text or of scratches is, or most known pixels touch an unknown one."""
    import cv2
    import numpy as np

    if not _halvings(known):
        return True
    around = cv2.erode(known.astype(np.uint8), np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8))
    return float(around.sum()) < known.sum() / 2


def _halvings(known: np.ndarray) -> int:
    """Count how often a picture is to be halved until none of its holes is large."""
    import torch

    from dip_fast.fitting import patch_copies

    return patch_copies.halvings(torch.from_numpy(known)[None, None])


def _predicting(data: Data, known: np.ndarray, recipe: Recipe, seed: int) -> Objective:
    """Make the objective that predicts known pixels which the network does not see."""
    import torch

    from dip_fast.fitting import masked_filling

    if data.aside is not None:
        known = known & ~data.aside.any(axis=2)
    return masked_filling(as_target(data.image), torch.from_numpy(known)[None, None], recipe, seed=seed)


class Inpaint(Task):
    """Fill in the unknown pixels of a picture: ``A(x) = m x``."""

    name = "inpaint"
    summary = "fill in what a mask leaves black"
    doing = "filling in"
    inputs = (Input("mask", MASK, in_place=True),)
    options = (
        Option("composite", bool, True, "Keep the known pixels when inpainting."),
        Option("mask_white", ("known", "hole"), "known", "What white means in the file of the mask."),
    )
    reads_preset = True
    may_miss = True
    aside = ("hidden", "outliers")
    has_tiles = True

    def read(self, name: str, source: Path | str | np.ndarray, data: Data, options: Mapping[str, Any]) -> np.ndarray:
        """Read the mask: bool ``(H, W)``, True where the picture is known."""
        import numpy as np

        from dip_fast.tasks import masks

        known = masks.known(source, data, white_is_known=options["mask_white"] == "known")
        if known.all():
            raise UsageError("{} leaves nothing to fill in: all pixels are known; mark some", Argument("mask"))
        if not known.any():
            raise UsageError("mask must hold at least one known pixel, got none")
        if data.picture is None:
            missing = ~np.isfinite(data.image).all(axis=2)
        else:
            missing = data.picture.missing
        if missing is not None and (lost := int((known & missing).sum())):
            raise UsageError(
                "{} that {} has as known {} NaN or infinite; give {}",
                *(counted(lost, "pixel"), Argument("mask"), "is" if lost == 1 else "are", Argument("mask", "nan")),
            )
        return known

    def preset_of(self, data: Data, options: Mapping[str, Any]) -> str | None:
        """Predict held-out pixels where holes are small; where they are large draw an outline, which patches fill."""
        if not options["composite"]:
            return None
        return "default" if are_small(data.inputs["mask"]) else "outline"

    def fitted_to(self, data: Data, recipe: Recipe) -> Recipe:
        """Draw an outline at the size at which no hole is large."""
        if recipe.network != "coarse" or "doublings" in recipe.network_options:
            return recipe
        return recipe.with_(network_options={"doublings": _halvings(data.inputs["mask"])})

    def objective(self, data: Data, options: Mapping[str, Any], recipe: Recipe, seed: int) -> Objective:
        """Make the data term's objective; say how much is filled in, and that a mask may be the wrong way round."""
        known = data.inputs["mask"]
        if (known.all() and data.tile is None) or not known.any():  # of a part; `read` has seen the whole mask
            held = "all" if known.all() else "none"
            raise UsageError("{}: {} of the pixels in this part are known; choose another part", Argument("mask"), held)
        if recipe.masking is not None and options["composite"]:
            objective = _predicting(data, known, recipe, seed)
        else:
            objective = super().objective(data, options, recipe, seed)
        filled = known.size - int(known.sum())
        objective.notes += (f"filling in {counted(filled, 'pixel')} ({filled / known.size:.1%})", *doubts(known))
        return objective

    def known(self, data: Data) -> np.ndarray | None:
        """Find which pixels are known."""
        return data.inputs["mask"]

    def is_done(self, data: Data, options: Mapping[str, Any]) -> bool:
        """Whether all of a tile is known, and kept."""
        known = bool(data.inputs["mask"].all())
        return known and (options["composite"] or super().is_done(data, options))

    def has_rounds(self, recipe: Recipe, options: Mapping[str, Any]) -> bool:
        """Whether rounds may follow: where known pixels are kept."""
        return bool(options["composite"])

    def drawings(self, recipe: Recipe, options: Mapping[str, Any], size: tuple[int, int]) -> int:
        """Count those in each orientation, with all known pixels and with some held out."""
        from dip_fast.fitting.masked import ORIENTATIONS

        return 2 * ORIENTATIONS if self.has_rounds(recipe, options) else super().drawings(recipe, options, size)

    def degradation(self, data: Data, options: Mapping[str, Any]) -> Degradation:
        """Compare the known pixels only."""
        import torch

        from dip_fast.fitting import Mask

        known = torch.from_numpy(data.inputs["mask"])[None, None]
        if data.aside is not None and not data.aside.all():  # as in a tile that is transparent
            known = known & as_target(~data.aside)
        return Mask(as_target(data.image), known, composite=options["composite"])

    def result_extras(self, extras: Extras, data: Data) -> Extras:
        """Make opaque what was filled in."""
        from dip_fast.tasks import masks

        if extras.aside is not None:
            aside, samples = extras.aside
            extras = replace(extras, aside=(aside & data.inputs["mask"][..., None], samples))
        if extras.alpha is None:
            return extras
        return replace(extras, alpha=masks.opaque_but(extras.alpha, data.inputs["mask"]))

    def baseline(self, data: Data, options: Mapping[str, Any]) -> Baseline:
        """Fill in by diffusion from the known pixels."""
        from dip_fast.guides.diffusion import fill

        return Baseline("diffusion", fill(data.image, data.inputs["mask"]))


INPAINT = Inpaint()
