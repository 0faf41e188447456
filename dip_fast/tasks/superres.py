"""Super-resolution: the picture was reduced in size, and its large original is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dip_fast.errors import Argument, UsageError
from dip_fast.tasks.task import Baseline, Data, Input, Option, Task, as_target

if TYPE_CHECKING:
    import numpy as np

    from dip_fast.fitting import Degradation
    from dip_fast.pictures import Kind
    from dip_fast.presets import Recipe

SCALES = (2, 8)
KERNEL = (
    "How the picture was reduced: bicubic (the default), lanczos or box; or the blur, in pixels of the result, before "
    "each so many were left out: gaussian:1.2, motion:5,30 or a file, as with deblur."
)


class SuperResolution(Task):
    """Undo a reduction in size: ``A(x) = (k * x)[::s, ::s]``."""

    name = "superres"
    summary = "enlarge a picture that was reduced in size"
    doing = "enlarging"
    inputs = (Input("kernel", KERNEL, required=False),)
    options = (Option("scale", int, 2, f"How many times larger: from {SCALES[0]} to {SCALES[1]}."),)
    has_tiles = True
    stop = "never"  # there is little noise in a reduced picture, and fine detail comes last

    def complete(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Fill in the defaults, and check the scale."""
        completed = super().complete(options)
        if not SCALES[0] <= completed["scale"] <= SCALES[1]:
            raise UsageError("{} must be from {} to {}", Argument("scale", completed["scale"]), *SCALES)
        return completed

    def read(self, name: str, source: Path | str | np.ndarray, data: Data, options: Mapping[str, Any]) -> np.ndarray:
        """Make the kernel of the reduction."""
        from dip_fast.tasks import kernels

        kernel = kernels.of_reduction(source, options["scale"])
        kernels.check_size(kernel, data.image, options["scale"])
        return kernel

    def has_rounds(self, recipe: Recipe, options: Mapping[str, Any]) -> bool:
        """Whether rounds may follow: they do in any fit."""
        return True

    def degradation(self, data: Data, options: Mapping[str, Any]) -> Degradation:
        """Compare the reduced result with the picture."""
        import torch

        from dip_fast.fitting import Convolution
        from dip_fast.tasks import kernels

        kernel = data.inputs.get("kernel")
        if kernel is None:
            kernel = kernels.of_reduction("bicubic", options["scale"])
        return Convolution(as_target(data.image), torch.from_numpy(kernel), options["scale"])

    def result_kind(self, kind: Kind, options: Mapping[str, Any]) -> Kind:
        """Describe the result: larger than the picture."""
        return replace(kind, width=options["scale"] * kind.width, height=options["scale"] * kind.height)

    def baseline(self, data: Data, options: Mapping[str, Any]) -> Baseline:
        """Enlarge by bicubic interpolation."""
        from dip_fast.guides.bicubic import enlarge

        return Baseline("bicubic", enlarge(data.image, options["scale"]))


SUPERRES = SuperResolution()
