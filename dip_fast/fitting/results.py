"""The result of a fit, and the state that it can be resumed from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dip_fast import large
from dip_fast.fitting import showing
from dip_fast.names import counted
from dip_fast.networks.network_input import NetworkInput

COLUMNS = ("step", "loss", "learning_rate", "variance", "psnr")  # of the history


@dataclass(frozen=True)
class State:
    """All that the rest of a fit depends on: tensors by name, and numbers that JSON holds."""

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


@dataclass(frozen=True, repr=False)
class Result:
    """The result of a fit.

    Attributes
    ----------
    image : ndarray
        The restored picture, ``(H, W, C)``, float32, range [0, 1]; where several were fitted at once, what the network
        draws of the first.
    network : Module
        The network, with the averaged weights that draw ``image`` from ``z``.
    z : NetworkInput
        The fixed input, of the size that the network reads.
    history : dict of str to ndarray
        The history, one value a step: ``step``, ``loss``, ``learning_rate``, ``variance`` (the stopping statistic) and,
        with a reference, ``psnr`` of the iterate in dB.
    steps, best_step : int
        The number of steps done, and the step whose averaged weights are the answer.
    stop_reason : {"iterations", "variance", "interrupted"}
        Why there were no more steps.
    seconds : float
        The time spent in the loop.
    events : list of dict
        The losses that became NaN or jumped, and what was done about each.
    kept : tuple of ndarray, optional
        A mask of the pixels that were not drawn but are those of the target, bool ``(H, W, 1)``, and the target,
        float32 ``(H, W, C)``.
    estimated_psnr : float, optional
        PSNR of ``image`` in dB, as estimated without the truth, where the objective can; the mean over ``images``.
    estimated_psnrs : tuple of float
        The same for each picture.
    guide_psnr : float, optional
        The same of the guide alone, where there was one; the mean over the guides.
    images : ndarray, optional
        The restored pictures, ``(N, H, W, C)``, where several were fitted at once: what the objective made of each with
        the network, or, of an interrupted fit, what the network draws of each.
    limits : tuple of float
        What 0 and 1 of ``image`` stand for, in the units of the physics.
    """

    image: np.ndarray
    network: nn.Module
    z: NetworkInput
    history: dict[str, np.ndarray]
    steps: int
    best_step: int
    stop_reason: str
    seconds: float
    events: list[dict[str, Any]]
    kept: tuple[np.ndarray, np.ndarray] | None = None
    estimated_psnr: float | None = None
    estimated_psnrs: tuple[float, ...] = ()
    guide_psnr: float | None = None
    images: np.ndarray | None = None
    limits: tuple[float, float] = (0.0, 1.0)

    @property
    def tensor(self) -> Tensor:
        """The restored picture in the units of the physics, ``(1, C, H, W)``, float32."""
        low, high = self.limits
        return low + (high - low) * torch.from_numpy(self.image).permute(2, 0, 1)[None]

    def plot(self) -> np.ndarray:
        """Plot the picture beside loss, stopping statistic and PSNR over the steps, in a figure of matplotlib.

        Returns
        -------
        ndarray of Axes
            ``axes[0].figure.savefig(...)`` keeps it; outside of notebooks ``matplotlib.pyplot.show()`` shows it.
        """
        return showing.plot({"result": self.image}, self.history, self.best_step)

    def _repr_html_(self) -> str:
        """Draw a thumbnail for a notebook, of gray and colour pictures; contrast is that of the limits."""
        return showing.page(repr(self), showing.thumbnail(self.image))

    def __repr__(self) -> str:
        estimate = "" if self.estimated_psnr is None else f", estimated PSNR {self.estimated_psnr:.2f} dB"
        return (
            f"<Result: {' x '.join(map(str, self.image.shape))}, {counted(self.steps, 'step')} in "
            f"{self.seconds:.1f} s, ended by {self.stop_reason}{estimate}>"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Restored:
    """A restored image with what is known of it: what the functions on arrays return with ``return_result=True``.

    Attributes
    ----------
    image : ndarray
        The restored image, as the function returns it otherwise.
    given : ndarray
        The image that was given, float32 with its channels last, range [0, 1].
    result : Result
        Of the fit, whose image has the range [0, 1]: `dip_fast.export` writes it.
    """

    image: np.ndarray
    given: np.ndarray
    result: Result

    @property
    def estimated_psnr(self) -> float | None:
        """PSNR in dB as estimated without the truth, where the preset hides samples; else None."""
        return self.result.estimated_psnr

    def plot(self) -> np.ndarray:
        """Plot the image before and after, beside the history, see `Result.plot`."""
        first = self.given if self.given.ndim == 3 else self.given[0]
        return showing.plot({"given": first, "restored": self._shown()}, self.result.history, self.result.best_step)

    def _shown(self) -> np.ndarray:
        """Pick the first image, in [0, 1]."""
        return self.result.image if self.result.images is None else self.result.images[0]

    def _repr_html_(self) -> str:
        """Draw a thumbnail for a notebook."""
        return showing.page(repr(self), showing.thumbnail(self._shown()))

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.image.shape))
        return repr(self.result).replace(
            f"<Result: {' x '.join(map(str, self.result.image.shape))}", f"<Restored: {shape} {self.image.dtype}"
        )


def channels_last(images: Tensor) -> np.ndarray:
    """Copy images ``(N, C, H, W)`` to an array ``(N, H, W, C)``."""
    last = images.permute(0, 2, 3, 1)
    array = large.empty(tuple(last.shape), last[:0].cpu().numpy().dtype)
    for rows in large.bands(array.shape, axis=1):
        array[:, rows] = last[:, rows].cpu().numpy()
    return array


def psnr(error: float) -> float:
    """PSNR in dB at data range 1, of a mean squared error; NaN of NaN."""
    return -10 * math.log10(max(error, 2.0**-48))
