"""Muon: momentum whose matrices are made orthogonal, for the convolutions that a batch norm follows; Adam for the rest.

A convolution's gradient, as a matrix with a row an output, has a few large singular values, and Adam follows these.
Muon replaces the matrix U of the momentum by the nearest orthogonal one, ``(U U^T)^(-1/2) U``, so that all directions
are learned at one pace.  It needs half of Adam's steps or fewer here; docs/notes/masked.md has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dip_fast.fitting.adam import Adam

MOMENTUM = 0.9
# Coefficients of a p + b p^3 + c p^5, which moves singular values of (0, 1] to near 1 in a few turns.
NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315
TURNS = 4


class Muon(Adam):
    """Muon for some parameters, Adam for the others.

    Parameters
    ----------
    parameters : sequence of Tensor
    matrices : sequence of int
        Which of them are weights of convolutions that a batch norm follows; it takes their scale away, so they are kept
        at a norm of the root of their outputs.
    rate : float
        The learning rate of these, as a multiple of Adam's.
    fused : bool
        Whether the operator ``muon_`` computes their steps, where there is one: on a CPU, in float32.  It rounds
        otherwise.

    Attributes
    ----------
    moments : tuple of Tensor
        As those of Adam; the first holds the momentum of the matrices, the second nothing of them.

    References
    ----------
    K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; J. Bernstein, L. Newhouse, "Old
    Optimizer, New Norm: An Anthology", arXiv 2409.20325.
    """

    def __init__(
        self, parameters: Sequence[Tensor], matrices: Sequence[int], rate: float, *, fused: bool = False
    ) -> None:
        super().__init__(parameters)
        self._rate = rate
        self._matrices = list(matrices)
        self._weights = [self.parameters[i] for i in self._matrices]
        self._momenta = [self._first[i] for i in self._matrices]
        first = self._weights[0]
        self._fused = fused and first.device.type == "cpu" and first.dtype == torch.float32
        if self._fused:
            from dip_fast.ops import extension  # here, since it loads or builds the extension

            self._fused = extension.load() is not None
        sides = [(weight.shape[0], weight[0].numel()) for weight in self._weights]
        self._norms = [math.sqrt(rows) for rows, _ in sides]
        self._longer = [math.sqrt(max(1, rows / columns)) for rows, columns in sides]
        # All matrices in one tensor, filled up with zeros, so that one call computes them all.
        shape = len(sides), *(max(side) for side in zip(*sides, strict=True))
        self._batch, self._directions = (self._weights[0].detach().new_zeros(shape) for _ in range(2))
        self._places, self._moves = (
            [
                batch[i, :rows, :columns].unflatten(1, weight.shape[1:])
                for i, (weight, (rows, columns)) in enumerate(zip(self._weights, sides, strict=True))
            ]
            for batch in (self._batch, self._directions)
        )
        # double, as the turns square the condition; where there is none, single will do
        self._precise = torch.float32 if self._batch.device.type == "mps" else torch.float64

    @torch.no_grad()
    def update(self, gradients: Sequence[Tensor | None], step: Tensor, rate: Tensor, skipped: Tensor | None) -> None:
        """Update the parameters in place, see `Adam.update`."""
        others = list(gradients)
        for i in self._matrices:
            others[i] = None
        super().update(others, step, rate, skipped)

        if self._fused:
            torch.ops.dip_fast.muon_(
                self._weights, self._momenta, [gradients[i] for i in self._matrices], rate, skipped, self._rate,
                MOMENTUM, NEWTON_SCHULZ, TURNS,
            )  # fmt: skip
            return

        # One call for the list of matrices, as a loop in Python takes longer than the arithmetic.
        used = [gradient for i in self._matrices if (gradient := gradients[i]) is not None]
        momenta = torch._foreach_add(torch._foreach_mul(self._momenta, MOMENTUM), used)
        torch._foreach_copy_(self._places, torch._foreach_add(torch._foreach_mul(momenta, MOMENTUM), used))
        self._orthogonal()
        rates = torch._foreach_mul([(rate * self._rate).to(self._batch)] * len(used), self._longer)
        scales = torch._foreach_mul(torch._foreach_reciprocal(torch._foreach_norm(self._weights)), self._norms)
        moved = torch._foreach_mul(self._weights, scales)
        torch._foreach_sub_(moved, torch._foreach_mul(self._moves, rates))
        for targets, values in ((self._weights, moved), (self._momenta, momenta)):
            if skipped is not None:
                held = skipped > 0
                values = tuple(torch.where(held, *pair) for pair in zip(targets, values, strict=True))
            torch._foreach_copy_(targets, values)

    def _orthogonal(self) -> None:
        """Make each matrix U of the batch nearly orthogonal, by way of U U^T, which is small: the directions."""
        U = self._batch / (torch.linalg.matrix_norm(self._batch, keepdim=True) + 1e-12)
        a, b, c = NEWTON_SCHULZ
        gram = (U @ U.mT).to(self._precise)
        unit = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        product = unit
        for turns_left in reversed(range(TURNS)):
            turn = a * unit + gram @ (b * unit + c * gram)
            product = turn @ product
            if turns_left:
                gram = turn @ gram @ turn
        torch.matmul(product.to(U), U, out=self._directions)
