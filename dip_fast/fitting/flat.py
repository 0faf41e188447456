"""Many tensors in one piece of memory, so that one kernel call serves them all."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

ALIGNMENT = 16  # values: each tensor begins at a multiple of 64 bytes, as those that PyTorch allocates


def flatten(like: Iterable[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Allocate zeros in one piece of memory, with a view of it in the shape of each given tensor.

    Parameters
    ----------
    like : iterable of Tensor
        Of one dtype, on one device.

    Returns
    -------
    memory : Tensor, (N,)
    views : list of Tensor
    """
    like = list(like)
    starts, end = [], 0
    for tensor in like:
        starts.append(end)
        end += _padded(tensor)
    memory = like[0].detach().new_zeros(end)
    return memory, unflatten(memory, like)


def unflatten(memory: Tensor, like: Iterable[Tensor]) -> list[Tensor]:
    """View a piece of memory that `flatten` laid out as tensors of the given shapes."""
    tensors, start = [], 0
    for tensor in like:
        tensors.append(memory[start : start + tensor.numel()].view(tensor.shape))
        start += _padded(tensor)
    return tensors


def _padded(tensor: Tensor) -> int:
    return -(-tensor.numel() // ALIGNMENT) * ALIGNMENT
