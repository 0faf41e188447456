"""What one look at each picture of a stack shows: what it holds, and where the scene changes."""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import dataclass

import cv2
import numpy as np

from dip_fast.errors import UsageError
from dip_fast.models.packing import digest
from dip_fast.names import counted
from dip_fast.pictures.stacks import Stack, in_channels

BLOCK = 8  # pixels: sides of the blocks whose means are compared, so that noise hardly counts
QUANTILES = 64
# How far the histograms of two moments of one scene lie apart at most.  With noise of sigma 25 throughout, pans of 16
# pixels over four photographs of 512x512 moved them by 0.05, and the six pairs of these by 0.47 to 1.8; a change of
# exposure by a fifth moves them by 0.6 and more.
CUT = 0.3
CHANCE = 3.0  # deviations of what noise alone makes of it, where frames are so small that there are few values


@dataclass(frozen=True)
class Survey:
    """What a stack holds.

    Attributes
    ----------
    sha256 : str
        Of the samples and the alpha of all pictures.
    cuts : tuple of int
        Numbers of the pictures that another scene begins with.
    """

    sha256: str
    cuts: tuple[int, ...]


def survey(stack: Stack) -> Survey:
    """Read each picture once."""
    found, cuts, before = hashlib.sha256(), [], None
    each = stack.count // stack.moments
    values: list[np.ndarray] = []
    for number in range(stack.count):
        picture = stack.read(number)
        found.update(digest(picture.samples, *([] if picture.alpha is None else [picture.alpha])).encode())
        values.append(_means(picture.samples))
        if len(values) < each:
            continue
        now, values = np.concatenate(values), []
        if before is not None and stack.moments > 1 and is_cut(before, now):
            cuts.append(number + 1 - each)
        before = now
    return Survey(found.hexdigest(), tuple(cuts))


def is_cut(before: np.ndarray, now: np.ndarray) -> bool:
    """Whether the values of two moments are those of two scenes."""
    return distance(before, now) > CUT + CHANCE * math.sqrt(2 / len(now))


def distance(before: np.ndarray, now: np.ndarray) -> float:
    """Measure how far histograms lie apart: the mean distance of their quantiles, over the deviation of the values.

    Parameters
    ----------
    before, now : ndarray
        Values.
    """
    places = (np.arange(QUANTILES) + 0.5) / QUANTILES
    moved = float(np.abs(np.quantile(now, places) - np.quantile(before, places)).mean())
    spread = float((before.std() + now.std()) / 2)
    return moved / spread if spread else float(moved > 0)


def chunks(count: int, cuts: tuple[int, ...], most: int) -> list[tuple[int, int]]:
    """Divide pictures at the cuts, and then evenly into chunks of at most so many: first and number of each."""
    found = []
    for first, last in zip((0, *cuts), (*cuts, count), strict=True):
        parts = -(-(last - first) // most)
        ends = [first + (last - first) * part // parts for part in range(parts + 1)]
        found += [(begin, end - begin) for begin, end in itertools.pairwise(ends)]
    return found


def check_reference(reference: Stack, stack: Stack) -> None:
    """Refuse a ground truth of other pictures."""
    kinds = [(each.count, each.kind.size, each.kind.channels, each.kind.dtype) for each in (reference, stack)]
    if kinds[0] != kinds[1]:
        texts = [
            f"{counted(n, 'picture')} of {size[1]}x{size[0]}, {in_channels(c, dtype)}" for n, size, c, dtype in kinds
        ]
        raise UsageError(f"the reference {reference.name} has {texts[0]}, and {stack.name} {texts[1]}; give such a one")


def _means(samples: np.ndarray) -> np.ndarray:
    """Average the channels over blocks."""
    gray = np.ascontiguousarray(samples.mean(axis=2, dtype=np.float64), np.float32)
    size = max(1, gray.shape[1] // BLOCK), max(1, gray.shape[0] // BLOCK)
    return cv2.resize(gray, size, interpolation=cv2.INTER_AREA).ravel()
