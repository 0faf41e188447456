"""Inpainting: some pixels are missing, and a mask says which."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dip_fast.errors import UsageError
from dip_fast.tasks.task import Baseline, Data, Input, Option, Task, as_target

if TYPE_CHECKING:
    import numpy as np

    from dip_fast.fitting import Degradation, Objective
    from dip_fast.presets import Recipe


def doubts(known: np.ndarray) -> tuple[str, ...]:
    """Say so where most of a picture is unknown: many programs mark the unknown pixels instead."""
    unknown = 1 - known.mean()
    if not 0.5 < unknown < 1:
        return ()
    return (f"the mask leaves {unknown:.0%} of the picture to be drawn: if it marks the unknown part, invert it",)


class Inpaint(Task):
    """Fill in the unknown pixels of a picture: ``A(x) = m x``."""

    name = "inpaint"
    summary = "fill in what a mask leaves black"
    doing = "filling in"
    inputs = (Input("mask", "White = known, black = to be filled in."),)
    options = (Option("composite", bool, True, "Keep the known pixels when inpainting."),)

    def read(self, name: str, source: Path | np.ndarray, image: np.ndarray) -> np.ndarray:
        """Read the mask: bool ``(H, W)``, True where the picture is known."""
        height, width = image.shape[:2]
        if isinstance(source, Path):
            from dip_fast import pictures

            return pictures.read_mask(source, (height, width))
        if source.shape != (height, width):
            raise UsageError(f"mask must be {(height, width)} as the image is, got {source.shape}")
        known = source.astype(bool)
        if not known.any():
            raise UsageError("mask must hold at least one known pixel, got none")
        return known

    def objective(self, data: Data, options: Mapping[str, Any], recipe: Recipe, seed: int) -> Objective:
        """Make the data term's objective, with a word to the user whose mask may be the wrong way round."""
        objective = super().objective(data, options, recipe, seed)
        objective.notes += doubts(data.inputs["mask"])
        return objective

    def known(self, data: Data) -> np.ndarray | None:
        """Find which pixels are known."""
        return data.inputs["mask"]

    def degradation(self, data: Data, options: Mapping[str, Any]) -> Degradation:
        """Compare the known pixels only."""
        import torch

        from dip_fast.fitting import Mask

        known = torch.from_numpy(data.inputs["mask"])[None, None]
        return Mask(as_target(data.image), known, composite=options["composite"])

    def baseline(self, data: Data, options: Mapping[str, Any]) -> Baseline:
        """Fill in by diffusion from the known pixels."""
        from dip_fast.guides.diffusion import fill

        return Baseline("diffusion", fill(data.image, data.inputs["mask"]))


INPAINT = Inpaint()
