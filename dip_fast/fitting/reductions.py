"""Sums whose bits do not depend on the number of threads.

PyTorch splits the sum of a whole tensor among its threads, each of which rounds its own part.  Where there are many
results, here one for each row of a matrix, a thread computes whole results, and a row of fewer than 32768 values
(ATen's grain size) is never split.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import mse_loss, pad

ROW = 1024


def total(x: Tensor) -> Tensor:
    """Sum all values to a scalar: rows first, then rows of their sums, and so on."""
    x = x.flatten()
    while x.numel() > 1:
        if padding := -x.numel() % ROW:
            x = pad(x, (0, padding))
        x = x.view(-1, ROW).sum(1)
    return x.sum()


def squared_errors(x: Tensor, y: Tensor) -> Tensor:
    """Compute ``(x - y)**2`` of tensors of one shape: one pass forward and one back, in place of two and three."""
    return mse_loss(x, y, reduction="none")


def mean_square(x: Tensor, y: Tensor) -> Tensor:
    """Average the squares of the differences of two tensors of one shape to a scalar."""
    return total(squared_errors(x, y)) / x.numel()
