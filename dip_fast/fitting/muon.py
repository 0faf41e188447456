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

    Attributes
    ----------
    moments : tuple of Tensor
        As those of Adam; the first holds the momentum of the matrices, the second nothing of them.

    References
    ----------
    K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; J. Bernstein, L. Newhouse, "Old
    Optimizer, New Norm: An Anthology", arXiv 2409.20325.
    """

    def __init__(self, parameters: Sequence[Tensor], matrices: Sequence[int], rate: float) -> None:
        super().__init__(parameters)
        self._rate = rate
        self._matrices = list(matrices)
        weights = [self.parameters[i] for i in self._matrices]
        self._momenta = [self._first[i] for i in self._matrices]
        self._sides = [(weight.shape[0], weight[0].numel()) for weight in weights]
        rows, columns = (max(sides) for sides in zip(*self._sides, strict=True))
        # All matrices in one tensor, filled up with zeros, so that one call computes them all.
        self._batch = weights[0].detach().new_zeros(len(weights), rows, columns)
        # double, as the turns square the condition; where there is none, single will do
        self._precise = torch.float32 if weights[0].device.type == "mps" else torch.float64

    @torch.no_grad()
    def update(self, gradients: Sequence[Tensor | None], step: Tensor, rate: Tensor, skipped: Tensor | None) -> None:
        """Update the parameters in place, see `Adam.update`."""
        others = list(gradients)
        for i in self._matrices:
            others[i] = None
        super().update(others, step, rate, skipped)

        weights = [self.parameters[i] for i in self._matrices]
        momenta = []
        for i, (momentum, (rows, columns)) in enumerate(zip(self._momenta, self._sides, strict=True)):
            gradient = gradients[self._matrices[i]]
            assert gradient is not None
            momenta.append(gradient + MOMENTUM * momentum)
            self._batch[i, :rows, :columns] = (gradient + MOMENTUM * momenta[-1]).view(rows, columns)
        directions = self._orthogonal()
        rate = (rate * self._rate).to(self._batch)
        for i, (weight, (rows, columns)) in enumerate(zip(weights, self._sides, strict=True)):
            longer = math.sqrt(max(1, rows / columns))
            moved = weight * (math.sqrt(rows) / weight.norm())
            moved -= (longer * rate) * directions[i, :rows, :columns].reshape(weight.shape)
            if skipped is not None:
                moved = torch.where(skipped > 0, weight, moved)
                momenta[i] = torch.where(skipped > 0, self._momenta[i], momenta[i])
            weight.copy_(moved)
            self._momenta[i].copy_(momenta[i])

    def _orthogonal(self) -> Tensor:
        """Make each matrix U of the batch nearly orthogonal, by way of U U^T, which is small."""
        U = self._batch / (torch.linalg.matrix_norm(self._batch, keepdim=True) + 1e-12)
        a, b, c = NEWTON_SCHULZ
        gram = (U @ U.mT).to(self._precise)
        unit = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        product = unit
        for _ in range(TURNS):
            turn = a * unit + gram @ (b * unit + c * gram)
            product, gram = turn @ product, turn @ gram @ turn
        return product.to(U) @ U
