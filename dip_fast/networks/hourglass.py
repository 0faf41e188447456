"""The small hourglass that this project grew from: strided 5x5 convolutions down, transposed 4x4 convolutions up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dip_fast.networks.layers import Block, Network, batch_norm, full

if TYPE_CHECKING:
    from dip_fast.programs.folding import Folder, Value

NEGATIVE_SLOPE = 0.01


class Hourglass(Network):
    """Hourglass with four thin skips: ``(N, in_channels, H, W) -> (N, out_channels, H, W)`` in (0, 1).

    ``encode.<i>.<conv|norm>``: six convolutions 5x5, stride 2, to 8, 16, 32, 64, 128 and 256 channels.
    ``decode.<i>``: four transposed convolutions 4x4, stride 2, to 123, 59, 27 and 11 channels, each concatenated with
    ``skip.<i>``, a 5x5 convolution to 5 channels of the encoder's output at that size, and followed by ``norm.<i>``
    (128, 64, 32, 16 channels).  Then ``widen.<conv|norm>`` to 8 channels at half the size and ``head.<conv|norm>``
    to the image channels at full size.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the network input and of the image.

    Notes
    -----
    H and W are multiples of 64, and at least 128.
    """

    multiple = 64

    def __init__(self, in_channels: int = 3, out_channels: int = 3) -> None:
        super().__init__()
        down = (8, 16, 32, 64, 128, 256)
        self.encode = nn.ModuleList(
            Block(nn.Conv2d(inputs, outputs, 5, stride=2, padding=2), NEGATIVE_SLOPE)
            for inputs, outputs in zip((in_channels, *down), down, strict=False)
        )
        # The decoder's stage i meets the encoder's stage 5 - i: as many channels after the concatenation.
        joined = down[4:0:-1]  # 128, 64, 32, 16
        self.decode = nn.ModuleList(
            nn.ConvTranspose2d(inputs, outputs - 5, 4, stride=2, padding=1)
            for inputs, outputs in zip((down[5], *joined), joined, strict=False)
        )
        self.skip = nn.ModuleList(nn.Conv2d(channels, 5, 5, padding=2) for channels in joined)
        self.norm = nn.ModuleList(batch_norm(channels) for channels in joined)
        self.widen = Block(nn.ConvTranspose2d(joined[-1], 8, 4, stride=2, padding=1), NEGATIVE_SLOPE)
        self.head = Block(nn.ConvTranspose2d(8, out_channels, 4, stride=2, padding=1), activation=nn.Sigmoid())

    def forward(self, z: Tensor) -> Tensor:
        """Draw the image from ``z``, ``(N, in_channels, H, W)``."""
        encoded = []
        x = z
        for stage in self.encode:
            x = stage(x)
            encoded.append(x)
        for decode, skip, norm, same_size in zip(self.decode, self.skip, self.norm, encoded[4:0:-1], strict=True):
            joined = torch.cat((decode(x), skip(same_size)), dim=1)
            x = nn.functional.leaky_relu(norm(joined), NEGATIVE_SLOPE)
        return self.head.finish(full(self.head.conv(self.widen(x))))

    def fold(self, folder: Folder, z: Value) -> Value:
        """Fold the network, see `Network.fold`."""
        x, encoded = z, []
        for i, stage in enumerate(self.encode):
            assert isinstance(stage, Block)
            x = stage.fold(folder, x, f"encode.{i}")
            encoded.append(x)
        stages = zip(self.decode, self.skip, self.norm, encoded[4:0:-1], strict=True)
        for i, (decode, skip, norm, same_size) in enumerate(stages):
            assert isinstance(decode, nn.ConvTranspose2d)
            assert isinstance(skip, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            parts = folder.transposed_conv(x, decode, f"decode.{i}"), folder.conv(same_size, skip, f"skip.{i}")
            joined = folder.norm(folder.layer("concat", f"concat.{i}", *parts), norm)
            x = folder.layer("leaky_relu", f"relu.{i}", joined, slope=NEGATIVE_SLOPE)
        return self.head.fold(folder, self.widen.fold(folder, x, "widen"), "head")
