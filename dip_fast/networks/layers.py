"""What the networks share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

EPSILON = 1e-5  # of every batch norm, added to the variance


class Fusible(nn.Module):
    """A block that has a fused form, or could have one.

    Attributes
    ----------
    obstacle : str or None
        Why these sizes and modes have none; empty if they have one.  None for a part of another block, which has it or
        not.
    fused : bool
        Whether it is in use.
    """

    obstacle: str | None = ""
    fused = False


class Network(nn.Module):
    """A network that draws an image from z.

    Attributes
    ----------
    multiple : int
        The sides of the image are multiples of it.
    """

    multiple: int

    def blocks(self) -> dict[str, str]:
        """Blocks by name, with what stands against a fused form: nothing, where they have one."""
        blocks = ((name, module) for name, module in self.named_modules() if isinstance(module, Fusible))
        return {name: block.obstacle for name, block in blocks if block.obstacle is not None}

    def fusible(self) -> list[str]:
        """Names of the blocks that have a fused form."""
        return [name for name, obstacle in self.blocks().items() if not obstacle]

    def use(self, engine: str) -> Self:
        """Choose the engine: the same function of the same parameters, computed plainly or fused where it can be.

        Raises
        ------
        ValueError
            For the fused engine of a network without a fusible block.
        """
        if engine == "fused" and not self.fusible():
            raise ValueError("engine must be plain for this network: no block of it has a fused form")
        for module in self.modules():
            if isinstance(module, Fusible):
                module.fused = engine == "fused" and module.obstacle == ""
        return self

    def is_fused(self) -> bool:
        """Whether a block runs in its fused form."""
        return any(isinstance(module, Fusible) and module.fused for module in self.modules())

    def is_wholly_fused(self) -> bool:
        """Whether every block does."""
        return self.is_fused() and not any(self.blocks().values())

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of z whose output covers a picture of ``height x width``."""
        return cover(height, self.multiple), cover(width, self.multiple)


@dataclass
class Raw:
    """An image as a convolution left it, with what is still to be done to it.

    Attributes
    ----------
    tensor : Tensor, (1, C, H, W)
    statistics : Tensor, (2, C)
        Mean and biased variance, float64.
    norm : BatchNorm2d
    slope : float
        Of the LeakyReLU after it.
    """

    tensor: Tensor
    statistics: Tensor
    norm: nn.BatchNorm2d
    slope: float

    def finished(self) -> Tensor:
        """Do it."""
        return nn.functional.leaky_relu(self.norm(self.tensor), self.slope)


Image = Tensor | Raw


def finished(x: Image) -> Tensor:
    """Give the image itself."""
    return x.finished() if isinstance(x, Raw) else x


def fits(x: Image) -> bool:
    """Whether the fused blocks take it: one image, in float32 or float64, or on a GPU in bfloat16."""
    tensor = x.tensor if isinstance(x, Raw) else x
    known = tensor.dtype in (torch.float32, torch.float64) or (tensor.dtype == torch.bfloat16 and tensor.is_cuda)
    return tensor.shape[0] == 1 and known


def as_read(x: Image, slope: float) -> Any:
    """Give an image as the operators take it, which activate all that they read alike."""
    from dip_fast import ops  # here, since it loads or builds the extension

    if isinstance(x, Raw) and x.slope == slope:
        return ops.NormedInput(x.tensor, x.statistics, x.norm.weight, x.norm.bias)
    return ops.NormedInput(finished(x))


class _WithoutGradient(torch.autograd.Function):
    """The first argument, as a function that does not depend on the others: they get gradients of zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return (grads[0], *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors))


def without_gradient(x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Give x, and the parameters, on which it does not depend, gradients of zero in place of none."""
    result: Tensor = _WithoutGradient.apply(x, *parameters)
    return result


def full(x: Tensor) -> Tensor:
    """Convert a tensor of fewer than 32 bits a value to float32."""
    return x.float() if x.element_size() < 4 else x


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm that always uses the statistics of the one image, in fitting and in inference."""
    return nn.BatchNorm2d(channels, EPSILON, track_running_stats=False)


class Block(Fusible):
    """Convolution, pooling if any, batch norm, LeakyReLU or another activation: ``conv.*`` and ``norm.*``."""

    def __init__(
        self,
        conv: nn.Conv2d | nn.ConvTranspose2d,
        negative_slope: float = 0.0,
        *,
        pool: nn.Module | None = None,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv = conv
        self.pool = pool
        self.norm = batch_norm(conv.out_channels)
        self.activation = activation or nn.LeakyReLU(negative_slope, inplace=True)
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        if isinstance(conv, nn.ConvTranspose2d):
            self.obstacle = "its convolution is transposed"
        elif pool is not None:
            self.obstacle = "it pools"
        elif not isinstance(self.activation, nn.LeakyReLU):
            self.obstacle = "its activation is no LeakyReLU"
        elif (kernel, stride) not in ((1, 1), (3, 1), (3, 2)):
            self.obstacle = f"its kernel is {kernel}x{kernel}" + (f" with stride {stride}" if stride > 1 else "")

    def forward(self, x: Image) -> Image:
        """``(N, in, H, W)`` to ``(N, out, ...)``."""
        if not (self.fused and fits(x)):
            return self.finish(self.conv(finished(x)))
        from dip_fast import ops  # here, since it loads or builds the extension

        assert isinstance(self.activation, nn.LeakyReLU)
        slope = self.activation.negative_slope
        # Without the bias, which the batch norm would take away again.
        convolved = ops.norm_conv2d(
            as_read(x, slope), self.conv.weight, slope=slope, eps=self.norm.eps, stride=self.conv.stride[0],
            padding_mode=str(self.conv.padding_mode),
        )  # fmt: skip
        return Raw(*convolved, self.norm, slope)

    def finish(self, convolved: Tensor) -> Tensor:
        """Do what follows the convolution."""
        pooled = convolved if self.pool is None else self.pool(convolved)
        result: Tensor = self.activation(self.norm(pooled))
        return result


def cover(side: int, multiple: int, least: int = 2) -> int:
    """Smallest multiple of ``multiple``, at least ``least`` times it, that is no less than ``side``.

    Two pixels are the least at the deepest scale: reflection and batch norm need as many.
    """
    return multiple * max(least, -(-side // multiple))
