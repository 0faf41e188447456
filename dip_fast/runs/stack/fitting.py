"""Pictures of a stack that one network is fitted to: as `dip_fast.denoise` restores frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dip_fast.fitting import Result
from dip_fast.pictures.aside import hidden_by
from dip_fast.pictures.ranges import Range, filled, find
from dip_fast.pictures.samples import from_unit, to_unit
from dip_fast.pictures.stacks import Stack
from dip_fast.tasks import Data

# Memory that a sample takes beside the steps: 66 bytes of uint8 and 90 of uint16 were measured, of 4 and 20 pictures of
# 512x512 in RGB.  Most of it are float64 while the range is found, and float32 of what is fitted, predicted and drawn.
BYTES_A_SAMPLE = 96


@dataclass(frozen=True, eq=False)
class Together:
    """Pictures that are restored together.

    Attributes
    ----------
    samples : ndarray
        ``(N, H, W, C)``, as they were read.
    range : Range
        One for all of them.
    data : Data
        What the task works on.
    """

    samples: np.ndarray
    range: Range
    data: Data

    def restored(self, result: Result) -> np.ndarray:
        """Turn the answer into samples ``(N, H, W, C)``; those that were set aside are as they were."""
        images = result.image[None] if result.images is None else result.images
        samples = from_unit(images, self.range.limits_of_result, self.samples.dtype)
        aside = self.data.aside
        return samples if aside is None else np.where(aside, self.samples, samples)


def together(stack: Stack, first: int, count: int, *, outliers: bool) -> Together:
    """Read pictures of a stack.

    Parameters
    ----------
    stack : Stack
    first, count : int
    outliers : bool
        Whether samples far outside the range of the others are set aside.
    """
    pictures = [stack.read(number) for number in range(first, first + count)]
    samples = np.stack([picture.samples for picture in pictures])
    covered = [hidden_by(picture.alpha, picture) for picture in pictures]
    hidden = None
    if any(cover is not None for cover in covered):
        hidden = np.stack([np.zeros(samples.shape[1:3], bool) if cover is None else cover for cover in covered])
    del pictures
    found = find(samples, hidden, outliers=outliers)
    image, aside = to_unit(samples, found.limits), found.outliers
    if hidden is not None:
        every = np.broadcast_to(hidden[..., None], samples.shape)
        aside = every.copy() if aside is None else aside | every
    if aside is not None:
        image = filled(image, aside)
    return Together(samples, found, Data(image, aside=aside))
