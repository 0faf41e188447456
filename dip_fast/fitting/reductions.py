"""Sums whose bits do not depend on the number of threads.

PyTorch cuts the sum of a whole tensor among its threads, each of which rounds a part of its own.  Where results are
kept apart, here those of the rows of a matrix, it deals out whole results, and a row of less than 32768 values (ATen's
grain size) is never cut.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

ROW = 1024


def total(x: Tensor) -> Tensor:
    """Sum of all values, a scalar: of rows, then of rows of their sums, and so on."""
    x = x.flatten()
    while x.numel() > 1:
        if padding := -x.numel() % ROW:
            x = pad(x, (0, padding))
        x = x.view(-1, ROW).sum(1)
    return x.sum()


def mean_square(x: Tensor) -> Tensor:
    """Mean of the squares of all values, a scalar."""
    return total(x.square()) / x.numel()
