"""Measures the noise of pictures: how much of it there is, and whether it grows with the true value."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import unfold

from dip_fast.fitting.blur import blur
from dip_fast.fitting.noise_model import NoiseModel, cut_off

SQUARES = 2**20  # are enough
WINDOW, WINDOWS = 512, 4  # side of a window of a large picture, and how many there are along each side
QUIET = 0.3  # the part of the squares of a level with the least structure, which are measured
LEVELS = 8
FEWEST = 200  # squares of a level: the deviation is known to 5%
ROUNDS = 3
ROUNDING = 1e-7  # magnitudes that differ by less are one
PATCH = 8  # side of a patch, in pixels
PATCHES = 2**15  # are enough
LEAST_EIGENVALUE = 0.4  # of their mean
FEWEST_PATCHES = 40  # for each sample of one: the eigenvalues of few scatter, and the smallest are chosen
# Less than a level of 8 bits is no noise that a file holds.  Ratios: 0.96 to 1.15 for white noise of 5 to 25 levels, up
# to 2.7 where texture is as fine; 3 to 6, or no noise at the finest scale, for six pictures of cameras.
FINEST, COARSER = 1 / 255, 2.9


def measure_noise(y: Tensor, *, grows: bool | None = None, known: Tensor | None = None) -> NoiseModel:
    """Measure independent noise of variance ``a + b x`` in a picture, or in several at once.

    The diagonal Haar coefficients of squares of four pixels hold the noise, and the least of the picture.  Their median
    magnitude over 0.6745 is the deviation of a Gaussian.  It is taken over the squares around which the smoothed
    picture varies least, which hold the least texture, at levels where no noise is cut off at an end of the range.

    Where there is texture everywhere that is too much.  Larger patches have directions in which the picture varies
    less: the smallest eigenvalues of their covariance.  Where those say less, they are right.

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
    Texture as fine as the noise is taken for noise: no statistic of one picture tells the two apart.

    References
    ----------
    D. L. Donoho, I. M. Johnstone, "Ideal spatial adaptation by wavelet shrinkage", Biometrika 81 (1994),
    doi:10.1093/biomet/81.3.425: the median.
    G. Chen, F. Zhu, P. A. Heng, "An Efficient Statistical Method for Image Noise Level Estimation", ICCV 2015,
    doi:10.1109/ICCV.2015.62: the eigenvalues.
    """
    windows = [window for picture in y.split(1) for window in _windows(picture)]
    of_known: list[Tensor] | list[None] = [None] * len(windows)
    if known is not None:
        of_known = [window for picture in known.split(1) for window in _windows(picture)]
    most = SQUARES // len(windows)
    squares = [_squares(window.double(), most, seen) for window, seen in zip(windows, of_known, strict=True)]
    detail, level, structure = (torch.cat(parts) for parts in zip(*squares, strict=True))
    deviation = _deviation(detail)
    for _ in range(ROUNDS):
        low, high = cut_off(y, deviation)
        inner = _inner(level, deviation, low=low, high=high)
        deviation = _deviation(detail[inner][_least(structure[inner])])
    a, b = deviation**2, 0.0
    if grows is not False:
        constant, slope = _line(detail[inner], level[inner], structure[inner], through_zero=bool(grows))
        if slope > 0:
            a, b = constant, slope
    share = _share_of_patches(windows, of_known, NoiseModel(a, b, low, high))
    return NoiseModel(share * a, share * b, low, high)


def is_correlated(y: Tensor, known: Tensor | None = None) -> bool:
    """Find whether the noise of neighbouring pixels is alike, as in a camera's JPEG file or an enlarged picture.

    White noise keeps its density when pixels are averaged by fours; what compression or interpolation took from the
    finest scale is missing there alone.  Without noise at that scale there is no telling, and the answer is yes, but
    for flat pictures.

    Parameters
    ----------
    y, known : Tensor
        As in `measure_noise`.
    """
    if min(y.shape[2:]) < 32 or torch.equal(y.amin((2, 3)), y.amax((2, 3))):
        return False
    fine = measure_noise(y, grows=False, known=known).deviation
    seen = None if known is None else torch.nn.functional.avg_pool2d(known.to(y.dtype), 2) == 1
    coarse = 2 * measure_noise(torch.nn.functional.avg_pool2d(y, 2), grows=False, known=seen).deviation
    return fine < FINEST or coarse > COARSER * fine


def correlated_noise(y: Tensor, A: Tensor) -> NoiseModel:
    """Measure correlated noise by what a prediction from farther pixels leaves of it.

    Parameters
    ----------
    y, A : Tensor
        Noisy samples and their predictions, ``(1, C, H, W)``.

    Returns
    -------
    NoiseModel
        Of twice the deviation of the residual where it is least: the prediction follows the noise by about half.
    """
    return NoiseModel(4 * float(blur((y - A).square(), 2.0).median()))


def _windows(picture: Tensor) -> list[Tensor]:
    """Choose windows that stand for a large picture, evenly; of a smaller one, the whole."""
    height, width = picture.shape[2:]
    if height * width <= 4 * SQUARES:
        return [picture]
    rows, columns = (torch.linspace(0, max(n - WINDOW, 0), WINDOWS).long().tolist() for n in (height, width))
    return [picture[..., top : top + WINDOW, left : left + WINDOW] for top in rows for left in columns]


def _squares(y: Tensor, most: int, known: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Compute diagonal Haar coefficient, mean of the smoothed picture and its variation for squares, each flat.

    There are less than twice as many as `most`, and only of known samples where there are such squares.
    """
    smooth = blur(y, 2.0)

    def corners(image: Tensor) -> tuple[Tensor, ...]:
        even = image[..., : image.shape[-2] // 2 * 2, : image.shape[-1] // 2 * 2]
        return tuple(even[..., i::2, j::2] for i in (0, 1) for j in (0, 1))

    p, q, r, s = corners(y)
    level = torch.stack(corners(smooth)).mean(0)
    variation = blur((level - blur(level, 2.0)).square(), 2.0).mean(1, keepdim=True).expand_as(level)
    values = [entry.flatten() for entry in ((p - q - r + s) / 2, level, variation)]
    if known is not None:
        seen = torch.stack(corners(known)).all(dim=0).flatten()
        values = [entry[seen] for entry in values] if seen.any() else values
    chosen = slice(None, None, max(1, values[0].numel() // max(1, most)))
    detail, level, variation = (entry[chosen] for entry in values)
    return detail, level, variation


def _deviation(detail: Tensor) -> float:
    """Compute the deviation of normal numbers from their median magnitude.

    Samples of few bits have few magnitudes; so the median is taken within the step that holds it.
    """
    if not detail.numel():
        return 0.0
    order = detail.abs().sort().values
    median, middle = order[len(order) // 2], len(order) / 2
    below, above = int((order < median - ROUNDING).sum()), int((order > median + ROUNDING).sum())
    if not (below and above):
        return float(median) / 0.6745
    step = float(order[-above] - order[below - 1]) / 2
    equal = len(order) - above - below
    return (float(median) + step * ((middle - below) / equal - 0.5)) / 0.6745


def _share_of_patches(windows: list[Tensor], known: list[Tensor] | list[None], noise: NoiseModel) -> float:
    """Compute the noise that patches hold over that of a model; 1 where it is more, or patches do not tell.

    The eigenvalues of white noise lie around its variance, those of the picture above: as long as the mean of the
    eigenvalues is above their median, the largest is the picture's.  Where those that are left differ much, the noise
    is not white.  Channels are looked at one by one: of texture and noise that all have in common, as in a gray
    picture, together they would show nothing.
    """
    found = expected = 0.0
    for channel in range(windows[0].shape[1]):
        of_channel = slice(channel, channel + 1)
        patches = torch.cat(
            [
                _patches(
                    window[:, of_channel],
                    None if seen is None else seen.expand_as(window)[:, of_channel],
                    noise,
                    len(windows),
                )
                for window, seen in zip(windows, known, strict=True)
            ]
        )
        if len(patches) < FEWEST_PATCHES * patches.shape[1]:
            continue
        eigenvalues = torch.linalg.eigvalsh(patches.T.cov())
        while len(eigenvalues) > 1 and eigenvalues.mean() > eigenvalues.median():
            eigenvalues = eigenvalues[:-1]
        if eigenvalues[0] > LEAST_EIGENVALUE * eigenvalues.mean():
            found += float(eigenvalues.mean())
            expected += float(noise.variance_at_mean(patches.mean(1)).mean())  # some samples are cut off in any case
    return min(1.0, found / expected) if expected else 1.0


def _patches(y: Tensor, known: Tensor | None, noise: NoiseModel, windows: int) -> Tensor:
    """Cut known patches out of a channel where its noise is hardly cut off, ``(patches, samples)``, in float64."""
    if min(y.shape[2:]) < PATCH:
        return y.new_empty((0, PATCH * PATCH), dtype=torch.float64)
    stride = max(1, math.isqrt(y.numel() * windows // PATCHES))
    patches, levels = (unfold(image, PATCH, stride=stride)[0].T for image in (y.double(), blur(y.double(), 2.0)))
    reach = 2 * noise.deviation
    inner = torch.ones(len(patches), dtype=torch.bool, device=y.device)
    if noise.low:
        inner &= levels.amin(1) > reach
    if noise.high:
        inner &= levels.amax(1) < 1 - reach
    if known is not None:
        inner &= unfold(known.double(), PATCH, stride=stride)[0].T.amin(1) == 1
    return patches[inner]


def _inner(level: Tensor, deviation: float, *, low: bool, high: bool) -> Tensor:
    """Choose the squares whose noise is hardly cut off; if there are few, those nearer to the ends, or all."""
    for reach in (2.0, 1.0):
        inner = (level > reach * deviation if low else level > -math.inf) & (
            level < 1 - reach * deviation if high else level < math.inf
        )
        if int(inner.sum()) >= FEWEST / QUIET:
            return inner
    return torch.ones_like(level, dtype=torch.bool)


def _least(structure: Tensor) -> Tensor:
    """Choose the squares with the least structure."""
    count = max(1, math.ceil(QUIET * structure.numel()))
    return structure <= structure.kthvalue(count).values


def _line(detail: Tensor, level: Tensor, structure: Tensor, *, through_zero: bool) -> tuple[float, float]:
    """Fit the variance as a line over the level, by weighted least squares; a slope of 0 if none is significant.

    The levels are quantiles.  The variance of a level, from n squares, has a relative deviation of ``sqrt(5.4 / n)``,
    since a median is 0.37 as efficient as the mean square.
    """
    order = level.argsort()
    rows = []
    for part in order.tensor_split(LEVELS):
        quiet = part[_least(structure[part])] if len(part) else part
        if len(quiet) >= FEWEST / LEVELS:
            variance = _deviation(detail[quiet]) ** 2
            rows.append((float(level[quiet].mean()), variance, math.sqrt(5.4 / len(quiet)) * max(variance, 1e-9)))
    if len(rows) < 3:
        return 0.0, 0.0
    x, variance, error = torch.tensor(rows, dtype=torch.float64).T
    columns = x[:, None] if through_zero else torch.stack((torch.ones_like(x), x), 1)
    weighted = columns / error[:, None]
    inverse = torch.linalg.pinv(weighted.T @ weighted)
    line = inverse @ (weighted.T @ (variance / error))
    slope, slope_error = float(line[-1]), float(inverse[-1, -1]) ** 0.5
    if through_zero:
        return 0.0, max(slope, 1e-9)
    ends = float(line[0] + slope * x.min()), float(line[0] + slope * x.max())
    if slope < 5 * slope_error or ends[1] < 2 * max(ends[0], 0.0):
        return 0.0, 0.0
    return max(float(line[0]), 0.0), slope
