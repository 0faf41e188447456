"""The operators; importing this registers them with PyTorch."""

from dip_fast.ops.upsample_conv import upsample_conv2d

__all__ = ["upsample_conv2d"]
