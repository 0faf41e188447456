"""A blur, or a reduction in size: the picture is a window of a scene that was convolved, of which samples were kept."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from dip_fast.fitting.degradations import Degradation


class Convolution(Degradation):
    """Blur, and reduce: ``A(x) = (k * x)[::s, ::s]``, of a scene x that reaches beyond the picture.

        y[i, j] = sum over (a, b) of k[a, b] x[s i + h - 1 - a, s j + w - 1 - b]

    No pixel of y is taken from beyond the edges of x: what came into the picture from outside is drawn too, in a border
    of ``(h - s) / 2`` rows and ``(w - s) / 2`` columns on each side of the result.  Nobody has to guess how the picture
    goes on, and the blur that leads out of it leaves no ripples along its edges.

    Parameters
    ----------
    target : Tensor
        y, ``(1, C, H, W)``, range [0, 1].
    kernel : Tensor
        k, ``(h, w)``, the same for all channels: what a single bright point became.  Its middle is that of the block of
        ``s x s`` pixels that a pixel of y stands for; zeros are added behind it where it has none.
    stride : int
        s, how many times x is larger than y.

    Raises
    ------
    ValueError
        If the kernel has other dimensions or values that are not finite.
    """

    has_patches = True

    def __init__(self, target: Tensor, kernel: Tensor, stride: int = 1) -> None:
        if kernel.dim() != 2 or not kernel.isfinite().all():
            raise ValueError(f"kernel must be finite (h, w), got {tuple(kernel.shape)}")
        super().__init__(target, (stride * target.shape[2], stride * target.shape[3]))
        kernel = padded(kernel.to(self.target.dtype), stride)
        self.border = (kernel.shape[0] - stride) // 2, (kernel.shape[1] - stride) // 2
        self.stride = stride
        self.weight = kernel.flip(0, 1).expand(self.channels, 1, *kernel.shape).contiguous()  # conv2d correlates

    def apply(self, x: Tensor) -> Tensor:
        """Convolve the scene, and keep each s-th sample of where the kernel lies within it."""
        return conv2d(x, self.weight, stride=self.stride, groups=self.channels)


def padded(kernel: Tensor, stride: int) -> Tensor:
    """Add zeros to a kernel, on both sides or one more behind, until it covers a block and has its middle there."""
    sides = [max(side, stride) + (max(side, stride) - stride) % 2 for side in kernel.shape]
    whole = torch.zeros(*sides, dtype=kernel.dtype, device=kernel.device)
    top, left = ((whole.shape[i] - kernel.shape[i]) // 2 for i in (0, 1))
    whole[top : top + kernel.shape[0], left : left + kernel.shape[1]] = kernel
    return whole
