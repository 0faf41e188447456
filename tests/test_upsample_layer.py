"""The layer ``UpsampleConv2d`` against upsampling and convolution."""

from __future__ import annotations

import pytest
import torch
from fuse_models import picture
from torch import nn

import dip_fast

pytestmark = pytest.mark.usefixtures("fixed_seed")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate"])
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_layer_is_upsample_and_convolution(mode: str, padding_mode: str, bias: bool) -> None:
    torch.manual_seed(3)
    layer = dip_fast.UpsampleConv2d(4, 6, bias=bias, mode=mode, padding_mode=padding_mode)
    torch.manual_seed(3)
    plain = nn.Sequential(
        nn.Upsample(scale_factor=2, mode=mode), nn.Conv2d(4, 6, 3, padding=1, padding_mode=padding_mode, bias=bias)
    )
    assert {k: v.tolist() for k, v in layer.state_dict().items()} == {
        k: v.tolist() for k, v in plain[1].state_dict().items()
    }
    layer.load_state_dict(plain[1].state_dict())
    x = picture()
    torch.testing.assert_close(layer(x), plain(x), atol=1e-5, rtol=1e-5)


def test_layer_shows_its_arguments() -> None:
    layer = dip_fast.UpsampleConv2d(4, 6, bias=False, mode="bilinear", dtype=torch.float64, device="cpu")
    assert str(layer) == "UpsampleConv2d(4, 6, mode='bilinear', padding_mode='zeros', bias=False)"
    assert layer.weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"out_channels": -1}, "out_channels must be at least 1, got -1"),
        ({"mode": "bicubic"}, "mode must be one of nearest, bilinear, got 'bicubic'"),
        ({"padding_mode": "circular"}, "padding_mode must be one of zeros, reflect, replicate, got 'circular'"),
    ],
)
def test_layer_refuses(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dip_fast.UpsampleConv2d(**({"in_channels": 2, "out_channels": 2} | options))  # type: ignore[arg-type]
