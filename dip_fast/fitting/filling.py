"""The masked objective for holes: the network sees fewer pixels than are known, and predicts the known ones it lacks.

A known pixel that is left out of the network's input looks as a hole does, and what the network should have drawn there
is known.  So it learns from the picture itself how its holes are filled, on squares in all orientations, and its error
where pixels were held out is that of the holes: quality shows without the truth.  Where much is missing single pixels
are left out.  Where little is, as under a text or in scratches, holes are wider than that, and what is left out has
their own shapes: it is what the holes hide when they are laid over the picture once more, at another place.

References
----------
Y. Quan et al., "Self2Self with Dropout", CVPR 2020, section 4.4.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator

import torch
from torch import Tensor

from dip_fast import large
from dip_fast.fitting import similar_patches
from dip_fast.fitting.blur import blur
from dip_fast.fitting.degradations import Mask
from dip_fast.fitting.masked import ORIENTATIONS, MaskedPrediction
from dip_fast.fitting.noise_model import NoiseModel
from dip_fast.fitting.objectives import Example, Passes
from dip_fast.fitting.patch_prior import in_turns
from dip_fast.fitting.pieces import pieces
from dip_fast.fitting.reductions import squared_errors, total
from dip_fast.fitting.results import psnr
from dip_fast.networks import network_input
from dip_fast.networks.network_input import NetworkInput, Part
from dip_fast.presets import Masking

HELD = 0.9  # of the known pixels, that are shown when the others tell the error, where single pixels are held out
MOST_COPIES = 8  # of the holes in a step
LEAST_WINDOW = 1.0  # pixels: deviation of the window that first fills a hole, where every third pixel is known


class MaskedFilling(MaskedPrediction):
    """The mean squared error of predictions of known pixels that were dropped from the network's input.

    Parameters
    ----------
    y : Tensor
        A picture, float32 ``(1, C, H, W)``, range [0, 1]; unknown pixels may hold anything finite.
    known : Tensor
        bool, ``(1, 1, H, W)``.
    masking, side, iterations, seed, networks
        As of `MaskedPrediction`.
    rounds : int
        Of patches that are alike and the known pixels, in turns, see `patch_prior`.
    """

    def __init__(
        self,
        y: Tensor,
        known: Tensor,
        masking: Masking,
        side: int,
        iterations: int,
        seed: int = 0,
        networks: int = 1,
        rounds: int = 0,
    ) -> None:
        super().__init__(y, NoiseModel(0.0), masking, side, iterations, seed=seed, networks=networks)
        self.shown = large.mapped_tensor(lambda known: known.to(y.dtype), known)
        self.rounds = rounds
        density = float(self.shown.mean())
        self.holes = 1 - density
        self.window = max(LEAST_WINDOW, 0.6 / math.sqrt(density * masking.keep))
        self.copies = copies(masking.keep, density)
        self.moved = known.to(y.dtype).roll((known.shape[2] // 4, known.shape[3] // 4), (2, 3))
        self.notes = ("predicting known pixels that the network does not see",)
        self.z = self._fixed()

    def _fixed(self) -> NetworkInput:
        """Show all that is known: the picture with its holes filled from around, and what is known."""
        picture = large.tensor(tuple(self.y.shape), self.y)
        for seen, inner, place in pieces(self.size, math.ceil(3 * self.window)):
            shown = self._show(large.part(self.y, seen), large.part(self.shown, seen))
            picture[place] = shown[:, : self.channels][inner]
        known = large.mapped_tensor(lambda shown: shown.to(torch.uint8), self.shown)
        return network_input.joined(network_input.of_image(picture, clipped=True), NetworkInput((Part(known, 1),)))

    def _show(self, picture: Tensor, kept: Tensor) -> Tensor:
        """Make a network input of the kept pixels: a weighted mean of those around fills the others."""
        weights = blur(kept, self.window)
        around = (blur(picture * kept, self.window) + 5e-7) / (weights + 1e-6)
        return torch.cat((torch.where(kept > 0, picture, around), kept), dim=1)

    def example(self, step: Tensor) -> Example:
        """Drop known pixels from a square of the picture."""
        return self._square(step, self.masking.keep)

    def _square(self, step: Tensor, keep: float) -> Example:
        """Cut out a square; the last channel of its target is 1 where a known pixel is not shown, else 0."""
        from dip_fast.ops import masking  # here, since it loads or builds the extension

        view = self.step_size[0], self.margin, keep, 1, self.seed, step
        picture = masking.masked_crop(self.y, *view)[1]
        mask, known = masking.masked_crop(self.shown, *view)
        kept = known if self.copies else mask[:, 1:] * known
        for copy in range(self.copies):
            # Steps of its own; with a margin that lets it lie anywhere.
            elsewhere = self.step_size[0], self.step_size[0] // 2, 1.0, 1, self.seed, step + (copy + 1) * 2**33
            kept = kept * masking.masked_crop(self.shown, *elsewhere)[1]
        return Example(self._show(picture, kept), torch.cat((picture, known - kept), dim=1))

    def loss(self, x: Tensor, example: Example) -> Tensor:
        """Compare the known pixels that the network did not see."""
        assert example.target is not None
        return self._error(x, example.target[:, : self.channels], example.target[:, self.channels :])

    def _error(self, x: Tensor, target: Tensor, asked: Tensor) -> Tensor:
        """Compute the mean squared error where it is asked for; 0 if that is nowhere, as within a hole."""
        return total(squared_errors(x, target) * asked) / (self.channels * total(asked)).clamp(min=1)

    def psnr_of_loss(self, loss: float) -> float | None:
        """Estimate the PSNR of a single prediction, whose error is that of the holes alone."""
        return psnr(self.holes * loss)

    @property
    def kinds_of_passes(self) -> tuple[Passes, ...]:
        """One for each orientation and network, with all known pixels and with some held out; those of the rounds."""
        drawn = Passes(2 * self.networks * ORIENTATIONS, self._pixels_drawn)
        return drawn, similar_patches.kind_of_passes(self.size, self.rounds)

    def finish(self, draw: Callable[..., Tensor], average: Tensor) -> Generator[None, int | None, Tensor]:
        """Draw the holes from all that is known, and held-out pixels to learn the error."""
        networks = self._networks(draw)
        drawn, _ = yield from self._drawn(networks, 1.0)
        held, kept = yield from self._drawn(networks, HELD)
        asked = large.mapped_tensor(torch.sub, self.shown, kept)
        errors = [float(self._error(held[at], self.y[at], asked[at])) for _, _, at in pieces(self.size, 0)]
        counts = [float(total(asked[at])) for _, _, at in pieces(self.size, 0)]
        if any(counts):  # of a few known pixels none may be held out
            error = sum(error * (count / sum(counts)) for error, count in zip(errors, counts, strict=True))
            self.predicted_psnr, self.estimated_psnr = psnr(error), psnr(self.holes * error)
            self.estimated_psnrs = (self.estimated_psnr,)
        known = Mask(self.y, large.mapped_tensor(lambda shown: shown > 0, self.shown))
        return (yield from in_turns(known, self.composite(drawn), self.rounds))

    def brief(self, draw: Callable[[Tensor], Tensor], passes: int, n: int = 0) -> Tensor:
        """Draw the holes in a few orientations."""
        work = self._drawn([draw], 1.0, min(passes, ORIENTATIONS))
        while True:
            try:
                next(work)
            except StopIteration as end:
                return self.composite(end.value[0])

    def _drawn(
        self, networks: list[Callable[[Tensor], Tensor]], keep: float, orientations: int = ORIENTATIONS
    ) -> Generator[None, int | None, tuple[Tensor, Tensor]]:
        """Average what the networks draw over the orientations; return that, and which pixels they saw."""
        drawn, seen = (large.tensor(tuple(like.shape), like, zero=True) for like in (self.y, self.shown))
        for made, (draw, number) in enumerate(itertools.product(networks, range(orientations)), start=1):
            for place, image, kept in self._pass(draw, 0, number, keep):
                drawn[place] += image
                seen[place] = kept
            if (yield) and made >= ORIENTATIONS:  # those of one network will do
                break
        return large.mapped_tensor(lambda drawn: drawn / made, drawn), seen

    def _window(self, n: int, top: int, left: int, orientation: int, keep: float, number: int) -> Tensor:
        """Show a window; all orientations have one mask."""
        from dip_fast.ops import masking  # here, since it loads or builds the extension

        side = self.step_size[0]
        view = n, top, left, side, side, orientation, keep, 1, self.seed, 0
        picture = masking.masked_window(self.y, *view)[1]
        mask, known = masking.masked_window(self.shown, *view)
        if self.copies:
            kept = known * masking.masked_window(self.moved, *view)[1] if keep < 1 else known
        else:
            kept = mask[:, 1:] * known
        return self._show(picture, kept)

    def composite(self, x: Tensor) -> Tensor:
        """Put known pixels back."""
        return large.mapped_tensor(lambda shown, y, x: torch.where(shown > 0, y, x), self.shown, self.y, x)

    @property
    def kept(self) -> tuple[Tensor, Tensor] | None:
        """Known pixels, which the result keeps."""
        return self.shown > 0, self.y


def copies(keep: float, density: float) -> int:
    """Count how often holes are laid over a picture to hide about as much as is to be hidden.

    Parameters
    ----------
    keep : float
        The part of the known pixels that is to be shown.
    density : float
        The part of the pixels that are known.

    Returns
    -------
    int
        0 where the holes would hide far more than that at once; single pixels are hidden then.
    """
    if keep <= 0 or density >= 1:
        return 0
    return min(round(math.log(keep) / math.log(density)), MOST_COPIES)
