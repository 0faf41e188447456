"""What happened to the picture: ``y = A(x)``, with the data term that compares a candidate ``x`` with ``y``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Degradation:
    """Known forward operator and the damaged picture it gave.

    A subclass overrides `apply`, and `data_term` where plain least squares will not do.

    Parameters
    ----------
    target : Tensor
        y, float32, range [0, 1], ``(1, C, h, w)``.
    size : tuple of int, optional
        Height and width of the picture x; those of y by default.

    Attributes
    ----------
    target : Tensor
    size : tuple of int
    channels : int
    """

    def __init__(self, target: Tensor, size: tuple[int, int] | None = None) -> None:
        if target.dim() != 4 or target.shape[0] != 1:
            raise ValueError(f"target must be (1, C, H, W), got {tuple(target.shape)}")
        self.target = target
        self.channels = target.shape[1]
        self.size = (target.shape[2], target.shape[3]) if size is None else size

    def to(self, device: torch.device | str) -> Degradation:
        """Move the tensors to a device, in place."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self

    def apply(self, x: Tensor) -> Tensor:
        """Damage a picture: A(x)."""
        raise TypeError(f"{type(self).__name__} must define apply(x)")

    def data_term(self, x: Tensor) -> Tensor:
        """Mean squared error of A(x) against y, a scalar."""
        return torch.nn.functional.mse_loss(self.apply(x), self.target)

    def composite(self, x: Tensor) -> Tensor:
        """Put back into ``x`` what is known for certain; nothing, unless a subclass knows better."""
        return x


class Identity(Degradation):
    """Noise alone: ``A(x) = x``."""

    def apply(self, x: Tensor) -> Tensor:
        """Leave the picture as it is."""
        return x


class Mask(Degradation):
    """Pixels missing: ``A(x) = m x``.

    Parameters
    ----------
    target : Tensor
        y, ``(1, C, H, W)``; unknown pixels may hold anything finite.
    known : Tensor
        m, bool, ``(1, 1, H, W)``.
    composite : bool
        Whether the known pixels of the result are those of y.
    """

    def __init__(self, target: Tensor, known: Tensor, *, composite: bool = True) -> None:
        super().__init__(target)
        if known.dtype != torch.bool or known.shape != (1, 1, *self.size):
            raise ValueError(f"known must be bool (1, 1, {self.size[0]}, {self.size[1]}), got {tuple(known.shape)}")
        if not known.any():
            raise ValueError("known must hold at least one known pixel, got none")
        self.known = known
        self.keeps_known = composite

    def apply(self, x: Tensor) -> Tensor:
        """Blank the unknown pixels."""
        return x * self.known

    def data_term(self, x: Tensor) -> Tensor:
        """Mean squared error over the known pixels, a scalar: comparable between masks."""
        squares = ((x - self.target) * self.known).square()
        return squares.sum() / (self.known.sum() * self.channels)

    def composite(self, x: Tensor) -> Tensor:
        """Put the known pixels back."""
        return torch.where(self.known, self.target, x) if self.keeps_known else x


class Operator(Degradation):
    """A degradation of the user's own.

    Parameters
    ----------
    function : callable
        A, differentiable, from ``(1, C, H, W)`` to the shape of the target.
    target : Tensor
        y, ``(1, C, h, w)``.
    size : tuple of int
        Height and width of x.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], target: Tensor, size: tuple[int, int]) -> None:
        super().__init__(target, size)
        self.function = function

    def apply(self, x: Tensor) -> Tensor:
        """Call the user's function."""
        return self.function(x)
