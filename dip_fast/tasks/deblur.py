"""Deblurring: the picture was blurred in a way that is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dip_fast.tasks.task import Baseline, Data, Input, Task, as_target

if TYPE_CHECKING:
    import numpy as np

    from dip_fast.fitting import Degradation
    from dip_fast.presets import Recipe


KERNEL = (
    "The blur: gaussian:1.6 (standard deviation in pixels), motion:15,30 (length in pixels, degrees counter-clockwise "
    "from the right), or a picture, an .npy file or a table of numbers."
)


class Deblur(Task):
    """Undo a known blur, of a picture that is a window of a larger scene: ``A(x) = k * x``."""

    name = "deblur"
    summary = "undo a blur that is known"
    doing = "deblurring"
    inputs = (Input("kernel", KERNEL),)
    has_tiles = True

    def read(self, name: str, source: Path | str | np.ndarray, data: Data, options: Mapping[str, Any]) -> np.ndarray:
        """Make the kernel of the blur."""
        from dip_fast.tasks import kernels

        kernel = kernels.blur(source)
        kernels.check_size(kernel, data.image)
        return kernel

    def has_rounds(self, recipe: Recipe, options: Mapping[str, Any]) -> bool:
        """Whether rounds may follow: they do in any fit."""
        return True

    def degradation(self, data: Data, options: Mapping[str, Any]) -> Degradation:
        """Compare what the kernel makes of the scene with the picture."""
        import torch

        from dip_fast.fitting import Convolution

        return Convolution(as_target(data.image), torch.from_numpy(data.inputs["kernel"]))

    def baseline(self, data: Data, options: Mapping[str, Any]) -> Baseline:
        """Filter by Wiener's method, at the strength of the noise."""
        from dip_fast.fitting.noise import haar_noise
        from dip_fast.guides.wiener import deconvolve

        noise = haar_noise(as_target(data.image))
        return Baseline("Wiener filter", deconvolve(data.image, data.inputs["kernel"], noise))


DEBLUR = Deblur()
