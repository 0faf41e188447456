"""ConvDecoder of Darestani and Heckel: no encoder, the input is a handful of pixels with many channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from dip_fast.networks.layers import Fusible, Network, batch_norm, cover

if TYPE_CHECKING:
    from dip_fast.programs.folding import Folder, Value


class Layer(Fusible):
    """Nearest upsampling x2, or none, convolution 3x3, ReLU, batch norm: ``conv.*`` and ``norm.*``."""

    def __init__(self, channels: int, *, upsample: bool) -> None:
        super().__init__()
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest") if upsample else nn.Identity()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = batch_norm(channels)
        self.obstacle = "" if upsample else "it does not upsample"

    def forward(self, x: Tensor) -> Tensor:
        """Draw the next layer: ``(N, channels, H, W)`` to the same or to twice the height and width."""
        if self.fused:
            from dip_fast.ops import upsample_conv2d  # here, since it loads or builds the extension

            assert self.conv.bias is not None
            weight, bias = self.conv.weight.to(x.dtype), self.conv.bias.to(x.dtype)
            drawn = upsample_conv2d(x, weight, bias, mode="nearest", padding_mode="zeros")
        else:
            drawn = self.conv(self.upsample(x))
        normed: Tensor = self.norm(nn.functional.relu(drawn, inplace=True))
        return normed

    def fold(self, folder: Folder, x: Value, name: str) -> Value:
        """Fold the layer, see `Network.fold`."""
        if isinstance(self.upsample, nn.Upsample):
            x = folder.upsample_conv(x, self.conv, f"{name}.conv", mode="nearest")
        else:
            x = folder.conv(x, self.conv, f"{name}.conv")
        return folder.norm(folder.layer("leaky_relu", f"{name}.relu", x, slope=0.0), self.norm)


class Decoder(Network):
    """Decoder from a tiny input: ``(N, channels, H, W) -> (N, out_channels, 2**depth H, 2**depth W)``, unbounded.

    ``depth`` times: nearest upsampling x2, convolution 3x3 (zero padding), ReLU, batch norm.  Then a convolution 3x3,
    ReLU, batch norm, and a 1x1 convolution to the image channels.  Parameters: ``layers.<i>.<conv|norm>`` for the
    ``depth + 1`` convolutions 3x3, and ``head``.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the network input, and of every layer; channels of the image.
    depth : int
        Number of doublings.

    Notes
    -----
    The input is at least 4x4, so the image is at least 256x256 for the default depth; a smaller picture is cut from it.

    References
    ----------
    M. Z. Darestani, R. Heckel, "Accelerated MRI with Un-trained Neural Networks", IEEE Transactions on Computational
    Imaging 7 (2021), doi:10.1109/TCI.2021.3097596.
    """

    def __init__(self, in_channels: int = 256, out_channels: int = 3, *, depth: int = 6) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Layer(in_channels, upsample=i < depth) for i in range(depth + 1)))
        self.head = nn.Conv2d(in_channels, out_channels, 1)
        self.multiple = 2**depth

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of z whose output covers a picture of ``height x width``."""
        return cover(height, self.multiple, 4) // self.multiple, cover(width, self.multiple, 4) // self.multiple

    def forward(self, z: Tensor) -> Tensor:
        """Draw the image from ``z``, ``(N, in_channels, H, W)``."""
        image: Tensor = self.head(self.layers(z))
        return image

    def fold(self, folder: Folder, z: Value) -> Value:
        """Fold the network, see `Network.fold`."""
        x = z
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            x = layer.fold(folder, x, f"layers.{i}")
        return folder.conv(x, self.head, "head")
