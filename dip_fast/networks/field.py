"""A random network input without end: windows of it are drawn by themselves, and agree where they overlap."""

from __future__ import annotations

import numpy as np
import torch

from dip_fast.networks.network_input import NetworkInput, Part, draw, of_image

BLOCK = 256  # side of the squares that are drawn, each from a seed of its own
FARTHEST = 2**31  # a row or a column of squares; numbers of a seed are not negative


def window(
    distribution: str,
    channels: int,
    start: tuple[int, int],
    size: tuple[int, int],
    whole: tuple[int, int],
    *,
    seed: int,
) -> NetworkInput:
    """Draw a window of a field.

    Parameters
    ----------
    distribution, channels
        As in `network_input.draw`.
    start : tuple of int
        First row and column of the window; negative ones are before those of the picture.
    size : tuple of int
        Height and width of the window.
    whole : tuple of int
        Height and width of the picture that the field is for, whose coordinates a meshgrid has.
    seed : int
        Of the field.
    """
    if distribution == "meshgrid":
        return _coordinates(start, size, whole)
    rows, columns = (
        range(first // BLOCK, (first + side - 1) // BLOCK + 1) for first, side in zip(start, size, strict=True)
    )
    strips, denominator = [], 1
    for row in rows:
        drawn = [_square(distribution, channels, row, column, seed) for column in columns]
        denominator = drawn[0].denominator
        strips.append(torch.cat([part.codes for part in drawn], dim=3))
    top, left = start[0] - BLOCK * rows[0], start[1] - BLOCK * columns[0]
    codes = torch.cat(strips, dim=2)[..., top : top + size[0], left : left + size[1]]
    return NetworkInput((Part(codes.contiguous(), denominator),))


def _square(distribution: str, channels: int, row: int, column: int, seed: int) -> Part:
    """Draw one of the squares that the field consists of."""
    numbers = np.random.SeedSequence([seed, FARTHEST + row, FARTHEST + column]).generate_state(1)
    return draw(distribution, channels, (BLOCK, BLOCK), seed=int(numbers[0])).parts[0]


def _coordinates(start: tuple[int, int], size: tuple[int, int], whole: tuple[int, int]) -> NetworkInput:
    """Make the coordinates of pixels as `network_input.meshgrid` does: columns and rows, 0 to 1 over the picture."""
    rows, columns = (
        ((torch.arange(side, dtype=torch.float64) + first) / max(length - 1, 1)).clamp(0, 1)
        for first, side, length in zip(start, size, whole, strict=True)
    )
    return of_image(torch.stack((columns.expand(size), rows[:, None].expand(size)))[None])
