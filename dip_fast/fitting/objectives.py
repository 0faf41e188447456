"""What a step feeds the network and asks of the image that it draws.

The loop (`loop.Fit`) knows nothing else of what is being fitted: a new objective is a new class here, or in anybody's
own code.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple, Self

import torch
from torch import Tensor

from dip_fast.device.modes import to_keep
from dip_fast.fitting.degradations import Degradation, Identity
from dip_fast.fitting.pieces import LARGEST_WHOLE
from dip_fast.networks.layers import Network
from dip_fast.networks.network_input import NetworkInput


class Example(NamedTuple):
    """What a step shows the network, and what it compares the image with.

    Attributes
    ----------
    z : Tensor
        The network's input, float32 ``(1, z.channels, h, w)``.
    target : Tensor or None
        What the loss compares with, if it belongs to the step; None where it is the same at all steps.
    """

    z: Tensor
    target: Tensor | None = None


class Passes(NamedTuple):
    """Passes of one kind that `Objective.finish` makes, one after another; see `costs`.

    Attributes
    ----------
    number : int
        How many there are.
    drawn : float
        Pixels that the network draws in each.
    alike : float
        Pixels that each estimates from patches that are alike.
    """

    number: int
    drawn: float = 0.0
    alike: float = 0.0


class Objective(ABC):
    """What is minimised over the weights of a network.

    A step calls `example`, draws, and calls `loss` with the image and that example.  Both are functions of their
    arguments alone: what is random comes from seed, step and place (`dip_fast.ops.perturb`), so that a resumed fit
    goes on bit for bit.

    Parameters
    ----------
    z : NetworkInput
        What the answer is drawn from, and exported with; of the size that the network reads, or of the picture's size.
        Where there are several pictures, that of the first.
    size : tuple of int
        Height and width of the image that the network draws.
    channels : int
        Its channels.

    Attributes
    ----------
    z, size, channels
        As given.
    captures : bool
        Whether a step can be captured as a CUDA graph: neither `example` nor `loss` reads a tensor on the host, or
        decides by one.
    step_size : tuple of int
        Height and width of the image of a step.
    border : tuple of int
        Rows and columns that the network draws on each side of the picture, see `Degradation`; none by default.
    seed : int
        Of what is random at each step.
    pictures : int
        How many pictures of one size are fitted at once.  Where there is one, the answer is what the network draws at
        a fixed input; where there are several, it is what `finish` makes.
    networks : int
        How many networks are fitted one after another, each from first weights of its own in its share of the steps.
        `finish` can draw with each of them; the last one goes on to the answer.
    draws_iterates : bool
        Whether the image of a step is an estimate of the whole picture: an iterate, which can be averaged, and whose
        variance can end the fit.  Otherwise it is a crop, or turned, and `finish` makes the picture.
    estimated_psnr : float or None
        PSNR in dB of what `finish` made, as estimated without the truth, the mean over the pictures; None before, or
        where it is not known.
    estimated_psnrs : tuple of float
        The same for each picture; empty before, or where it is not known.
    guide_psnr : float or None
        The same of the guides alone; None before, or where there are none.
    redrawer : Network or None
        What draws the answer; None for the fitted network.
    shows_answer : bool
        Whether the network of the answer is shown, in the first channels of its input, the picture that it is to draw.
        One that corrects its input draws that picture as exactly as the input has it, without having learned it: see
        `redrawing.lessened`.
    notes : tuple of str
        What a user should know of it, a line each.
    """

    captures = True
    pictures = 1
    networks = 1
    draws_iterates = True
    estimated_psnr: float | None = None
    estimated_psnrs: tuple[float, ...] = ()
    guide_psnr: float | None = None
    redrawer: Network | None = None
    shows_answer = False
    notes: tuple[str, ...] = ()
    border: tuple[int, int] = (0, 0)
    seed: int = 0

    def __init__(self, z: NetworkInput, size: tuple[int, int], channels: int) -> None:
        self.z = z
        self.size = self.step_size = size
        self.channels = channels

    def to(self, device: torch.device | str) -> Self:
        """Copy the objective to a device, with the tensors and the degradation among its attributes."""
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, to_keep(value.to(device)))
            elif isinstance(value, Degradation):
                setattr(moved, name, value.to(device))
        return moved

    @abstractmethod
    def example(self, step: Tensor) -> Example:
        """Make what the network reads at a step, and what its image is compared with.

        Parameters
        ----------
        step : Tensor
            0-dim int64, counted from 1.
        """

    @abstractmethod
    def loss(self, x: Tensor, example: Example) -> Tensor:
        """Compare the image of a step with what is known.

        Parameters
        ----------
        x : Tensor
            What the network drew, float32 ``(1, channels, *step_size)``.
        example : Example
            What `example` made for this step.

        Returns
        -------
        Tensor
            0-dim float32.
        """

    @property
    def scene(self) -> tuple[int, int]:
        """Height and width of what the network draws for the answer: the picture with its border."""
        return self.size[0] + 2 * self.border[0], self.size[1] + 2 * self.border[1]

    @property
    def drawing_size(self) -> tuple[int, int]:
        """Height and width of the image of a step of the `drawing`."""
        return self.scene

    @property
    def is_large(self) -> bool:
        """Whether the picture is so large that the answer is drawn in tiles, with statistics of `windows`."""
        return not self.draws_iterates and math.prod(self.size) > LARGEST_WHOLE

    def drawing(self, picture: Tensor) -> Objective:
        """Make the objective that fits the network to a picture, ``(1, C, H, W)``, at the input of the answer."""
        return DeepImagePrior(Identity(picture, border=self.border), self.z)

    def windows(self) -> Iterator[Tensor]:
        """Make network inputs which stand for the picture that this is the `drawing` of, and that they show."""
        raise TypeError(f"{type(self).__name__} shows no picture and must define windows()")

    def finish(self, draw: Callable[..., Tensor], average: Tensor) -> Generator[None, int | None, Tensor]:
        """Make the picture that the answer is fitted to, or several, from the network as the steps have left it.

        It yields after each of its `passes`, so that the fit can show its progress.  What it is sent is None, or a
        number once the fit was interrupted: so many passes are enough then for each part of its work.  By default it
        has nothing to do.

        Parameters
        ----------
        draw : callable
            Draws the image of a network input, ``(1, channels, h, w)`` of the input's height and width, without
            gradients: with the weights of the answer so far, or with those of the ``network`` of that number.
        average : Tensor
            The average of the iterates, ``(1, channels, *size)``; without a value where there are none.

        Returns
        -------
        Tensor
            ``(pictures, channels, *size)``.
        """
        yield from ()
        return average

    def brief(self, draw: Callable[[Tensor], Tensor], passes: int, n: int = 0) -> Tensor:
        """Make picture n from a few drawings, where there are no iterates: to look at, or for an interrupted fit."""
        raise TypeError(f"{type(self).__name__} draws no iterates and must define brief()")

    def psnr_of_loss(self, loss: float) -> float | None:
        """Estimate the PSNR in dB of the network's images from a mean of the loss; None where it does not say."""
        return None

    @property
    def kinds_of_passes(self) -> tuple[Passes, ...]:
        """The passes that `finish` makes, in their order."""
        return ()

    @property
    def passes(self) -> int:
        """How many times `finish` yields."""
        return sum(kind.number for kind in self.kinds_of_passes)

    def composite(self, x: Tensor) -> Tensor:
        """Put back into the answer what is known for certain."""
        return x

    @property
    def kept(self) -> tuple[Tensor, Tensor] | None:
        """What `composite` puts back: where, bool ``(1, 1, H, W)``, and the values, ``(1, C, H, W)``."""
        return None


class DeepImagePrior(Objective):
    """The data term of a degradation, at a fixed input that fresh noise is added to at each step.

    ``||A(f(z + e)) - y||^2`` with e normal of standard deviation ``perturbation``.

    Parameters
    ----------
    degradation : Degradation
        A and y.
    z : NetworkInput
        Usually random codes.
    perturbation : float
        Standard deviation of e, in units of z; 0 for none.
    seed : int
        Of e, which is a function of seed, step and place.

    References
    ----------
    D. Ulyanov, A. Vedaldi, V. Lempitsky, "Deep Image Prior", arXiv 1711.10925.
    """

    def __init__(self, degradation: Degradation, z: NetworkInput, *, perturbation: float = 0.0, seed: int = 0) -> None:
        super().__init__(z, degradation.size, degradation.channels)
        self.border, self.step_size = degradation.border, degradation.scene
        self.degradation = degradation
        self.captures = degradation.captures
        self.perturbation = perturbation
        self.seed = seed
        # Codes take a quarter of the memory of z itself, and each step makes its own input of them.
        codes = z.parts[0].codes if len(z.parts) == 1 and z.parts[0].codes.element_size() == 1 else None
        if perturbation and codes is not None:
            self._source, self._divisor = codes, float(z.parts[0].denominator)
        else:
            self._source, self._divisor = z.tensor(), 1.0

    def example(self, step: Tensor) -> Example:
        """Add fresh noise to z."""
        from dip_fast.ops import perturbation  # here, since it loads or builds the extension

        if not self.perturbation:
            return Example(self._source)
        return Example(perturbation.perturb(self._source, self.perturbation, self.seed, step, self._divisor))

    def loss(self, x: Tensor, example: Example) -> Tensor:
        """Compute the degradation's data term."""
        return self.degradation.data_term(x)

    def composite(self, x: Tensor) -> Tensor:
        """Put known pixels back."""
        return self.degradation.composite(x)

    @property
    def kept(self) -> tuple[Tensor, Tensor] | None:
        """Known pixels that the result keeps."""
        kept = self.degradation.kept
        return None if kept is None else (kept, self.degradation.target)
