"""Sums whose bits do not depend on the number of threads.

PyTorch splits the sum of a whole tensor among its threads, each of which rounds its own part.  Where there are many
results, here one for each row of a matrix, a thread computes whole results, and a row of fewer than 32768 values
(ATen's grain size) is never split.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

ROW = 1024


def total(x: Tensor) -> Tensor:
    """Sum all values to a scalar: rows first, then rows of their sums, and so on."""
    x = x.flatten()
    while x.numel() > 1:
        if padding := -x.numel() % ROW:
            x = pad(x, (0, padding))
        x = x.view(-1, ROW).sum(1)
    return x.sum()


def mean_square(x: Tensor) -> Tensor:
    """Average the squares of all values to a scalar."""
    return total(x.square()) / x.numel()
