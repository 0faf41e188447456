"""The operator ``dip_fast::perturb``: adds normal noise that depends on seed, step and place alone to z.

Its kernels are compiled for the CPU (csrc/cpu/perturb_kernel.h) and for GPUs (csrc/cuda/perturb.cu);
`perturb_reference` defines it, and runs where there is no kernel.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from dip_fast.ops import extension

NAME = "dip_fast::perturb"
COUNTED = f"{NAME}.counted"  # the overload whose step is a tensor
GROUP, BLOCKS = 64, 16  # values that are drawn together, from as many blocks of four words
LOW = 0xFFFFFFFF  # the low 32 bits


def perturb(z: Tensor, deviation: float, seed: int, step: int | Tensor, divisor: float = 1.0) -> Tensor:
    """Add normal noise of mean 0: the perturbation of the network input at a step.

    Parameters
    ----------
    z : Tensor
        Float32, uint8 or int8, of any shape.
    deviation : float
        Standard deviation of the noise.
    seed, step : int
        In [-2**63, 2**63); each pair selects noise of its own.  The step may also be a 0-dim int64 tensor on the device
        of z.  The kernel reads it where it lies: a GPU's never travels to the host, so the call can be captured as a
        CUDA graph, and a CPU's costs nothing.  Tensor or number, a kernel computes the same bits.
    divisor : float
        Divides z, rounded to float32: the noise is added to the quotient, so that a z kept in 8 bits needs no other
        copy.

    Returns
    -------
    Tensor
        Float32, contiguous, of the shape of z.

    Raises
    ------
    TypeError
        If z is of another dtype, or a step in a tensor is not one int64.
    ValueError
        If a step in a tensor is on another device than z.

    Notes
    -----
    There is no state: the noise is a function of seed, step and the index of the value, drawn with Philox4x32-10 and
    made normal with Box-Muller.  The result depends neither on the number of threads nor on the instruction set.  A GPU
    draws the same random words, and rounds what follows differently: by 1e-6 of the deviation, as does the definition
    in PyTorch, which other devices run.

    References
    ----------
    J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, doi:10.1145/2063384.2063405.

    Examples
    --------
    >>> z = torch.zeros(1, 2, 3, 4)
    >>> torch.equal(perturb(z, 0.1, seed=0, step=1), perturb(z, 0.1, seed=0, step=1))
    True
    >>> torch.equal(perturb(z, 0.1, seed=0, step=1), perturb(z, 0.1, seed=0, step=torch.tensor(1)))
    True
    """
    if isinstance(step, Tensor):
        return torch.ops.dip_fast.perturb.counted(z, deviation, seed, step, divisor)
    return torch.ops.dip_fast.perturb.default(z, deviation, seed, step, divisor)


def bernoulli(like: Tensor, keep: float, seed: int, step: int | Tensor) -> Tensor:
    """Draw a mask of zeros and ones: the places that an objective keeps at a step.

    Parameters
    ----------
    like : Tensor
        Has the shape and the device of the mask; its values are not read.
    keep : float
        Probability of a one at each place, in [0, 1].
    seed, step : int
        As in `perturb`; the step may be a tensor, which a GPU reads without the host.  The seed should not be that of a
        perturbation in the same step, as both would be made of the same numbers.

    Returns
    -------
    Tensor
        Float32, contiguous, of the shape of `like`: 1 with probability `keep`, else 0, each place independently.

    Raises
    ------
    ValueError
        If `keep` is not in [0, 1].

    Notes
    -----
    The mask is ``perturb(zeros, 1, seed, step) < q`` with the standard normal distribution's quantile q of `keep`,
    rounded to float32 (which moves the probability by less than 1e-7).  So it is a function of seed, step and place
    alone, the same for any number of threads and any instruction set.  A GPU rounds the numbers differently, by 1e-6,
    and so decides about one place in a million otherwise than a CPU.

    It costs what the normal numbers cost, a pass of `perturb`; a kernel that compares the random words themselves would
    be cheaper, and may replace it with other masks.

    Examples
    --------
    >>> image = torch.rand(1, 3, 64, 64)
    >>> mask = bernoulli(image, 0.9, seed=0, step=1)
    >>> (mask == 1).float().mean().item() > 0.85
    True
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"keep must be a probability, in [0, 1], got {keep}")
    # The distribution's quantile is not defined at 0 and 1.  No tensor is involved: nothing is read on the host.
    quantile = NormalDist().inv_cdf(keep) if 0 < keep < 1 else math.copysign(math.inf, keep - 0.5)
    return perturb(like.new_zeros(like.shape, dtype=torch.float32), 1.0, seed, step).lt_(quantile)


def philox(counter: tuple[Tensor | int, ...], key: tuple[int, int]) -> tuple[Tensor | int, ...]:
    """Turn counters into random words: Philox4x32 with ten rounds.

    Parameters
    ----------
    counter : tuple of four Tensors or ints
        Words of 32 bits, in int64.
    key : tuple of two ints
        Words of 32 bits.

    Returns
    -------
    tuple of four Tensors or ints
        Random words of 32 bits, in int64.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _product(c0, 0xD2511F53)
        high1, low1 = _product(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & LOW, (k1 + 0xBB67AE85) & LOW
    return c0, c1, c2, c3


def _product(a: Tensor | int, b: int) -> tuple[Tensor | int, Tensor | int]:
    """Multiply words of 32 bits; return the high and the low word of the product, which wraps around in int64."""
    product = a * b
    return product >> 32 & LOW, product & LOW


def perturb_reference(z: Tensor, deviation: float, seed: int, step: int | Tensor, divisor: float = 1.0) -> Tensor:
    """Compute `perturb` in PyTorch: its definition.

    A group of 64 values takes 16 blocks of four words: value ``64 g + 16 j + l`` has the j-th number of block
    ``16 g + l``.  A step in a tensor is not read on the host.
    """
    _check(z)
    groups = -(-z.numel() // GROUP)
    block = torch.arange(BLOCKS * groups, device=z.device)
    counter = (block & LOW, block >> 32, step & LOW, step >> 32 & LOW)
    words = philox(counter, (seed & LOW, seed >> 32 & LOW))
    numbers: list[Tensor] = []
    for for_radius, for_angle in (words[:2], words[2:]):
        assert isinstance(for_radius, Tensor)
        assert isinstance(for_angle, Tensor)
        uniform = (for_radius >> 1).float() * 2.0**-31 + 2.0**-32  # in (0, 1]
        radius = uniform.double().log_().mul_(-2).sqrt_()
        angle = for_angle.double() * (math.pi * 2.0**-31)
        numbers += [radius * angle.cos(), radius * angle.sin()]
    noise = torch.stack([number.float().view(groups, BLOCKS) for number in numbers], dim=1)  # (groups, 4, BLOCKS)
    return noise.flatten()[: z.numel()].view(z.shape).mul_(deviation).add_(z.float() / divisor)


def _check(z: Tensor) -> None:
    if z.dtype not in (torch.float32, torch.uint8, torch.int8):
        raise TypeError(f"z must be of dtype float32, uint8 or int8, got {z.dtype}")


def _fake(z: Tensor, deviation: float, seed: int, step: int | Tensor, divisor: float = 1.0) -> Tensor:
    _check(z)
    if isinstance(step, Tensor) and step.device != z.device:
        raise ValueError(f"step must be on the device of z, {z.device}, got {step.device}")
    return z.new_empty(z.shape, dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.divisor = inputs[4]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return grad / ctx.divisor, None, None, None, None


def _defined(name: str) -> bool:
    """Return whether the compiled operators, if there are any, include this one."""
    return extension.load() is not None and name in torch._C._dispatch_get_all_op_names()


for name, step in ((NAME, "int step"), (COUNTED, "Tensor step")):
    if not _defined(name):
        torch.library.define(name, f"(Tensor z, float deviation, int seed, {step}, float divisor=1) -> Tensor")
    torch.library.impl(name, "default", perturb_reference)  # for devices that have no kernel
    torch.library.register_fake(name, _fake)
    torch.library.register_autograd(name, _backward, setup_context=_save)
