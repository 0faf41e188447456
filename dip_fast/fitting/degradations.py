"""What happened to the picture: ``y = A(x)``, with the data term that compares a candidate ``x`` with ``y``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from dip_fast import large
from dip_fast.device.modes import to_keep
from dip_fast.errors import UsageError
from dip_fast.fitting.noise import haar_noise
from dip_fast.fitting.noise_level import measure_noise
from dip_fast.fitting.reductions import squared_errors, total
from dip_fast.networks import crop

LEAST_NOISE = 0.5 / 255  # of y: what is rounded to 8 bits has nearly as much


def as_float32(name: str, values: Tensor) -> Tensor:
    """Convert a picture, whose parameter has this name, to the dtype in which fits compute.

    Raises
    ------
    TypeError
        For integers, whose range nobody stated.
    """
    if values.is_floating_point():
        return values.float()
    if values.is_complex():  # for the user's own degradation to compare
        return values
    raise TypeError(f"{name} must hold floats from 0 to 1, got {values.dtype}; divide it by the end of its range")


class Degradation:
    """A known forward operator and the damaged picture it gave.

    A subclass overrides `apply`, `data_term` where plain least squares will not do, and `window` where it can be
    restricted to a part of the picture.

    Parameters
    ----------
    target : Tensor
        y, range [0, 1], ``(1, C, h, w)``; floats of any precision, kept as float32.
    size : tuple of int, optional
        Height and width of the picture x; those of y by default.
    channels : int, optional
        Channels of x; those of y by default.

    Attributes
    ----------
    target : Tensor
        y.
    size : tuple of int
        Height and width of x.
    channels : int
        Channels of x.
    kept : Tensor, optional
        Where the result's pixels are those of y, bool ``(1, 1, H, W)``; only with a y of the shape of x.
    known_deviation : float, optional
        Standard deviation of the noise in y, where it is known; `deviation` measures it otherwise.
    has_patches : bool
        Whether a fit can go on with patches of x that are alike, see `patch_prior`.
    is_picture : bool
        Whether y is a picture, in the units of x.
    captures : bool
        Whether the data term can be captured in a CUDA graph: it reads no tensor on the host.
    border : tuple of int
        Rows and columns that the scene, which the network draws and `data_term` reads, has on each side of x: what lies
        beyond the edges of a picture may have had a part in it.

    Raises
    ------
    ValueError
        If the target has another number of dimensions, or holds more than one picture.
    TypeError
        If it holds integers.
    """

    kept: Tensor | None = None
    known_deviation: float | None = None
    captures = True
    has_patches = False
    is_picture = True
    border: tuple[int, int] = (0, 0)

    def __init__(self, target: Tensor, size: tuple[int, int] | None = None, channels: int | None = None) -> None:
        if target.dim() != 4 or target.shape[0] != 1:
            raise ValueError(f"target must be (1, C, H, W), got {tuple(target.shape)}")
        self.target = as_float32("target", target)
        self.channels = target.shape[1] if channels is None else channels
        self.size = (target.shape[2], target.shape[3]) if size is None else size

    @property
    def scene(self) -> tuple[int, int]:
        """Height and width of x with its border."""
        return self.size[0] + 2 * self.border[0], self.size[1] + 2 * self.border[1]

    def to(self, device: torch.device | str) -> Self:
        """Copy the degradation to a device: tensors and modules among its attributes; this one stays as it is."""
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, to_keep(value.to(device)))
            elif isinstance(value, nn.Module):
                setattr(moved, name, copy.deepcopy(value).to(device))
        return moved

    def window(self, rows: slice, columns: slice) -> Self:
        """Restrict the degradation to a part of the picture, as if the picture were no larger.

        Parameters
        ----------
        rows, columns : slice
            Of x, with a step of 1.

        Raises
        ------
        UsageError
            If this degradation has no windows.
        """
        raise UsageError(
            f"{type(self).__name__} has no windows: a pixel of y may depend on all of x; fit the whole picture, "
            "or override window()"
        )

    def apply(self, x: Tensor) -> Tensor:
        """Damage a picture: A(x)."""
        raise TypeError(f"{type(self).__name__} must define apply(x)")

    def data_term(self, x: Tensor) -> Tensor:
        """Mean squared error of A(x) against y, a scalar."""
        return self.distance(x) / self.target.numel()

    def distance(self, x: Tensor) -> Tensor:
        """Sum the squares of what A(x) is off from what was measured, a scalar."""
        return total(squared_errors(self.apply(x), self.target))

    def noise(self) -> float:
        """Estimate the standard deviation of the noise in y, in units of its range [0, 1]."""
        return haar_noise(self.target)

    def deviation(self, x: Tensor) -> float:
        """Estimate the standard deviation of the noise in y, in its units, given an estimate of the scene.

        What is rounded to 8 bits has some too.
        """
        if self.known_deviation is not None:
            return self.known_deviation
        return max(measure_noise(self.target, grows=False).deviation, LEAST_NOISE)

    def composite(self, x: Tensor) -> Tensor:
        """Put back into ``x`` what is known for certain."""
        return x if self.kept is None else large.mapped_tensor(torch.where, self.kept, self.target, x)


class Identity(Degradation):
    """Noise alone: ``A(x) = x``.

    Parameters
    ----------
    target : Tensor
        y, ``(1, C, H, W)``.
    border : tuple of int
        Of the scene, of which y shows the middle; none by default.
    """

    def __init__(self, target: Tensor, *, border: tuple[int, int] = (0, 0)) -> None:
        super().__init__(target)
        self.border = border

    def apply(self, x: Tensor) -> Tensor:
        """Return the picture as it is."""
        return crop(x, *self.size)

    def window(self, rows: slice, columns: slice) -> Self:
        """Cut a part out of y; see `Degradation.window`."""
        part = copy.copy(self)
        Degradation.__init__(part, self.target[..., rows, columns])
        part.border = (0, 0)
        return part


class Mask(Degradation):
    """Pixels missing: ``A(x) = m x``.

    Parameters
    ----------
    target : Tensor
        y, ``(1, C, H, W)``; unknown pixels may hold anything finite.
    known : Tensor
        m, bool, ``(1, 1, H, W)``, or for each channel ``(1, C, H, W)``.
    composite : bool
        Whether the known pixels of the result are those of y.

    Raises
    ------
    ValueError
        If the mask has another shape or dtype, or no pixel is known.
    """

    def __init__(self, target: Tensor, known: Tensor, *, composite: bool = True) -> None:
        super().__init__(target)
        shapes = (1, 1, *self.size), (1, self.channels, *self.size)
        if known.dtype != torch.bool or known.shape not in shapes:
            raise ValueError(f"known must be bool (1, 1, {self.size[0]}, {self.size[1]}), got {tuple(known.shape)}")
        if not known.any():
            raise ValueError("known must hold at least one known pixel, got none")
        self.known = known
        self._values = int(known.sum()) * (self.channels // known.shape[1])
        self.kept = known if composite else None
        self.has_patches = composite

    def apply(self, x: Tensor) -> Tensor:
        """Blank the unknown pixels."""
        return x * self.known

    def data_term(self, x: Tensor) -> Tensor:
        """Mean squared error over the known pixels, a scalar: comparable between masks."""
        return self.distance(x) / self._values

    def distance(self, x: Tensor) -> Tensor:
        """Sum the squared errors of the known pixels, a scalar."""
        return total(((x - self.target) * self.known).square())

    def noise(self) -> float:
        """Estimate the noise from squares of four known pixels."""
        return haar_noise(self.target, self.known)

    def window(self, rows: slice, columns: slice) -> Self:
        """Cut a part out of y and the mask; see `Degradation.window`.  It must hold a known pixel."""
        part = copy.copy(self)
        known = self.known[..., rows, columns]
        Mask.__init__(part, self.target[..., rows, columns], known, composite=self.kept is not None)
        return part


class Operator(Degradation):
    """A degradation of the user's own.

    Parameters
    ----------
    function : callable
        A, differentiable, from ``(1, channels, H, W)`` to the shape of the target; a Module is copied to the device
        of the fit.
    target : Tensor
        y, ``(1, C, h, w)``.
    size : tuple of int
        Height and width of x.
    channels : int, optional
        Channels of x; those of y by default.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        target: Tensor,
        size: tuple[int, int],
        channels: int | None = None,
    ) -> None:
        super().__init__(target, size, channels)
        self.function = function

    def apply(self, x: Tensor) -> Tensor:
        """Call the user's function."""
        return self.function(x)
