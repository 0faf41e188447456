"""Measures the noise of pictures: how much of it there is, and whether it grows with the true value."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, unfold

from dip_fast import large
from dip_fast.fitting.blur import blur
from dip_fast.fitting.noise_model import NoiseModel, cut_off
from dip_fast.fitting.pieces import pieces

PIXELS = 2**22  # of a picture that is looked at as a whole
WINDOW, WINDOWS = 512, 4  # side of a window of a larger one, and how many there are along each side
SIDES = (8, 4, 2)  # of patches, in pixels; the first of which there are enough is taken
ENOUGH = 1000
PATCHES = 2**15  # of a channel are looked at, or up to four times as many
BANDS = 5  # one in so many holds the least of the picture
QUIET = 0.1  # the part of the patches with the least structure, which are measured
# Even quiet bands of quiet patches hold some of the picture: deviations measured in ten photographs with noise of 5 to
# 50 levels were 0.8% too large on the mean, from 0.8% too small to 3% too large.
TOO_LARGE = 1.008
# White noise has the same variance in all bands, and a texture grows from those with the least of it to the next: by a
# factor of 1.65 in grass, 1.8 in gravel, 1.3 to 2.7 in photographs.  An excess of `UNSURE` may be chance, one of twice
# as much counts fully; at least `LEAST_PART` of the variance is noise.
STEEP, UNSURE, LEAST_PART = 1.65, 0.05, 0.04
LEVELS = 8
FEWEST = 25  # quiet patches of a level
ROUNDS = 3
# A slope is one if it is so many times its error, and the noise of the lights has so much more variance.  Slopes of
# equal noise (5 to 50 levels, eleven pictures): 0.8 times their error and 1.1 at most; of 30 counts: 13 times and 2 at
# least in pictures, 3 to 5 times in four textures of few levels.
SIGNIFICANT, GROWTH = 4.0, 1.4
# Less than half a level of 8 bits is no noise that a file holds.  Ratios: 0.96 to 1.15 for white noise of 5 to 25
# levels, up to 2.7 where texture is as fine, 1.4 to 3.6 for clean pictures; 4.8 to 7 for six pictures of cameras.
LEAST_COARSE, COARSER = 0.5 / 255, 4.0
# How much more quiet squares may vary: 0.7 to 1.1 times as much for these cameras, where noise is all there is in them,
# and 1.3 to 8 times for clean pictures of fur, bricks and print, whose noise at half scale is their detail.
QUIET_SQUARES = 1.2
# Side in pixels of the squares in which correlated noise is alone where they are quiet, and how far above it the noise
# of the rest may lie: 1.4 to 4.7 times for six pictures of cameras.
SQUARE, ABOVE_QUIET = 16, 3.0
LEAST = torch.finfo(torch.float32).eps  # the samples are rounded to this; less is the rounding of the components


@dataclass(frozen=True)
class Patches:
    """What is known of patches, each flat.

    Attributes
    ----------
    level, variance, beyond, structure : Tensor
        Mean; mean square in the bands with the least of the picture, and in as many next ones; rank of the rest among
        the patches of a picture's channel, from 0 to 1.
    numbers : float
        How many independent numbers the variance of a patch is worth, for neighbours overlap.
    """

    level: Tensor
    variance: Tensor
    beyond: Tensor
    structure: Tensor
    numbers: float

    def __len__(self) -> int:
        """Count them."""
        return len(self.level)

    def __getitem__(self, chosen: Tensor) -> Patches:
        """Choose some, by a mask or by indices."""
        values = {name: getattr(self, name)[chosen] for name in ("level", "variance", "beyond", "structure")}
        return replace(self, **values)

    def quiet(self) -> Patches:
        """Choose those with the least structure."""
        count = max(1, math.ceil(QUIET * len(self)))
        return self[self.structure.argsort(stable=True)[:count]] if len(self) else self

    def part_of_noise(self) -> float:
        """Tell how much of the variance is noise, by what is beyond.

        Of ``v = s^2 + t`` and ``w = s^2 + k t``, with `STEEP` for k, t is ``(w / v - 1) / (k - 1)`` of v.
        """
        variance, beyond = float(self.variance.sum()), float(self.beyond.sum())
        if not variance:
            return 1.0
        chance = math.sqrt(4 / (len(self) * self.numbers))
        excess = beyond / variance - 1
        seen = (excess - max(UNSURE, 2 * chance)) / UNSURE
        return max(1 - excess * min(max(seen, 0.0), 1.0) / (STEEP - 1), LEAST_PART)


def measure_noise(y: Tensor, *, grows: bool | None = None, known: Tensor | None = None) -> NoiseModel:
    """Measure independent noise of variance ``a + b x`` in a picture, or in several at once.

    White noise has the same variance in all directions that a patch can vary in, and what it is in one tells nothing of
    the others.  Those bands in which the picture varies least, by its principal components, are measured in the patches
    that vary least in all others.  Where as many next bands hold more, so much of it is texture as fine as noise, which
    is taken off.  Patches in which noise is cut off at an end of the range are left out.

    Parameters
    ----------
    y : Tensor
        A picture or several with the same noise, ``(N, C, H, W)``, range [0, 1].
    grows : bool, optional
        Whether the variance is proportional to x, or does not depend on it; by default what the levels say.
    known : Tensor, optional
        Samples that count, bool, of the shape of y; all by default.

    Returns
    -------
    NoiseModel

    Notes
    -----
    Texture that is white, everywhere, is taken for noise.

    References
    ----------
    N. N. Ponomarenko et al., "An automatic approach to lossy compression of AVIRIS images", IGARSS 2007,
    doi:10.1109/IGARSS.2007.4422833: high bands of the blocks whose low bands hold the least.
    S. Pyatykh, J. Hesser, L. Zheng, "Image Noise Level Estimation by Principal Component Analysis", IEEE TIP 22 (2013),
    doi:10.1109/TIP.2012.2221728.
    """
    return _measured(y, grows, known)


def _measured(y: Tensor, grows: bool | None, known: Tensor | None, *, texture_is_noise: bool = False) -> NoiseModel:
    """Measure noise; texture as fine as that can count as noise."""
    patches = _patches(y, known)
    deviation = _deviation(patches)
    low = high = False
    inner = patches
    for _ in range(ROUNDS):
        low, high = cut_off(y, deviation)
        inner = patches[_inner(patches.level, deviation, low=low, high=high)]
        deviation = _deviation(inner)
    model = NoiseModel(deviation**2, 0.0, low, high)
    if grows is not False:
        a, b, black = _line(inner, through_zero=bool(grows))
        model = NoiseModel(a, b, low, high, black) if b > 0 else model
    quiet = inner.quiet()
    expected = float(model.variance_at_mean(quiet.level).sum())  # with what is cut off
    share = float(quiet.variance.sum()) / expected / TOO_LARGE**2 if expected else 1.0
    share *= 1.0 if texture_is_noise else quiet.part_of_noise()
    return replace(model, a=share * model.a, b=share * model.b)


def is_correlated(y: Tensor, known: Tensor | None = None) -> bool:
    """Find whether the noise of neighbouring pixels is alike, as in a camera's JPEG file or an enlarged picture.

    White noise keeps its density when pixels are averaged by fours; what compression or interpolation took from the
    finest scale is missing there alone.  But where even quiet squares hold more, it is the picture that is alike.

    Parameters
    ----------
    y, known : Tensor
        As in `measure_noise`.
    """
    if min(y.shape[2:]) < 32 or all(bool((y[:, :, r] == y[:, :, :1, :1]).all()) for r in large.bands(y.shape, 2)):
        return False
    fine = _measured(y, False, known, texture_is_noise=True).deviation
    seen = None if known is None else avg_pool2d(known.to(y.dtype), 2) == 1
    coarse = 2 * _measured(_halved(y), False, seen, texture_is_noise=True).deviation
    if coarse < LEAST_COARSE or coarse <= COARSER * fine:
        return False
    return math.sqrt(_quiet_variance(y)) < QUIET_SQUARES * coarse


def _halved(y: Tensor) -> Tensor:
    """Average pixels by fours."""
    halved = large.tensor((*y.shape[:2], y.shape[2] // 2, y.shape[3] // 2), y)
    for rows in large.bands(halved.shape, 2):
        halved[:, :, rows] = avg_pool2d(y[:, :, 2 * rows.start : 2 * rows.stop], 2)
    return halved


def correlated_noise(y: Tensor, A: Tensor) -> NoiseModel:
    """Measure correlated noise by what a prediction from farther pixels leaves of it.

    Parameters
    ----------
    y, A : Tensor
        Noisy samples and their predictions, ``(1, C, H, W)``.

    Returns
    -------
    NoiseModel
        Of twice the deviation of the residual in its median: the prediction follows the noise by about half.  But no
        more than a few times what quiet squares vary, for the prediction also misses what is in a picture.
    """
    residual = large.tensor(tuple(y.shape), y)
    for seen, inner, place in pieces((y.shape[2], y.shape[3]), 6):
        residual[place] = blur((large.part(y, seen) - large.part(A, seen)).square(), 2.0)[inner]
    return NoiseModel(min(4 * _median(residual), ABOVE_QUIET**2 * _quiet_variance(y)))


def _median(values: Tensor) -> float:
    """Find the lower median of many numbers, none of them negative, without a copy of them.

    Their bits are in the same order as integers, so it is enough to count first by the upper half of these, and then by
    the lower half where the upper one is that of the median.
    """
    bits, below = values.flatten().view(torch.int32), (values.numel() - 1) // 2
    halves: list[int] = []
    for _ in range(2):
        counts = torch.zeros(2**16, dtype=torch.int64, device=values.device)
        for place in large.bands(bits.shape):
            part = bits[place]
            counts += (part[part >> 16 == halves[0]] & 0xFFFF if halves else part >> 16).bincount(minlength=2**16)
        up_to = counts.cumsum(0)
        halves.append(int((up_to <= below).sum()))
        below -= int(up_to[halves[-1]] - counts[halves[-1]])
    return float(torch.tensor(halves[0] << 16 | halves[1], dtype=torch.int32).view(torch.float32))


def _quiet_variance(y: Tensor) -> float:
    """Compute the mean variance of the squares that vary least, but for flat ones, which hold nothing."""
    side, found = min(SQUARE, *y.shape[2:]), []
    for window in _windows(y):
        mean, power = (avg_pool2d(values, side, SQUARE // 4) for values in (window.double(), window.double().square()))
        found.append((power - mean.square()).flatten())
    variance = torch.cat(found)
    variance = variance[variance > LEAST].sort().values
    return float(variance[: math.ceil(QUIET * len(variance))].mean()) if len(variance) else 0.0


def _windows(picture: Tensor) -> list[Tensor]:
    """Choose windows that stand for a large picture, evenly; of a smaller one, the whole."""
    height, width = picture.shape[2:]
    if height * width <= PIXELS:
        return [picture]
    rows, columns = (torch.linspace(0, max(n - WINDOW, 0), WINDOWS).long().tolist() for n in (height, width))
    return [picture[..., top : top + WINDOW, left : left + WINDOW] for top in rows for left in columns]


def _patches(y: Tensor, known: Tensor | None) -> Patches:
    """Look at the patches of pictures: the largest of which there are enough, all known if there are such."""
    seen = y if known is None else y.masked_fill(~known, math.nan)
    pictures = [_windows(picture) for picture in seen.split(1)]
    pixels = sum(window[0, 0].numel() for windows in pictures for window in windows)
    channels = [[window[0, n] for window in windows] for windows in pictures for n in range(y.shape[1])]
    for side in SIDES:
        stride = max(1, math.isqrt(pixels // PATCHES))
        parts = zip(*(_of_channel(windows, side, stride) for windows in channels), strict=True)
        level, variance, beyond, structure = (torch.cat(values) for values in parts)
        numbers = max(1, (side**2 - 1) // BANDS) * min(1.0, 2 * stride**2 / side**2)
        found = Patches(level, variance, beyond, structure, numbers)
        if len(found) >= ENOUGH:
            return found
    return found if len(found) or known is None else _patches(y, None)


def _of_channel(windows: list[Tensor], side: int, stride: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute level, variance, beyond and structure, see `Patches`, of the patches of a picture's channel, in float64.

    Patches with NaN are left out, and flat ones, which hold nothing.  The bands are the principal components of one
    half of the picture for the other: those with the least of many that scatter would be too small.
    """
    parts, halves = [], []
    for window in windows:
        if min(window.shape) < side:
            continue
        cut = unfold(window[None, None].double(), side, stride=stride)[0].T
        rows, columns = (
            torch.arange(0, n - side + 1, stride, device=window.device) // (4 * side) for n in window.shape
        )
        holds = cut.amax(1) > cut.amin(1)
        parts.append(cut[holds])
        halves.append(((rows[:, None] + columns) % 2 == 0).flatten()[holds])
    if sum(map(len, parts)) < 2:
        return (windows[0].new_empty(0, dtype=torch.float64),) * 4
    patches, half = torch.cat(parts), torch.cat(halves)
    level = patches.mean(1)
    patches -= level[:, None]
    variance, beyond, structure = (torch.empty_like(level) for _ in range(3))
    count = max(1, (side**2 - 1) // BANDS)
    following = count if count > 1 else 0  # in patches of 2x2 pixels the next band holds slopes
    for mine, other in ((half, ~half), (~half, half)):
        others = patches[other] if other.any() else patches
        bands = torch.linalg.eigh(others.T @ others).eigenvectors[:, 1:]  # the first is the mean's
        squares = (patches[mine] @ bands[:, : count + following]).square()
        variance[mine] = squares[:, :count].mean(1)
        beyond[mine] = squares[:, count:].mean(1) if following else variance[mine]
        structure[mine] = patches[mine].square().sum(1) - squares.sum(1)
    return level, variance, beyond, structure.argsort().argsort().double() / len(level)


def _deviation(patches: Patches) -> float:
    """Compute the deviation of the noise of patches from the quiet ones; 0 if it is rounding."""
    deviation = math.sqrt(patches.quiet().variance.mean()) if len(patches) else 0.0
    return deviation if deviation > LEAST else 0.0


def _inner(level: Tensor, deviation: float, *, low: bool, high: bool) -> Tensor:
    """Choose the patches whose noise is hardly cut off; if there are few, those nearer to the ends, or all."""
    for reach in (2.0, 1.0):
        inner = (level > reach * deviation if low else level > -math.inf) & (
            level < 1 - reach * deviation if high else level < math.inf
        )
        if int(inner.sum()) >= ENOUGH:
            return inner
    return torch.ones_like(level, dtype=torch.bool)


def _line(patches: Patches, *, through_zero: bool) -> tuple[float, float, float]:
    """Fit the variance as a line over the level, by weighted least squares; a slope of 0 if none is significant.

    The levels are quantiles.  The variance of a level, from the squares of n numbers, has a relative deviation of
    ``sqrt(2 / n)``.

    Returns
    -------
    a, b, black : float
        Of `NoiseModel`.  A line that falls to nothing above 0 shows a black level, as of a camera: half of the variance
        at the darkest level is taken for that of the camera, which the darkest level cannot tell from the light's.
    """
    rows = []
    for part in patches.level.argsort().tensor_split(LEVELS):
        quiet = patches[part].quiet()
        if len(quiet) >= FEWEST:
            variance = float(quiet.variance.mean())
            error = math.sqrt(2 / (len(quiet) * patches.numbers)) * max(variance, 1e-9)
            rows.append((float(quiet.level.mean()), variance, error))
    if len(rows) < 3:
        return 0.0, 0.0, 0.0
    x, variance, error = torch.tensor(rows, dtype=torch.float64).T
    columns = x[:, None] if through_zero else torch.stack((torch.ones_like(x), x), 1)
    weighted = columns / error[:, None]
    inverse = torch.linalg.pinv(weighted.T @ weighted)
    line = inverse @ (weighted.T @ (variance / error))
    slope, slope_error = float(line[-1]), float(inverse[-1, -1]) ** 0.5
    if through_zero:
        return 0.0, max(slope, 1e-9), 0.0
    ends = float(line[0] + slope * x.min()), float(line[0] + slope * x.max())
    if slope < SIGNIFICANT * slope_error or ends[1] < GROWTH * max(ends[0], 0.0):
        return 0.0, 0.0, 0.0
    if line[0] > -SIGNIFICANT * float(inverse[0, 0]) ** 0.5:
        return max(float(line[0]), 0.0), slope, 0.0
    darkest = max(ends[0], rows[0][1] / 4)
    return darkest / 2, slope, max(float(x.min()) - darkest / (2 * slope), 0.0)
