"""Pairs in ``nn.Sequential``: which are fused, which are left and why, and what the report prints."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fuse_models import check, conv, picture
from torch import nn

import dip_fast

pytestmark = pytest.mark.usefixtures("fixed_seed")


PADS: dict[str, tuple[Callable[[], nn.Module] | None, dict[str, object], str]] = {
    "zeros of the convolution": (None, {}, "zeros"),
    "same": (None, {"padding": "same"}, "zeros"),
    "reflection of the convolution": (None, {"padding_mode": "reflect"}, "reflect"),
    "replication of the convolution": (None, {"padding_mode": "replicate"}, "replicate"),
    "ZeroPad2d": (lambda: nn.ZeroPad2d(1), {"padding": 0}, "zeros"),
    "ConstantPad2d": (lambda: nn.ConstantPad2d(1, 0.0), {"padding": 0}, "zeros"),
    "ReflectionPad2d": (lambda: nn.ReflectionPad2d(1), {"padding": 0}, "reflect"),
    "ReplicationPad2d": (lambda: nn.ReplicationPad2d(1), {"padding": "valid"}, "replicate"),
}


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "nearest-exact"])
@pytest.mark.parametrize("name", PADS)
def test_sequence_with_every_padding(mode: str, name: str, fused_calls: list[tuple[str, str]]) -> None:
    pad, options, padding_mode = PADS[name]
    layers = [nn.Upsample(scale_factor=2, mode=mode), *([] if pad is None else [pad()]), conv(**options)]
    check(nn.Sequential(*layers, nn.LeakyReLU(inplace=True)), picture(), fused_calls, 1)
    assert set(fused_calls) == {(mode.removesuffix("-exact"), padding_mode)}


def test_pair_across_nested_sequences(fused_calls: list[tuple[str, str]]) -> None:
    tail = nn.Sequential(nn.ReflectionPad2d(1), conv(padding=0, bias=False))
    model = nn.Sequential(nn.Sequential(conv(), nn.Upsample(scale_factor=(2, 2))), tail, nn.BatchNorm2d(4))
    check(model, picture(), fused_calls, 1)


def test_one_pixel(fused_calls: list[tuple[str, str]]) -> None:
    model = nn.Sequential(nn.Upsample(scale_factor=2), nn.ReflectionPad2d(1), conv(padding=0))
    check(model, picture(1, 4, 1, 1), fused_calls, 1)


LEFT = {
    "scale factor": ([nn.Upsample(scale_factor=3), conv()], "its scale factor is 3.0, not 2"),
    "one direction": ([nn.Upsample(scale_factor=(2, 1)), conv()], r"its scale factor is \(2.0, 1.0\), not 2"),
    "mode": ([nn.Upsample(scale_factor=2, mode="bicubic"), conv()], "its mode is bicubic"),
    "corners": ([nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), conv()], "corners are aligned"),
    "kernel": ([nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 5, padding=1)], r"1 \(Conv2d\) has kernel_size \(5, 5\)"),
    "stride": ([nn.Upsample(scale_factor=2), conv(stride=2)], "has stride"),
    "dilation": ([nn.Upsample(scale_factor=2), conv(dilation=2)], "has dilation"),
    "groups": ([nn.Upsample(scale_factor=2), conv(groups=2)], "has groups 2, not 1"),
    "no padding": ([nn.Upsample(scale_factor=2), conv(padding=0)], "padded by other than one pixel"),
    "wide padding": ([nn.Upsample(scale_factor=2), conv(padding=2)], r"has padding \(2, 2\), not 1"),
    "wide layer": ([nn.Upsample(scale_factor=2), nn.ReflectionPad2d(2), conv(padding=0)], r"read by 1 \(Reflection"),
    "constant": ([nn.Upsample(scale_factor=2), nn.ConstantPad2d(1, 0.5), conv(padding=0)], r"read by 1 \(ConstantPad"),
    "padded twice": ([nn.Upsample(scale_factor=2), nn.ZeroPad2d(1), conv()], "padded twice"),
    "circular": ([nn.Upsample(scale_factor=2), conv(padding_mode="circular")], "has padding_mode circular"),
    "normalised between": ([nn.Upsample(scale_factor=2), nn.BatchNorm2d(4), conv()], r"read by 1 \(BatchNorm2d\)"),
    "transposed": (
        [nn.Upsample(scale_factor=2), nn.ConvTranspose2d(4, 4, 3), conv()],
        r"read by 1 \(ConvTranspose2d\)",
    ),
    "last": ([conv(), nn.Upsample(scale_factor=2)], "the code around this module"),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_with_a_reason(name: str, fused_calls: list[tuple[str, str]]) -> None:
    layers, reason = LEFT[name]
    model = nn.Sequential(*layers)
    check(model, picture(), fused_calls, 0)
    report = dip_fast.fusion_report(model)
    assert report.replaced == []
    assert len(report.left) == 1
    with pytest.raises(ValueError, match=reason):  # `match` shows both when they differ
        raise ValueError(report.left[0].reason)


def test_report() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Upsample(scale_factor=2), conv()),
        nn.Upsample(size=(20, 24), mode="bilinear"),
        conv(padding_mode="reflect"),
        nn.Upsample(scale_factor=4),
    )
    wanted = """replaced 2
  0.1: nearest, zeros
  2: bilinear, reflect (if its size is twice that of its input)
left 1
  3: its scale factor is 4.0, not 2"""
    assert str(dip_fast.fusion_report(model)) == wanted
    assert str(dip_fast.fusion_report(dip_fast.fuse(model))) == wanted
    assert type(model[0]) is nn.Sequential
