"""What happened to the picture: ``y = A(x)``, with the data term that compares a candidate ``x`` with ``y``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dip_fast.fitting.reductions import mean_square, total


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
    kept : Tensor, optional
        Where the result's pixels are those of y, bool ``(1, 1, H, W)``; only with y of the size of x.
    """

    kept: Tensor | None = None

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
        return mean_square(self.apply(x) - self.target)

    def noise(self) -> float:
        """Estimate the standard deviation of the noise in y, in units of its range [0, 1]."""
        return haar_noise(self.target)

    def composite(self, x: Tensor) -> Tensor:
        """Put back into ``x`` what is known for certain."""
        return x if self.kept is None else torch.where(self.kept, self.target, x)


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
        self._values = int(known.sum()) * self.channels
        self.kept = known if composite else None

    def apply(self, x: Tensor) -> Tensor:
        """Blank the unknown pixels."""
        return x * self.known

    def data_term(self, x: Tensor) -> Tensor:
        """Mean squared error over the known pixels, a scalar: comparable between masks."""
        squares = ((x - self.target) * self.known).square()
        return total(squares) / self._values

    def noise(self) -> float:
        """Estimate the noise from the squares of four known pixels."""
        return haar_noise(self.target, self.known)


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


def haar_noise(y: Tensor, known: Tensor | None = None) -> float:
    """Estimate the standard deviation of white noise from the diagonal Haar coefficients of squares of four pixels.

    The median magnitude of the coefficients, over 0.6745, is the deviation of a Gaussian; edges are too few to move a
    median.  Clipping at the ends of the range makes it too small.

    Parameters
    ----------
    y : Tensor
        ``(1, C, H, W)``.
    known : Tensor, optional
        ``(1, 1, H, W)``, bool; squares with an unknown pixel do not count.

    Returns
    -------
    float
        The mean over the channels; 0 where no square counts.

    References
    ----------
    D. L. Donoho, I. M. Johnstone, "Ideal spatial adaptation by wavelet shrinkage", Biometrika 81 (1994),
    doi:10.1093/biomet/81.3.425.
    """

    def corners(image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        even = image[..., : image.shape[-2] // 2 * 2, : image.shape[-1] // 2 * 2]
        return even[..., ::2, ::2], even[..., ::2, 1::2], even[..., 1::2, ::2], even[..., 1::2, 1::2]

    a, b, c, d = corners(y)
    coefficients = ((a - b - c + d) / 2)[0].flatten(1)  # (C, squares)
    if known is not None:
        a, b, c, d = corners(known)
        coefficients = coefficients[:, (a & b & c & d).flatten()]
    if not coefficients.numel():
        return 0.0
    return (coefficients.abs().median(dim=1).values.mean() / 0.6745).item()
