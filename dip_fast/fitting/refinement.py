"""What teaches a network that has learned to predict dropped samples to use all of them, on squares of estimates."""

from __future__ import annotations

import torch
from torch import Tensor

from dip_fast.fitting.noise_model import NoiseModel
from dip_fast.fitting.objectives import Example, Objective
from dip_fast.fitting.reductions import mean_square
from dip_fast.networks.network_input import NetworkInput


class OnSquares(Objective):
    """The mean squared error of what the network draws of squares against those of estimates.

    Parameters
    ----------
    x : Tensor
        The estimates, ``(N, C, H, W)``.
    z : NetworkInput
        A noisy picture, with a mask of ones.
    step_size, margin
        Of the squares, as in `MaskedPrediction`.
    seed : int
        Of squares, orientations and noise.
    """

    draws_iterates = False

    def __init__(self, x: Tensor, z: NetworkInput, step_size: tuple[int, int], margin: int, seed: int) -> None:
        super().__init__(z, (x.shape[2], x.shape[3]), x.shape[1])
        self.x = x
        self.step_size = step_size
        self.margin = margin
        self.seed = seed

    def loss(self, x: Tensor, example: Example) -> Tensor:
        """Compare with the estimate."""
        assert example.target is not None
        return mean_square(x - example.target)

    def _square(self, pictures: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cut a square out of one of the pictures: with its mask of ones, alone, and what number the step has."""
        from dip_fast.ops import masking  # here, since it loads or builds the extension

        # Steps of its own, which no step of the fit and no mask of its prediction has.
        number = step + 2**32
        z, square = masking.masked_crop(pictures, self.step_size[0], self.margin, 1.0, 1, self.seed, number)
        return z, square, number


class Renoised(OnSquares):
    """The mean squared error of what the network makes of estimates with fresh noise on them.

    The network that has learned to predict dropped samples does not yet know how to use the samples it sees.  Here it
    sees all of them, on a picture like the one to be restored, and the noise is new at each step.

    Parameters
    ----------
    x, z, step_size, margin, seed
        Estimates, their squares and seed, as above.
    noise : NoiseModel
        Of the noisy pictures.

    References
    ----------
    Y. Zhang et al., "IDR: Self-Supervised Image Denoising via Iterative Data Refinement", CVPR 2022.
    """

    def __init__(
        self, x: Tensor, z: NetworkInput, step_size: tuple[int, int], margin: int, seed: int, noise: NoiseModel
    ) -> None:
        super().__init__(x, z, step_size, margin, seed)
        self.noise = noise

    def example(self, step: Tensor) -> Example:
        """Add noise to a square of one of the estimates."""
        from dip_fast.ops import perturbation  # here, since it loads or builds the extension

        z, target, number = self._square(self.x, step)
        noise = perturbation.perturb(torch.zeros_like(target), 1.0, self.seed + 1, number)  # of another seed
        noisy = self.noise.noisy(target, noise)
        return Example(torch.cat((noisy, z[:, self.channels :]), dim=1), target)


class Shown(OnSquares):
    """The mean squared error of what the network makes of the noisy pictures themselves.

    Parameters
    ----------
    x, z, step_size, margin, seed
        Estimates, their squares and seed, as above.
    y : Tensor
        The noisy pictures, ``(N, C, H, W)``.
    """

    def __init__(
        self, x: Tensor, z: NetworkInput, step_size: tuple[int, int], margin: int, seed: int, y: Tensor
    ) -> None:
        super().__init__(x, z, step_size, margin, seed)
        self.y = y

    def example(self, step: Tensor) -> Example:
        """Show a square of one of the noisy pictures, with the same square of its estimate."""
        return Example(self._square(self.y, step)[0], self._square(self.x, step)[1])
