"""What makes a network that has learned to predict dropped samples draw a picture that it is shown whole."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from dip_fast.fitting.degradations import Identity
from dip_fast.fitting.objectives import DeepImagePrior, Example, Objective
from dip_fast.fitting.problem import Problem
from dip_fast.fitting.reductions import mean_square
from dip_fast.networks import network_input
from dip_fast.networks.network_input import NetworkInput, Part

WINDOWS = 8  # that the statistics of a large picture are taken from
NEAR = 1 / network_input.MAX_CODE  # root mean square of what is drawn beside the picture: the step of the input's grid


class Redrawn(DeepImagePrior):
    """The mean squared error of what the network makes of a picture, against the picture itself.

    Parameters
    ----------
    x : Tensor
        The picture, ``(1, C, H, W)``.
    masks : int
        Channels of ones that the network reads beside the picture's.
    """

    def __init__(self, x: Tensor, masks: int) -> None:
        super().__init__(Identity(x), whole(x, masks))

    def windows(self) -> Iterator[Tensor]:
        """Show the picture."""
        yield self.z.tensor(self.degradation.target.device)


class RedrawnSquares(Objective):
    """The same of squares of a picture.

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
        return mean_square(x, example.target)

    def windows(self) -> Iterator[Tensor]:
        """Show squares that no step has seen."""
        for number in range(WINDOWS):
            yield self.example(torch.tensor(-1 - number, device=self.x.device)).z


def whole(y: Tensor, masks: int) -> NetworkInput:
    """Make the network input that shows a picture without holes: the picture, and some channels of ones."""
    ones = Part(torch.ones(1, 1, 1, 1, dtype=torch.uint8).expand(1, masks, *y.shape[2:]), 1)
    return network_input.joined(network_input.of_image(y, clipped=True), NetworkInput((ones,)))


@torch.no_grad()
def lessened(problem: Problem, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Lessen the correction that a network makes of the picture it is shown, until the picture is what it draws.

    Parameters
    ----------
    problem : Problem
        A network that corrects its input, and the objective that shows the picture.
    weights : mapping of str to Tensor
        By the parameters' names.
    """
    errors = []
    for z in problem.objective.windows():
        image = problem.draw(z, dict(weights), (z.shape[2], z.shape[3]))
        errors.append(float(mean_square(image, z[:, : image.shape[1]])))
    distance = math.sqrt(sum(errors) / len(errors))
    return problem.network.lessened(weights, NEAR / max(distance, NEAR))
