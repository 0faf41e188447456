"""The operator ``dip_fast::perturb``: normal noise that depends on seed, step and place alone, added to z.

Its kernels are compiled for the CPU (csrc/cpu/perturb_kernel.h); `perturb_reference` defines it, and stands in where
there are none.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dip_fast.ops import extension

NAME = "dip_fast::perturb"
COUNTED = f"{NAME}.counted"  # the step is a tensor
GROUP, BLOCKS = 64, 16  # values that are drawn together, from as many blocks of four words
LOW = 0xFFFFFFFF


def perturb(z: Tensor, deviation: float, seed: int, step: int | Tensor, divisor: float = 1.0) -> Tensor:
    """Add normal noise of mean 0: the perturbation of the network input at a step.

    Parameters
    ----------
    z : Tensor
        Float32, uint8 or int8, of any shape.
    deviation : float
        Standard deviation of the noise.
    seed, step : int
        In [-2**63, 2**63); each pair gives noise of its own.  The step may be a 0-dim int64 tensor on the device of z,
        which is not read on the host then.
    divisor : float
        Of z, rounded to float32: the noise is added to the quotient, so that a z kept in 8 bits needs no other copy.

    Returns
    -------
    Tensor
        Float32, contiguous, of the shape of z.

    Raises
    ------
    TypeError
        If z is of another dtype.

    Notes
    -----
    There is no state: the noise is a function of seed, step and the index of the value, drawn with Philox4x32-10 and
    made normal with Box-Muller.  The result depends neither on the number of threads nor on the instruction set; where
    PyTorch computes it, on other devices, it differs by rounding, 1e-6 of the deviation.

    References
    ----------
    J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, doi:10.1145/2063384.2063405.

    Examples
    --------
    >>> z = torch.zeros(1, 2, 3, 4)
    >>> torch.equal(perturb(z, 0.1, seed=0, step=1), perturb(z, 0.1, seed=0, step=1))
    True
    """
    if isinstance(step, Tensor) and step.device.type == "cpu":
        step = int(step)
    if isinstance(step, Tensor):
        return torch.ops.dip_fast.perturb.counted(z, deviation, seed, step, divisor)
    return torch.ops.dip_fast.perturb.default(z, deviation, seed, step, divisor)


def philox(counter: tuple[Tensor | int, ...], key: tuple[int, int]) -> tuple[Tensor | int, ...]:
    """Turn counters into random words: Philox4x32 with ten rounds.

    Parameters
    ----------
    counter : tuple of four Tensors or ints
        Words of 32 bits, in int64.
    key : tuple of two ints

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
    """Multiply words of 32 bits: high and low word of the product, which wraps around in int64."""
    product = a * b
    return product >> 32 & LOW, product & LOW


def perturb_reference(z: Tensor, deviation: float, seed: int, step: int | Tensor, divisor: float = 1.0) -> Tensor:
    """Compute `perturb` in PyTorch: its definition.

    A group of 64 values takes 16 blocks of four words: value ``64 g + 16 j + l`` has the j-th number of block
    ``16 g + l``.
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
    return z.new_empty(z.shape, dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.divisor = inputs[4]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return grad / ctx.divisor, None, None, None, None


def _defined(name: str) -> bool:
    """Whether the compiled operators, if there are any, bring this one."""
    return extension.load() is not None and name in torch._C._dispatch_get_all_op_names()


for name, of_step in ((NAME, "int"), (COUNTED, "Tensor")):
    if not _defined(name):
        torch.library.define(name, f"(Tensor z, float deviation, int seed, {of_step} step, float divisor=1) -> Tensor")
    torch.library.impl(name, "default", perturb_reference)  # for devices that have no kernel
    torch.library.register_fake(name, _fake)
    torch.library.register_autograd(name, _backward, setup_context=_save)
