"""Anybody's forward operator with what it measured: ``y = A(x)``, where y may be anything but a picture."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from dip_fast.errors import UsageError
from dip_fast.fitting.adjoint import linear
from dip_fast.fitting.degradations import Degradation
from dip_fast.fitting.likelihoods import LOSSES
from dip_fast.fitting.limits import estimate, limits_from
from dip_fast.fitting.reductions import total
from dip_fast.values import integer, number

MOST_CHANNELS = 4  # of x, for patches: their covariance grows with the square of the channels
PART_OF_RESIDUAL = 0.5
LEAST_NOISE = 1e-3  # of y, in units of its root mean square
UNKNOWN_NOISE = 0.1  # a third of it perturbs z, which is the most that any noise does


def mapped(function: Callable[[Any], Tensor], y: Any) -> Any:
    """Apply a function to the tensors of y: a tensor, a list of them, or an object that has them as ``.x``."""
    if isinstance(getattr(y, "x", None), list):  # deepinv's TensorList
        return type(y)([function(entry) for entry in y.x])
    return [function(entry) for entry in y] if isinstance(y, list | tuple) else function(y)


def entries(y: Any) -> list[Tensor]:
    """List the tensors of y, complex ones as pairs of real numbers."""
    tensors = _tensors(y)
    for entry in tensors:
        if not isinstance(entry, Tensor):
            raise UsageError(
                f"A must return a tensor, or a list of them, got {type(entry).__name__}; write it in torch, or pass "
                "dip_fast.linear(A, A_adjoint, shape) for an operator on arrays"
            )
    return [torch.view_as_real(entry.resolve_conj()) if entry.is_complex() else entry for entry in tensors]


def as_measured(entry: Any) -> Tensor:
    """Copy an array or a tensor that was measured to a tensor of 32 bits a number."""
    try:
        tensor = torch.as_tensor(np.asarray(entry) if not isinstance(entry, Tensor) else entry).detach()
    except (TypeError, ValueError) as error:
        raise UsageError(f"y must be a tensor, an array, or a list of them, got {type(entry).__name__}") from error
    return tensor.to(torch.complex64 if tensor.is_complex() else torch.float32, copy=True)


def operator_of(physics: Any) -> Callable[[Tensor], Any]:
    """Return A of a physics: its ``A``, or itself."""
    function = getattr(physics, "A", physics)
    if not callable(function):
        raise UsageError(
            f"physics must be a function of x, or have a method A, got {type(physics).__name__}; for arrays pass "
            "dip_fast.linear(A, A_adjoint, shape)"
        )
    return function


class Measurement(Degradation):
    """A forward operator of anybody's, with what it measured.

    Compares by ``mean |A(x) - y|^2 / mean |y|^2``, summed over the entries of a list above and below the line: no unit
    of x or y matters.  x is real, ``(1, channels, height, width)``, and lies within `limits`.

    Parameters
    ----------
    physics : object or callable
        See `dip_fast.fit`.
    y : Tensor, ndarray, or list of them
    shape : tuple of int, optional
        ``(channels, height, width)`` or ``(height, width)`` of x.
    channels : int, optional
        Channels of x.
    limits : tuple of float, optional
        Least and largest value of x.
    loss : {"squares", "absolute", "poisson"} or callable, optional
    noise : float, optional
        Standard deviation of the noise in y.
    device : device or str
        Where A is computed; a Module is copied there.

    Attributes
    ----------
    y : Tensor or list of Tensor
        As given, in 32 bits a number.
    limits : tuple of float
        What 0 and 1 of the network stand for.

    Raises
    ------
    UsageError
        If A cannot be computed, has no gradient, or does not fit to y.
    """

    captures = False  # anybody's A may read tensors on the host
    is_picture = False

    def __init__(
        self,
        physics: Any,
        y: Any,
        *,
        shape: Sequence[int] | None = None,
        channels: int | None = None,
        limits: tuple[float, float] | None = None,
        loss: str | Callable[[Any, Any], Tensor] | None = None,
        noise: float | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if callable(getattr(physics, "matvec", None)) and not callable(getattr(physics, "A", None)):
            physics = linear(physics, shape=shape)
        self.device = torch.device(device)
        self.physics = _copied(physics, self.device)
        self.y = mapped(lambda entry: as_measured(entry).to(self.device), y)
        _require_finite(self.y)
        self._loss = _named_loss(loss, self.y)
        self._least = 0.0 if loss == "poisson" else None
        self.noise_of_y = _noise_of(physics) if noise is None else number("noise", noise, least=0.0)

        self._take_shape(self._shapes(shape, channels))
        self._scale = sum(float(entry.double().square().mean()) for entry in entries(self.y)) or 1.0
        self.limits = self._limits(limits)
        self._require_gradient()

    def to(self, device: torch.device | str) -> Self:
        """Copy the physics and y to a device; none is made where they lie there already."""
        if torch.device(device) == self.device:
            return self
        moved = copy.copy(self)
        moved.device = torch.device(device)
        moved.physics = _copied(self.physics, moved.device)
        moved.y = mapped(lambda entry: entry.to(device), self.y)
        return moved

    def in_units(self, x: Tensor) -> Tensor:
        """Convert an image of the network to the units of the physics."""
        low, high = self.limits
        return low + (high - low) * x

    def apply(self, x: Tensor) -> Any:
        """Compute A(x) of an image of the network."""
        return operator_of(self.physics)(self.in_units(x))

    @property
    def has_patches(self) -> bool:  # type: ignore[override]
        """Whether x is gray or in colours, and A(x) is compared with y by squares."""
        return self._loss is None and self.channels <= MOST_CHANNELS

    def data_term(self, x: Tensor) -> Tensor:
        """Compare A(x) with y, a scalar."""
        if self._loss is None:
            return LOSSES["squares"](entries(self.apply(x)), entries(self.y)) / self._scale
        return self._loss(self.apply(x), self.y)

    def distance(self, x: Tensor) -> Tensor:
        """Sum the squares of what A(x) is off from y, a scalar."""
        made = zip(entries(self.apply(x)), entries(self.y), strict=True)
        return sum((total((one - other).square()) for one, other in made), x.new_zeros(()))

    def deviation(self, x: Tensor) -> float:
        """Return the noise of y, which is not known unless it was given: then a part of what x is off."""
        with torch.no_grad():
            off = float(self.distance(x)) / sum(entry.numel() for entry in entries(self.y))
        least = LEAST_NOISE * self._scale**0.5
        return max(PART_OF_RESIDUAL * off**0.5 if self.noise_of_y is None else self.noise_of_y, least)

    def noise(self) -> float:
        """Return the deviation of the noise, in units of twice the root mean square of y: a picture's range."""
        return UNKNOWN_NOISE if self.noise_of_y is None else self.noise_of_y / (2 * self._scale**0.5)

    def _shapes(self, shape: Sequence[int] | None, channels: int | None) -> list[tuple[int, int, int]]:
        """List what the shape of x may be, the likeliest first: as given, of A_adjoint(y), as the physics has it, y."""
        candidates: list[Iterable[int]] = []
        if channels is not None:
            channels = integer("channels", channels, least=1)
        if shape is not None:
            if not isinstance(shape, Sequence):
                raise UsageError(f"shape must be (channels, height, width) or (height, width) of x, got {shape!r}")
            sides = tuple(shape[1:] if len(shape) == 4 and shape[0] == 1 else shape)  # of a batch of one
            candidates = [sides if len(sides) > 2 else (channels or 1, *sides)]
        else:
            adjoint = getattr(self.physics, "A_adjoint", None)
            if callable(adjoint):
                with contextlib.suppress(Exception):  # anybody's code, and only one of the ways
                    candidates.append(adjoint(self.y).shape[1:])
            candidates.append(getattr(self.physics, "img_size", None) or ())
            candidates += [tuple(entry.shape)[1:] for entry in _tensors(self.y)]
        found: list[tuple[int, int, int]] = []
        for candidate in candidates:
            sides = tuple(int(side) for side in candidate)
            if len(sides) == 3:
                found.append((channels or sides[0], sides[1], sides[2]))
            elif shape is not None:
                raise UsageError(
                    f"shape must be (channels, height, width) or (height, width) of x, got {tuple(shape)}; "
                    "only pictures of two dimensions can be fitted"
                )
        if not found:
            raise UsageError("the shape of x cannot be derived from y and A: give shape=(channels, height, width)")
        return list(dict.fromkeys(found))

    def _take_shape(self, shapes: list[tuple[int, int, int]]) -> None:
        """Set the first shape for which A gives the shape of y; else say what is wrong with the likeliest."""
        faults: list[UsageError] = []
        for shape in shapes:
            self.channels, self.size, self.limits = shape[0], shape[1:], (0.0, 1.0)
            try:
                with torch.no_grad():
                    self._require_like_y(self.apply(torch.full((1, *shape), 0.5, device=self.device)), shape)
                return
            except UsageError as error:
                faults.append(error)
            except Exception as error:  # anybody's code
                fault = UsageError(
                    f"A failed on x of {(1, *shape)} on {self.device}: {type(error).__name__}: "
                    f"{' '.join(str(error).split())}; A takes float32 tensors (1, channels, height, width): if x has "
                    "another shape, give shape=(channels, height, width); if A needs arrays, pass dip_fast.linear(A, "
                    "A_adjoint, shape); if it holds tensors of another device, give that device"
                )
                fault.__cause__ = error
                faults.append(fault)
        raise faults[0]

    def _require_like_y(self, made: Any, shape: tuple[int, ...]) -> None:
        """Refuse an A(x) of another shape than y; where only sides of 1 are missing, y takes the shape of A(x)."""
        entries(made)  # tensors, or a message
        ours, theirs = _tensors(self.y), _tensors(made)
        for mine, their in zip(ours, theirs, strict=False):
            if mine.dim() == their.dim() > 0 and (1, *mine.shape[1:]) == their.shape != mine.shape:
                raise UsageError(
                    f"y holds {mine.shape[0]} measurements, {tuple(mine.shape)}, and a fit is of one: pass "
                    "y[i : i + 1], or use dip_fast.interop.DeepImagePrior, which fits one after the other"
                )
        if [_without_ones(mine) for mine in ours] != [_without_ones(their) for their in theirs]:
            raise UsageError(
                f"A(x) must have the shape of y: of x {(1, *shape)} it gives {_described(made)}, and y is "
                f"{_described(self.y)}; give the shape of x, shape=(channels, height, width), or correct A"
            )
        if any(mine.is_complex() != their.is_complex() for mine, their in zip(ours, theirs, strict=True)):
            raise UsageError(
                f"A(x) and y must both be complex or both be real: A(x) is {_described(made)}, and y is "
                f"{_described(self.y)}; torch.view_as_real makes pairs of real numbers"
            )
        shapes = iter([their.shape for their in theirs])
        self.y = mapped(lambda entry: entry.reshape(next(shapes)), self.y)

    def _limits(self, limits: tuple[float, float] | None) -> tuple[float, float]:
        """Take the limits as given, or from a rough estimate of x."""
        if limits is None:
            rough = estimate(
                lambda x: entries(operator_of(self.physics)(x)), entries(self.y), (1, self.channels, *self.size)
            )
            return limits_from(rough, self._least)
        try:
            low, high = (float(limit) for limit in limits)
        except (TypeError, ValueError):
            low = high = 0.0
        if not -torch.finfo().max < low < high < torch.finfo().max:
            raise UsageError(f"limits must be the least and the largest value of x, got {limits}")
        return low, high

    def _require_gradient(self) -> None:
        """Refuse an A or a loss without a gradient, before a step is made with it."""
        x = torch.full((1, self.channels, *self.size), 0.5, device=self.device, requires_grad=True)
        hint = "write A in torch without .detach(), .numpy() and no_grad, or pass dip_fast.linear(A, A_adjoint, shape)"
        try:
            loss = self.data_term(x)
        except RuntimeError as error:
            text = " ".join(str(error).split())
            raise UsageError(f"A failed where a gradient is asked for: {text}; {hint}") from error
        if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
            raise UsageError(f"loss(A(x), y) must return one real number as a tensor, got {_described(loss)}")
        gradient = torch.autograd.grad(loss, x, allow_unused=True)[0] if loss.requires_grad else None
        if gradient is None:
            raise UsageError(f"A(x) does not depend on x as autograd sees it: {hint}")
        if not bool(gradient.isfinite().all()) or not bool(loss.isfinite()):
            raise UsageError(
                f"the loss is {float(loss.detach()):.3g}, and it or its gradient is not finite, at an x amid "
                f"limits {self.limits}; correct A, or give limits=(least, largest) of x"
            )


def _tensors(y: Any) -> list[Tensor]:
    held = getattr(y, "x", y)
    return [*held] if isinstance(held, list | tuple) else [y]


def _without_ones(tensor: Tensor) -> list[int]:
    return [side for side in tensor.shape if side != 1]


def _described(y: Any) -> str:
    """Describe shapes, and whether they are of complex numbers."""
    return ", ".join(
        f"{'complex ' if each.is_complex() else ''}{tuple(each.shape)}" if isinstance(each, Tensor) else str(type(each))
        for each in _tensors(y)
    )


def _copied(physics: Any, device: torch.device) -> Any:
    """Copy a Module to a device, in eval mode and without gradients of its own; leave anything else as it is."""
    if not isinstance(physics, nn.Module):
        return physics
    try:
        return copy.deepcopy(physics).to(device).eval().requires_grad_(False)
    except Exception as error:
        raise UsageError(
            f"the physics cannot be copied to {device}: {' '.join(str(error).split())}; pass its method alone, "
            "physics.A, with the device on which it lies"
        ) from error


def _noise_of(physics: Any) -> float | None:
    """Read the standard deviation of the noise of deepinv's physics, where it has one."""
    try:
        sigma = torch.as_tensor(physics.noise_model.sigma, dtype=torch.float32)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return None
    return float(sigma.mean())


def _require_finite(y: Any) -> None:
    tensors = _tensors(y)
    wrong = sum(int((~entry.isfinite()).sum()) for entry in tensors)
    if wrong or not tensors or not all(entry.numel() for entry in tensors):
        what = f"{wrong} NaN or infinite values" if wrong else "no values"
        raise UsageError(f"y must be finite, got {what}; leave out what was not measured, in A too")


def _named_loss(loss: str | Callable[[Any, Any], Tensor] | None, y: Any) -> Callable[[Any, Any], Tensor] | None:
    """Return a loss of A(x) and y; None for squares."""
    if loss is None or loss == "squares":
        return None
    if not isinstance(loss, str):
        return loss
    if loss not in LOSSES:
        raise UsageError(f"loss must be one of {', '.join(LOSSES)}, or a function of A(x) and y, got {loss!r}")
    if loss == "poisson" and any(bool((entry < 0).any()) for entry in entries(y)):
        raise UsageError("loss='poisson' is for counts, and y has values below zero; take another loss")
    return lambda made, measured: LOSSES[loss](entries(made), entries(measured))
