"""What teaches a network that has learned to predict dropped samples to draw a picture that it is shown whole."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dip_fast.fitting.objectives import Example, Objective
from dip_fast.fitting.reductions import mean_square
from dip_fast.networks import network_input
from dip_fast.networks.network_input import NetworkInput, Part

WINDOWS = 8  # that the statistics of a large picture are taken from


class Redrawn(Objective):
    """The mean squared error of what the network makes of squares of a picture, against the squares themselves.

    Parameters
    ----------
    x : Tensor
        The picture, ``(1, C, H, W)``.
    step_size : tuple of int
        Height and width of the squares, which are equal.
    margin : int
        How far they may reach over the picture's edges.
    seed : int
        Of squares and orientations.
    masks : int
        Channels of ones that the network reads beside the picture's.
    """

    draws_iterates = False

    def __init__(self, x: Tensor, step_size: tuple[int, int], margin: int, seed: int, masks: int) -> None:
        super().__init__(whole(x, masks), (x.shape[2], x.shape[3]), x.shape[1])
        self.x = x
        self.step_size = step_size
        self.margin = margin
        self.seed = seed

    def example(self, step: Tensor) -> Example:
        """Show a square."""
        from dip_fast.ops import masking  # here, since it loads or builds the extension

        # Steps of its own, which no step of the fit and no mask of its prediction has.
        z, square = masking.masked_crop(self.x, self.step_size[0], self.margin, 1.0, 1, self.seed, step + 2**32)
        return Example(z[:, : self.z.channels], square)

    def loss(self, x: Tensor, example: Example) -> Tensor:
        """Compare with the square."""
        assert example.target is not None
        return mean_square(x - example.target)

    def windows(self) -> Iterator[Tensor]:
        """Show squares that no step has seen."""
        for number in range(WINDOWS):
            yield self.example(torch.tensor(-1 - number, device=self.x.device)).z


def whole(y: Tensor, masks: int) -> NetworkInput:
    """Make the network input that shows a picture without holes: the picture, and some channels of ones."""
    ones = Part(torch.ones(1, masks, *y.shape[2:], dtype=torch.uint8), 1)
    return network_input.joined(network_input.of_image(y.clamp(0, 1)), NetworkInput((ones,)))
