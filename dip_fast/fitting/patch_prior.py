"""What follows a fit of a blurred, reduced, compressed or holed picture: patches that are alike and the data, in turns.

A network fitted to ``||A(f(z)) - y||^2`` stops short of the finest detail, or draws some that is not there.  Patches
that are alike over a picture know better (`similar_patches`), but not what was measured.  Half-quadratic splitting asks
both in turns: with v the picture x made of its own patches, as if it had noise of the deviation t,

    x = argmin  ||A(x) - y||^2 / s^2 + w ||x - v||^2 / t^2

where s is the deviation of the noise in y, and t falls from round to round; w is `PART`.  Where holes are large, an
outline is all that the fit has there, and copies of patches fill them (`patch_copies`).

References
----------
D. Zoran, Y. Weiss, "From Learning Models of Natural Image Patches to Whole Image Restoration", ICCV 2011,
doi:10.1109/ICCV.2011.6126278.
S. Venkatakrishnan, C. Bouman, B. Wohlberg, "Plug-and-Play Priors for Model Based Reconstruction", GlobalSIP 2013,
doi:10.1109/GlobalSIP.2013.6737048: any denoiser in the place of the patches.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import torch
from torch import Tensor
from torch.nn.functional import pad

from dip_fast.fitting import patch_copies, similar_patches
from dip_fast.fitting.degradations import LEAST_NOISE, Degradation
from dip_fast.fitting.noise_model import NoiseModel
from dip_fast.fitting.objectives import DeepImagePrior, Objective, Passes
from dip_fast.fitting.redrawing import Redrawn
from dip_fast.fitting.reductions import total
from dip_fast.networks import Network, crop
from dip_fast.networks.network_input import NetworkInput

FIRST, LAST = 40 / 255, 2 / 255  # deviations t of the first and of the last round, at least those of the noise in y
FIRST_OF_HOLES = 20 / 255  # what lies between known pixels is never far from the truth
# What v counts for beside the data, as a part of what its noise would be worth: errors of patches that are alike are
# not independent, as noise is.
PART = 0.2
STEPS = 15  # of conjugate gradients in a round


class PatchPrior(DeepImagePrior):
    """The data term of a degradation at a random z, followed by rounds of patches and data.

    The answer is drawn by a network of its own that is shown the picture which the rounds end with, as the masked
    objective's is: the fitted network would need thousands of steps to draw it from z.

    Parameters
    ----------
    degradation, z, perturbation, seed
        Of `DeepImagePrior`.
    rounds : int
    redrawer : Network
        Of the answer: one that reads a picture and as many channels of ones, and corrects the picture.
    """

    shows_answer = True

    def __init__(
        self,
        degradation: Degradation,
        z: NetworkInput,
        rounds: int,
        redrawer: Network,
        *,
        perturbation: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(degradation, z, perturbation=perturbation, seed=seed)
        self.rounds = rounds
        self.redrawer = redrawer
        kept = degradation.kept
        self.known = None if kept is None else kept.all(dim=1, keepdim=True)
        self.halvings = 0 if self.known is None else patch_copies.halvings(self.known)
        if self.halvings:
            self.notes = ("large holes are filled with copies of patches that are known",)

    @property
    def kinds_of_passes(self) -> tuple[Passes, ...]:
        """One for each part of the estimates from patches; the turns to the data between them take little."""
        if self.known is not None and self.halvings:
            return patch_copies.kinds_of_passes(self.known, self.halvings)
        return (similar_patches.kind_of_passes(self.scene, self.rounds),)

    def finish(self, draw: Callable[..., Tensor], average: Tensor) -> Generator[None, int | None, Tensor]:
        """Take patches and data in turns, from the average of the iterates, or fill large holes with copies."""
        if self.known is not None and self.halvings:
            return (yield from patch_copies.fill(self.degradation, average, self.halvings, self.seed))
        x = yield from in_turns(self.degradation, self._widened(average), self.rounds)
        return crop(x, *self.size)

    def drawing(self, picture: Tensor) -> Objective:
        """Fit the network of the answer to the picture, which is its input."""
        return Redrawn(self._widened(picture), picture.shape[1])

    def _widened(self, picture: Tensor) -> Tensor:
        """Continue a picture into the border of the scene."""
        rows, columns = self.border
        return pad(picture, (columns, columns, rows, rows), mode="replicate") if rows or columns else picture


def in_turns(degradation: Degradation, x: Tensor, rounds: int) -> Generator[None, int | None, Tensor]:
    """Make a picture of its patches and bring it near to what was measured, so many times.

    Parameters
    ----------
    degradation : Degradation
    x : Tensor
        A first estimate of the scene, ``(1, C, *degradation.scene)``.
    rounds : int

    Returns
    -------
    Tensor
        What the patches of the last round make, of the shape of x, with the known pixels that the result keeps.
    """
    keeps = degradation.kept is not None  # what is known, as it is
    noise = LEAST_NOISE if keeps else degradation.deviation(x)
    least = noise if degradation.is_picture else 0.0
    first, last = FIRST_OF_HOLES if keeps else max(FIRST, least), max(LAST, least)
    v = x
    for number in range(rounds):
        deviation = first * (last / first) ** (number / max(rounds - 1, 1))
        v = yield from similar_patches.estimate(x, v, NoiseModel(deviation**2))
        if number == rounds - 1:
            break
        x = degradation.composite(v) if keeps else nearest(degradation, v, PART * (noise / deviation) ** 2)
    return degradation.composite(v)


@torch.no_grad()
def nearest(degradation: Degradation, v: Tensor, weight: float) -> Tensor:
    """Minimise ``degradation.distance(x) + weight ||x - v||^2`` by conjugate gradients, from v.

    Where the distance is no quadratic, as that to the boxes of a JPEG file, directions are those of Polak and Ribiere,
    and steps those of the quadratic along them.
    """

    def descent(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(degradation.distance(x), x)
        return -gradient / 2 - weight * (x - v)

    x, r = v, descent(v)
    p = r
    for _ in range(STEPS):
        curvature = total(p * (r - descent(x + p)))
        if not curvature > 0:
            break
        x = x + p * (total(r * p) / curvature)
        r, before = descent(x), r
        p = r + p * (total(r * (r - before)) / total(before.square())).clamp(min=0)
    return x
