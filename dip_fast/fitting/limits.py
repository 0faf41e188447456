"""The range of an x that nobody has seen: from a few steps of least squares on what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

STEPS = 10  # of conjugate gradients: enough for the range, and too few to bring out the noise
# What is taken for a picture in [0, 1]: noise and ringing leave that range, but hardly in the mean of 5x5 pixels.
LEAST_REACH, TOLERANCE, TOLERANCE_OF_PIXELS = 0.25, 0.25, 1.5
ROOM = 0.25  # of the estimate's range, at either end: it is blurred


def estimate(function: Callable[[Tensor], list[Tensor]], y: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor | None:
    """Minimise ``||A(x) - y||^2`` a little, from zero; None where A is not linear, or depends on nothing.

    Parameters
    ----------
    function : callable
        A, from a tensor to real ones.
    y : sequence of Tensor
        Real tensors.
    shape : tuple of int
        Of x.
    """
    x = torch.zeros(shape, device=y[0].device, requires_grad=True)
    try:
        at_zero = function(x)
        if not all(entry.requires_grad for entry in at_zero):
            return None
        found = _conjugate_gradients(function, at_zero, x, y)
        with torch.no_grad():
            closer = _distance(function(found.float()), y) < _distance(at_zero, y)  # it is not where A is not linear
    except RuntimeError:  # which the check of the gradient says in better words
        return None
    return found if closer and bool(found.isfinite().all()) else None


def _distance(made: Sequence[Tensor], y: Sequence[Tensor]) -> float:
    return sum(float((m - t).double().square().sum()) for m, t in zip(made, y, strict=True))


def _conjugate_gradients(
    function: Callable[[Tensor], list[Tensor]], at_zero: list[Tensor], x: Tensor, y: Sequence[Tensor]
) -> Tensor:
    """Solve the normal equations of the operator's linear part."""

    def adjoint(residual: list[Tensor]) -> Tensor:
        (gradient,) = torch.autograd.grad(at_zero, x, residual, retain_graph=True)
        return gradient.double()

    constant = [entry.detach() for entry in at_zero]
    residual = [t - c for t, c in zip(y, constant, strict=True)]
    solution = torch.zeros_like(x, dtype=torch.float64)
    direction = gradient = adjoint(residual)
    square = gradient.square().sum()
    for _ in range(STEPS):
        with torch.no_grad():
            image = [entry - c for entry, c in zip(function(direction.float()), constant, strict=True)]
        along = sum(entry.double().square().sum() for entry in image)
        if not square or not along:
            break
        length = square / along
        solution = solution + length * direction
        residual = [r - (length * i).to(r) for r, i in zip(residual, image, strict=True)]
        gradient = adjoint(residual)
        square, before = gradient.square().sum(), square
        direction = gradient + square / before * direction
    return solution


def limits_from(rough: Tensor | None, least: float | None = None) -> tuple[float, float]:
    """Choose limits: 0 and 1 for what may be a picture, else the range of the estimate with some room.

    Parameters
    ----------
    rough : Tensor or None
        The estimate of x.
    least : float, optional
        The lower limit, where it is known.
    """
    if rough is None:
        return 0.0, 1.0
    low, high = _range(rough)
    smooth_low, smooth_high = _range(avg_pool2d(rough, 5, 1, 2, count_include_pad=False))
    tolerated = smooth_low >= -TOLERANCE and smooth_high <= 1 + TOLERANCE
    tolerated &= low >= -TOLERANCE_OF_PIXELS and high <= 1 + TOLERANCE_OF_PIXELS
    if tolerated and smooth_high >= LEAST_REACH:
        return 0.0, 1.0
    if least is not None:
        low = least
    room = ROOM * (high - low)
    if not room > 0:
        return 0.0, 1.0
    return (low - room if least is None else least), high + room


def _range(values: Tensor) -> tuple[float, float]:
    low, high = np.quantile(values.detach().cpu().numpy(), (0.001, 0.999))
    return float(low), float(high)
