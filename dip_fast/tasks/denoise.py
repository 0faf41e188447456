"""Denoising: the picture is there, with noise on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dip_fast.tasks.task import Baseline, Data, Task, as_target

if TYPE_CHECKING:
    from dip_fast.fitting import Degradation


class Denoise(Task):
    """Take the noise out of a picture: ``A(x) = x``."""

    name = "denoise"
    summary = "take the noise out of a picture"

    def degradation(self, data: Data, options: Mapping[str, Any]) -> Degradation:
        """Leave the picture as it is: all of it is compared."""
        from dip_fast.fitting import Identity

        return Identity(as_target(data.image))

    def baseline(self, data: Data, options: Mapping[str, Any]) -> Baseline:
        """Filter by non-local means, with the noise as estimated from the picture."""
        from dip_fast.fitting.noise import haar_noise
        from dip_fast.guides.non_local import non_local_means

        sigma = haar_noise(as_target(data.image))
        return Baseline("non-local means", non_local_means(data.image, sigma))


DENOISE = Denoise()
