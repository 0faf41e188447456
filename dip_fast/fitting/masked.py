"""The masked objective: the network sees a picture with holes and predicts what was in them.

A network that is compared with samples that it does not see learns the picture and no noise, as far as the noise of a
sample cannot be told from its neighbours.  It does not have to be stopped in time, and nothing in it is bound to a
place: it learns from crops, whose number and size do not grow with the picture, nor with the number of pictures of one
kind: one network learns from crops of them all.

The *prediction* A is the mean of the network's images over many masks, each sample from the masks that dropped it, so
it owes nothing to the noise n of its own sample ``y = c + n``.  Hence two things follow:

    E (y - A)^2 = v + s^2            the error v of the prediction shows without the truth c
    x = A + v / (v + s^2) (y - A)    the best linear combination of both has the error v s^2 / (v + s^2)

References
----------
J. Batson, L. Royer, "Noise2Self", arXiv 1901.11365.
Y. Quan et al., "Self2Self with Dropout", CVPR 2020.
S. Laine et al., "High-Quality Self-Supervised Deep Image Denoising", arXiv 1901.10277: the combination.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dip_fast import large
from dip_fast.fitting import along_time, guide, similar_patches
from dip_fast.fitting.blur import blur
from dip_fast.fitting.combining import combine, mean_variance
from dip_fast.fitting.noise_level import correlated_noise
from dip_fast.fitting.noise_model import NoiseModel
from dip_fast.fitting.objectives import Example, Objective, Passes
from dip_fast.fitting.pieces import pieces
from dip_fast.fitting.redrawing import Redrawn, RedrawnSquares, whole
from dip_fast.fitting.reductions import squared_errors, total
from dip_fast.fitting.results import psnr
from dip_fast.presets import Masking

CORRELATED = "noise is alike in neighbouring pixels: predicting squares of them"
NO_GUIDE = "the guide is not used: the error that it is weighed by is known of independent noise alone"
ORIENTATIONS = 8
# Side of the squares that a large picture is redrawn in: smaller ones differ more in their statistics, which are frozen
# at their mean.  House, sigma 25, lost 0.1 dB in squares of 256 and 1.1 dB in squares of 128.
SIDE = 512
OVERLAP = 16  # pixels of a window next to its ends, which lack neighbours
# How far a prediction follows its own sample's noise, which the weights learn in part: this times the steps, over the
# pixels.  Measured with the truth, as steps times it: 297 after 200 steps and 428 after 400 (house, 256x256), 418 after
# 300 (F16, 512x512), 1020 after 600 (F16, 256x256).
LEARNED = 1.5
# Correlated noise has up to nine times the variance of white noise in the directions in which patches vary.  Gains on
# x of three pictures of cameras by patches of twice / three / four times the deviation, twice: 0.39 / 0.68 / 0.80,
# 0.51 / 0.68 / 0.73 and 0.80 / 0.79 / 0.54 dB; by the deviation itself -0.05 to 0.
ALIKE_POWER, ALIKE_ROUNDS = 9.0, 2
BESIDE = 1.0  # pixels: deviation of the window of predictions that take the place of one that is missing
# Most masks of each of several pictures.  Against 64, with 4 pictures of 128x128 and sigma 10 to 50, 32 lose 0.04 to
# 0.06 dB of the answer in half of the time, and 16 lose 0.3 dB, since one sample in 36 is never dropped then.
# So do huge pictures, whose masks take most of an hour.
MASKS_OF_SEVERAL, HUGE = 32, 2**25
# How often their patches are estimated: once has 31.29 dB, twice 31.78, three times 31.92, and then averaged along time
# twice 32.21 and three times 32.24 (docs/notes/masked.md).
ROUNDS_OF_SEVERAL = 2


class MaskedPrediction(Objective):
    """The mean squared error of predictions of samples that were dropped from the network's input.

    A step sees a random square of one of the pictures in one of its eight orientations, and predicts the samples that a
    random mask drops: see `dip_fast.ops.masking.masked_crop`.

    Parameters
    ----------
    y : Tensor
        The noisy pictures, float32 ``(N, C, H, W)``, range [0, 1].
    noise : NoiseModel
        Of all of them.
    masking : Masking
    side : int
        Side of the squares; one that the network reads.
    iterations : int
        Steps of the fit.
    block : int
        Side of the squares of pixels that masks drop as a whole; 1 drops single samples.  Larger ones are for
        correlated noise, whose variance is then measured by what the prediction leaves.
    seed : int
        Of squares, orientations and masks.
    networks : int
        A network that makes too many steps with a picture learns its noise by heart, and each network another part of
        it; so several are fitted, and their predictions averaged.
    known : Tensor, optional
        Samples that are to be predicted, bool, of the shape of y: y has an estimate of the others.
    guides : Tensor, optional
        What another denoiser made of each picture, of the shape and the range of y, see `guide.mix`.  Not used where
        ``block`` is larger than 1.

    Attributes
    ----------
    predicted_psnr, estimated_psnr : float or None
        PSNR in dB of the prediction A and of its combination with the noisy samples, estimated without the truth, the
        mean over the pictures; None before, and where noise is correlated, of which the prediction owes something to
        its own sample's.  With guides the latter is that of the mixture.
    estimated_psnrs : tuple of float
        The latter for each picture.
    """

    draws_iterates = False
    shows_answer = True

    def __init__(
        self,
        y: Tensor,
        noise: NoiseModel,
        masking: Masking,
        side: int,
        iterations: int,
        block: int = 1,
        seed: int = 0,
        networks: int = 1,
        known: Tensor | None = None,
        guides: Tensor | None = None,
    ) -> None:
        height, width = y.shape[-2:]
        super().__init__(whole(y[:1], y.shape[1]), (height, width), y.shape[1])
        self.y = y
        self.known = None if known is None else known.to(y.dtype)
        self.pictures = len(y)
        self.masks = masks_of(masking, self.size, self.pictures)
        self.noise = noise
        self.block = block
        self.notes = (str(noise),) if block == 1 else (CORRELATED,) if guides is None else (CORRELATED, NO_GUIDE)
        self.guides = guides if block == 1 else None
        self.masking = masking
        self.networks = networks
        self.learned = min(LEARNED * iterations / networks / (len(y) * height * width), 0.1)
        self.step_size = (side, side)
        # A picture smaller than the square is mirrored around, over and over if need be.
        self.margin = max(masking.margin, -((min(height, width) - side) // 2))
        self.seed = seed
        self.predicted_psnr: float | None = None
        self.noise_variance = mean_variance(y, noise)

    def example(self, step: Tensor) -> Example:
        """Drop samples from a square of one of the pictures."""
        from dip_fast.ops import masking  # here, since it loads or builds the extension

        view = self.step_size[0], self.margin, self.masking.keep, self.block, self.seed, step
        z, target = masking.masked_crop(self.y, *view)
        if self.known is not None:  # what is not known counts as seen, which the loss does not ask for
            unknown = 1 - masking.masked_crop(self.known, *view)[1]
            z = torch.cat((z[:, : self.channels], torch.maximum(z[:, self.channels :], unknown)), dim=1)
        return Example(z, target)

    def loss(self, x: Tensor, example: Example) -> Tensor:
        """Compare the samples that the network did not see."""
        assert example.target is not None
        dropped = 1 - example.z[:, self.channels :]
        return total(squared_errors(x, example.target) * dropped) / total(dropped)

    def psnr_of_loss(self, loss: float) -> float | None:
        """Estimate the PSNR of a single prediction: what the loss is above the noise is its error."""
        error = loss - self.noise_variance  # which is not known as well as the error is small
        return psnr(error) if error > 0 and self.block == 1 else None

    @property
    def kinds_of_passes(self) -> tuple[Passes, ...]:
        """One for each mask of a prediction, and for each part of the estimates from patches."""
        masks = Passes(self.pictures * self.masks, self._pixels_drawn)
        patches = similar_patches.kind_of_passes(self.size, self.pictures * self._rounds)
        if not self._averages_along_time:
            return masks, patches
        return masks, patches, along_time.kind_of_passes(self.size, self.pictures)

    @property
    def _pixels_drawn(self) -> int:
        """Count the pixels of the windows of a pass."""
        side = self.step_size[0]
        return side**2 * math.prod(len(_windows(length, side, self.margin, 1)) for length in self.size)

    @property
    def _rounds(self) -> int:
        """Count the estimates from patches that are alike."""
        if self.block > 1:
            return ALIKE_ROUNDS
        return 1 if self.pictures == 1 else ROUNDS_OF_SEVERAL

    @property
    def _averages_along_time(self) -> bool:
        """Whether there are several pictures, and their errors are known."""
        return self.pictures > 1 and self.block == 1

    def finish(self, draw: Callable[..., Tensor], average: Tensor) -> Generator[None, int | None, Tensor]:
        """Predict each picture, combine it with its noisy samples, and estimate patches from those like them."""
        x, y, variances, predicted, estimated = [], [], [], [], []
        networks = self._networks(draw)
        for n in range(self.pictures):
            A = yield from self._predict(networks, n)
            if self.block > 1:
                x.append(A)
                y.append(self.y[n : n + 1])
                variances.append(correlated_noise(self.y[n : n + 1], A).a)
                continue
            combined, samples, psnr_of_prediction, psnr = self._combine(n, A)
            x.append(combined)
            y.append(samples)
            predicted.append(psnr_of_prediction)
            estimated.append(psnr)
        samples, noise = large.joined(y), self.noise
        if estimated:
            self.predicted_psnr = sum(predicted) / self.pictures
            self.estimated_psnr, self.estimated_psnrs = sum(estimated) / self.pictures, tuple(estimated)
        else:
            noise = NoiseModel(ALIKE_POWER * sum(variances) / self.pictures)
        z = large.joined(x)
        for _ in range(self._rounds):
            z = yield from similar_patches.estimate(samples, z, noise)
        if self._averages_along_time:
            z = yield from along_time.average(z, [10 ** (-psnr / 10) for psnr in estimated])
        return z if self.guides is None else self._mixed(samples, z, self.guides)

    def _mixed(self, y: Tensor, z: Tensor, guides: Tensor) -> Tensor:
        """Mix the guides into the estimates, but for samples that were set aside."""
        if self.known is not None:
            guides = torch.where(self.known > 0, guides, z)
        made = [guide.mix(y[n : n + 1], z[n : n + 1], guides[n : n + 1], self.noise) for n in range(self.pictures)]
        images, guide_psnrs, self.estimated_psnrs = zip(*made, strict=True)
        self.guide_psnr = sum(guide_psnrs) / self.pictures
        self.estimated_psnr = sum(self.estimated_psnrs) / self.pictures
        return large.joined(images)

    def _networks(self, draw: Callable[..., Tensor]) -> list[Callable[[Tensor], Tensor]]:
        """Make functions that draw with each of the networks that were fitted."""
        return [partial(draw, network=k) for k in range(self.networks)] if self.networks > 1 else [draw]

    def _combine(self, n: int, A: Tensor) -> tuple[Tensor, Tensor, float, float]:
        """Combine the prediction of a picture with its noisy samples, see `combine`."""
        y = self.y[n : n + 1]
        noise = self.noise if self.block == 1 else correlated_noise(y, A)  # of a first look
        return combine(y, A, noise, self.learned)

    def brief(self, draw: Callable[[Tensor], Tensor], passes: int, n: int = 0) -> Tensor:
        """Predict a picture with few masks, and combine it with its noisy samples."""
        work = self._predict([draw], n, passes)
        while True:
            try:
                next(work)
            except StopIteration as end:
                return self._combine(n, end.value)[0]

    def drawing(self, picture: Tensor) -> Objective:
        """Fit the network to a picture that is its own input, without holes; to squares of it, where it is large.

        At the noisy picture the network would have to learn by heart what the estimate says beyond it, and does not
        come near in a hundred steps.
        """
        masks = self.z.channels - self.channels
        if self.is_large:
            return RedrawnSquares(picture, self.drawing_size, self.margin, self.seed, masks)
        return Redrawn(picture, masks)

    @property
    def drawing_size(self) -> tuple[int, int]:
        """Height and width of the picture, or of a square of a large one."""
        if not self.is_large:
            return self.size
        return (SIDE, SIDE) if min(self.size) >= SIDE else self.step_size

    def _predict(
        self, networks: Sequence[Callable[[Tensor], Tensor]], n: int, masks: int | None = None
    ) -> Generator[None, int | None, Tensor]:
        """Average predictions of the dropped samples of a picture over masks, orientations and networks: A."""
        masks = masks or self.masks
        shape = tuple(self.y[:1].shape)
        predicted = large.tensor(shape, self.y, zero=True)
        count = large.tensor(shape, self.y, dtype=np.int16, zero=True)
        for number in range(masks):
            draw = networks[number // ORIENTATIONS % len(networks)]
            for place, image, kept in self._pass(draw, n, number, self.masking.keep):
                predicted[place] += image * (1 - kept)
                count[place] += kept < 0.5
            enough = yield
            if enough and number + 1 >= enough:
                break
        # With few masks some sample is never dropped.  What the network draws where it sees one has its noise, so the
        # predictions around have to do.
        A = large.tensor(shape, self.y)
        for seen, inner, place in pieces(self.size, math.ceil(3 * BESIDE)):
            times = large.part(count, seen)
            mean, dropped = large.part(predicted, seen) / times.clamp(min=1), (times > 0).to(predicted)
            around = blur(mean, BESIDE) / blur(dropped, BESIDE).clamp(min=1e-6)
            A[place] = torch.where(times > 0, mean, around)[inner]
        return A

    def _pass(
        self, draw: Callable[[Tensor], Tensor], n: int, number: int, keep: float
    ) -> Iterator[tuple[tuple, Tensor, Tensor]]:
        """Draw a picture with one mask, in windows as large as the squares of the steps.

        The statistics of batch norm are then those that the network has learned with, and the memory does not grow with
        the picture.  The windows overlap and are laid elsewhere in each pass, so they leave no seams.

        Yields
        ------
        place : tuple
            An index of the picture, ``(..., rows, columns)``; all of them together are the picture.
        image, kept : Tensor
            What the network draws there, and the mask, ``(1, C, h, w)``.
        """
        from dip_fast.ops import masking  # here, since it loads or builds the extension

        side, orientation = self.step_size[0], number % ORIENTATIONS
        places = [_windows(length, side, self.margin, number) for length in self.size]
        for (top, rows), (left, columns) in itertools.product(*places):
            z = self._window(n, top, left, orientation, keep, number)
            inner = (..., slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
            image = masking.oriented_back(draw(z), orientation)[inner]
            yield (..., rows, columns), image, masking.oriented_back(z[:, self.channels :], orientation)[inner]
            large.rest()

    def _window(self, n: int, top: int, left: int, orientation: int, keep: float, number: int) -> Tensor:
        """Show a window of a picture with the mask of a pass."""
        from dip_fast.ops import masking  # here, since it loads or builds the extension

        side = self.step_size[0]
        # Steps count from 1, so those below 1 have masks of their own.
        return masking.masked_window(
            self.y, n, top, left, side, side, orientation, keep, self.block, self.seed, -number
        )[0]


def masks_of(masking: Masking, size: tuple[int, int], pictures: int = 1) -> int:
    """Choose the masks of each of so many pictures."""
    is_much = pictures > 1 or math.prod(size) > HUGE
    return min(masking.passes, MASKS_OF_SEVERAL) if is_much else masking.passes


def _windows(length: int, side: int, margin: int, number: int) -> list[tuple[int, slice]]:
    """Lay windows over a length of the picture: where each begins, and the places that are taken from it.

    The places are at least OVERLAP from the ends of their window, but for windows that reach over the picture's edge by
    `margin`, as squares of the steps do at most.
    """
    if length <= side:
        return [((length - side) // 2, slice(0, length))]
    overlap = min(OVERLAP, side // 4)
    stride = side - 2 * overlap
    first = -(number * stride * 5 // 13 % stride)  # other seams in each pass
    windows = []
    for start in range(first, length, stride):
        begin = min(max(start - overlap, -margin), max(length + margin - side, -margin))
        windows.append((begin, slice(max(start, 0), min(start + stride, length))))
    return windows
