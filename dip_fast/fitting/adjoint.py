"""Linear operators that autograd does not know, with their adjoints: what pylops, ASTRA, ODL or NumPy compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dip_fast.errors import UsageError

# A projector and its back-projector on a GPU differ by a few percent; a forgotten factor is far more.
MATCHED = 0.1
Function = Callable[[Any], Any]


class Linear:
    """A linear operator whose gradient is its adjoint; `linear` makes one.

    Attributes
    ----------
    img_size : tuple of int
        Channels, height and width of x.
    """

    def __init__(
        self, forward: Function, adjoint: Function, img_size: tuple[int, ...], given: tuple[int, ...], tensors: bool
    ) -> None:
        self._forward, self._adjoint, self._tensors = forward, adjoint, tensors
        self._given = given  # the shape in which the functions take x
        self.img_size = img_size

    def A(self, x: Tensor) -> Tensor:  # noqa: N802
        """Apply the operator to x, ``(1, channels, height, width)``; what it returns is kept as it is."""
        result: Tensor = _WithAdjoint.apply(x, self)
        return result

    def A_adjoint(self, y: Tensor) -> Tensor:  # noqa: N802
        """Apply the adjoint; x is real, so that the real part counts: ``(1, channels, height, width)``."""
        x = self._call(self._adjoint, y)
        return (x.real if x.is_complex() else x).reshape(1, *self.img_size)

    def _call(self, function: Function, value: Tensor) -> Tensor:
        """Call a user's function with a tensor or an array, and convert what it returns to 32 bits."""
        with torch.no_grad():
            given = value.detach()
            result = function(given if self._tensors else given.cpu().numpy())
            result = torch.as_tensor(result if self._tensors else np.ascontiguousarray(result), device=value.device)
            return result.to(torch.complex64 if result.is_complex() else torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the operator without a gradient."""
        return self._call(self._forward, x.reshape(self._given))


class _WithAdjoint(torch.autograd.Function):
    """A x, whose gradient is the adjoint of the one that comes back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, operator: Linear) -> Tensor:
        ctx.operator = operator
        return operator.forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        return ctx.operator.A_adjoint(grads[0]), None


def linear(
    A: Any,
    A_adjoint: Function | None = None,
    shape: Sequence[int] | None = None,
    *,
    tensors: bool | None = None,
    check: bool = True,
) -> Linear:
    """Make a linear operator that autograd does not know differentiable, by its adjoint.

    Parameters
    ----------
    A : callable or object
        Takes x as an array of the given shape and returns y, an array of any shape, complex ones included.  Or an
        object with ``matvec`` and ``rmatvec``, as pylops and SciPy have it, which take x and y flat; or one with ``A``
        and ``A_adjoint``, which take tensors.
    A_adjoint : callable, optional
        Takes an array of the shape of y and returns one of the shape of x; an object has its own.
    shape : tuple of int, optional
        What A takes: ``(height, width)`` or ``(channels, height, width)``; an object's ``dims`` or ``img_size`` by
        default.
    tensors : bool, optional
        Whether the functions take and return tensors on the device of the fit rather than NumPy arrays.
    check : bool
        Whether to compare ``<A u, A u>`` with ``<u, A_adjoint(A u)>`` for a random u first.

    Returns
    -------
    Linear
        For `dip_fast.fit`, or for any program in torch: ``.A(x)`` of a tensor ``(1, channels, height, width)``.

    Raises
    ------
    UsageError
        If something is missing, or A_adjoint is not the adjoint of A by a tenth or more.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> import dip_fast
    >>> halve = np.array([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]], np.float32)
    >>> operator = dip_fast.linear(lambda x: halve @ x, lambda y: halve.T @ y, (4, 6))
    >>> tuple(operator.A(torch.ones(1, 1, 4, 6)).shape)
    (2, 6)
    """
    flat = callable(getattr(A, "matvec", None)) and callable(getattr(A, "rmatvec", None))
    if flat:
        shape = getattr(A, "dims", None) if shape is None else shape
        forward, adjoint, tensors = A.matvec, A.rmatvec, bool(tensors)
    elif callable(getattr(A, "A", None)):
        shape = getattr(A, "img_size", None) if shape is None else shape
        forward, adjoint = A.A, A_adjoint or getattr(A, "A_adjoint", None)
        tensors = True if tensors is None else tensors
    else:
        forward, adjoint, tensors = A, A_adjoint, bool(tensors)
    if not callable(forward) or not callable(adjoint):
        raise UsageError("linear needs A and A_adjoint, two functions, or an object with matvec and rmatvec")
    if shape is None:
        raise UsageError("linear needs the shape of x: give shape=(channels, height, width)")
    img_size = _image_size(shape)
    # An object's A takes a batch of one, as deepinv's does.
    given = (math.prod(img_size),) if flat else tuple(shape) if forward is A else (1, *img_size)
    operator = Linear(forward, adjoint, img_size, given, tensors)
    if check:
        _require_adjoint(operator)
    return operator


def _image_size(shape: Sequence[int]) -> tuple[int, ...]:
    """Return channels, height and width of x from what its function takes."""
    sides = tuple(int(side) for side in shape)
    while len(sides) > 3 and sides[0] == 1:
        sides = sides[1:]
    if not 2 <= len(sides) <= 3 or min(sides) < 1:
        raise UsageError(f"shape must be (height, width) or (channels, height, width), got {tuple(shape)}")
    return (1,) * (3 - len(sides)) + sides


def _require_adjoint(operator: Linear) -> None:
    """Compare the operator with its adjoint, on random values."""
    u = torch.rand(1, *operator.img_size, generator=torch.Generator().manual_seed(0))
    image = operator.forward(u)
    expected = float(image.abs().double().square().sum())
    found = float((u.double() * operator.A_adjoint(image).double()).sum())
    if not abs(found - expected) <= MATCHED * expected:
        ratio = found / expected if expected else math.nan
        raise UsageError(
            f"A_adjoint is not the adjoint of A: <u, A_adjoint(A u)> is {ratio:.3g} times <A u, A u> for a random u; "
            "correct it, or pass check=False"
        )
