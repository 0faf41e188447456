"""The combination of a prediction with the noisy samples, by the local error of the prediction."""

from __future__ import annotations

import torch
from torch import Tensor

from dip_fast import large
from dip_fast.fitting.blur import blur
from dip_fast.fitting.estimated_error import estimated_error, share_of_samples
from dip_fast.fitting.noise_model import NoiseModel
from dip_fast.fitting.pieces import pieces
from dip_fast.fitting.results import psnr

UNBIASING = 1.0  # pixels: window in which the bias of noise that is cut off is taken
AROUND = 160  # pixels around a piece that its error map looks at


def combine(y: Tensor, A: Tensor, noise: NoiseModel, learned: float = 0.0) -> tuple[Tensor, Tensor, float, float]:
    """Combine a prediction with the noisy samples, by the local error of the prediction.

    Parameters
    ----------
    y, A : Tensor
        The noisy picture, and a prediction of each of its samples that does not depend on that sample's noise,
        ``(1, C, H, W)``.
    noise : NoiseModel
    learned : float
        How far a prediction follows the noise of its own sample, see `share_of_samples`.

    Returns
    -------
    x, y : Tensor
        The combination and the noisy samples, both without the bias of noise that is cut off.
    predicted_psnr, combined_psnr : float
        PSNR in dB of A and of x, estimated without the truth.
    """
    x, samples = (large.tensor(tuple(y.shape), y) for _ in range(2))
    errors = torch.zeros(2, dtype=torch.float64)
    for seen, inner, place in pieces((y.shape[2], y.shape[3]), AROUND):
        of_y, of_A = large.part(y, seen), large.part(A, seen)
        bias = _bias(of_A, noise)[inner]
        combined, *of_piece = _combine(of_y, of_A, noise, learned)
        x[place], samples[place] = combined[inner] - bias, of_y[inner] - bias
        errors += torch.tensor(of_piece, dtype=torch.float64) * (combined[inner].numel() / y.numel())
    predicted, mixed = errors.tolist()
    return x, samples, psnr(predicted), psnr(mixed)


def _combine(y: Tensor, A: Tensor, noise: NoiseModel, learned: float) -> tuple[Tensor, float, float]:
    """Combine a piece; in place of the PSNR there are mean squared errors."""
    own = noise.variance_at_mean(A)  # of the sample's own noise
    x = A + share_of_samples((y - A).square() - own, A, own, learned) * (y - A)
    return x, *estimated_error(y, A, noise.variance_at_mean(x), learned, noise.slope_at_mean(x))


def _bias(A: Tensor, noise: NoiseModel) -> Tensor:
    """Compute by how much the mean of noise that is cut off lies above the true value.

    The smoothed prediction is true enough to say so, and adds no error of its own.
    """
    level = blur(A, UNBIASING)
    return level - noise.value_at_mean(level)


def mean_variance(y: Tensor, noise: NoiseModel) -> float:
    """Compute the mean variance of a sample's own noise, at the values of the smoothed pictures, ``(N, C, H, W)``."""
    variance = 0.0
    for seen, inner, _ in pieces((y.shape[2], y.shape[3]), 6):
        own = noise.variance_at_mean(blur(large.part(y, seen), 2.0)[inner])
        variance += float(own.double().mean()) * own.numel() / y.numel()
    return variance
