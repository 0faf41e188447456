"""The operator ``upsample_conv2d`` as a layer, `UpsampleConv2d`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dip_fast.ops.reference import MODES, PADDING_MODES
from dip_fast.ops.upsample_conv import upsample_conv2d


class UpsampleConv2d(nn.Module):
    """Upsample by two, pad by one pixel and convolve with 3x3 taps, as one layer.

    It computes what ``nn.Sequential(nn.Upsample(scale_factor=2, mode=mode), nn.Conv2d(in_channels, out_channels, 3,
    padding=1, padding_mode=padding_mode))`` computes, with a quarter of the multiplications.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the input and of the output.
    bias : bool
        Whether to learn a bias.
    mode : {"nearest", "bilinear"}
        How to upsample; bilinear is that of ``align_corners=False``.
    padding_mode : {"zeros", "reflect", "replicate"}
        What surrounds the upsampled image.
    device, dtype
        Where the parameters are and how they are stored, as in ``nn.Conv2d``.

    Attributes
    ----------
    weight : Parameter, (out_channels, in_channels, 3, 3)
        The taps, named, shaped and initialised as in ``nn.Conv2d``, whose ``state_dict`` the layer loads.
    bias : Parameter, (out_channels,), or None
        The number added to each channel, likewise.

    Raises
    ------
    ValueError
        If a number of channels is not positive, or `mode` or `padding_mode` is unknown.

    Examples
    --------
    >>> import dip_fast, torch
    >>> dip_fast.UpsampleConv2d(8, 4, mode="bilinear", padding_mode="reflect")(torch.rand(1, 8, 16, 20)).shape
    torch.Size([1, 4, 32, 40])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bias: bool = True,
        mode: str = "nearest",
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels < 1:
                raise ValueError(f"{name} must be at least 1, got {channels}")
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {padding_mode!r}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.mode = mode
        self.padding_mode = padding_mode
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the parameters anew: from the same random numbers the same values as in ``nn.Conv2d``."""
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        if self.bias is not None:
            bound = (9 * self.in_channels) ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        """Compute the output, (N, out_channels, 2H, 2W), from the input, (N, in_channels, H, W)."""
        if torch.jit.is_scripting():
            return torch.ops.dip_fast.upsample_conv2d(input, self.weight, self.bias, self.mode, self.padding_mode)
        return upsample_conv2d(input, self.weight, self.bias, mode=self.mode, padding_mode=self.padding_mode)

    def extra_repr(self) -> str:
        """Return the arguments of the layer for its ``repr``."""
        text = f"{self.in_channels}, {self.out_channels}, mode={self.mode!r}, padding_mode={self.padding_mode!r}"
        return text if self.bias is not None else f"{text}, bias=False"
