"""Fused U-Nets as they are written: with skip connections, in functions, to sizes, called with any arguments."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from fuse_models import check, conv, picture
from torch import Tensor, nn

import dip_fast

pytestmark = pytest.mark.usefixtures("fixed_seed")


class SkipBlock(nn.Module):
    """The block of segmentation_models_pytorch's Unet: a size, a skip connection that need not be, attention or not."""

    def __init__(self, channels: int = 4, skip: int = 3, padding_mode: str = "zeros") -> None:
        super().__init__()
        self.attention = nn.Identity()
        wide = nn.Conv2d(channels + skip, channels, 3, padding=1, padding_mode=padding_mode)
        self.with_skip = nn.Sequential(wide, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        self.without_skip = conv(channels)

    def forward(self, x: Tensor, height: int, width: int, skip: Tensor | None = None) -> Tensor:
        x = F.interpolate(x, size=(height, width), mode="nearest")
        if skip is None:
            return self.without_skip(x)
        return self.with_skip(self.attention(torch.cat([x, skip], dim=1)))


class Unet(nn.Module):
    def __init__(self, up: Callable[[Tensor, Tensor], Tensor], inputs: int, padding_mode: str = "zeros") -> None:
        super().__init__()
        self.down, self.across = nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 3, 1)
        self.join = up
        self.up = nn.Conv2d(inputs, 4, 3, padding=1, padding_mode=padding_mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.join(self.down(x), self.across(x)))


JOINS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "last": (lambda x, skip: torch.cat([skip, F.interpolate(x, scale_factor=2)], 1), 7),
    "first": (lambda x, skip: torch.cat((F.interpolate(x, scale_factor=2), skip), dim=1), 7),
    "between": (lambda x, skip: torch.concat([skip, F.interpolate(x, scale_factor=2), skip], 1), 10),
    "upsampled twice": (
        lambda x, skip: torch.cat([F.interpolate(x, scale_factor=2), F.interpolate(x + 1, scale_factor=2)], 1),
        8,
    ),
    "size of the skip": (lambda x, skip: torch.cat([skip, F.interpolate(x, skip.shape[2:], mode="bilinear")], 1), 7),
}


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
@pytest.mark.parametrize("name", JOINS)
def test_concatenation_before_the_convolution(name: str, padding_mode: str, fused_calls: list[tuple[str, str]]) -> None:
    join, inputs = JOINS[name]
    check(Unet(join, inputs, padding_mode), picture(2, 4, 8, 12), fused_calls, 1)


def test_odd_sizes_and_other_concatenations_run_plain(fused_calls: list[tuple[str, str]]) -> None:
    check(Unet(JOINS["size of the skip"][0], 7), picture(2, 4, 7, 12), fused_calls, 0)
    rows = Unet(lambda x, skip: torch.cat([F.interpolate(x, scale_factor=2)] * 2, 2), 4)
    check(rows, picture(), fused_calls, 0)
    assert "it is read by cat, not by an nn.Conv2d" in str(dip_fast.fusion_report(rows))


def test_skip_that_is_changed_in_place_is_left(fused_calls: list[tuple[str, str]]) -> None:
    class Changes(Unet):
        def forward(self, x: Tensor) -> Tensor:
            skip = self.across(x)
            joined = torch.cat([F.interpolate(self.down(x), scale_factor=2), skip], 1)
            return self.up(joined) + skip.add_(1).sum()

    class ChangesBetween(Unet):
        def forward(self, x: Tensor) -> Tensor:
            skip = self.across(x)
            joined = torch.cat([F.interpolate(self.down(x), scale_factor=2), skip], 1)
            skip.add_(1)
            return self.up(joined)

    join, inputs = JOINS["first"]
    for kind in (Changes, ChangesBetween):
        model = kind(join, inputs)
        check(model, picture(2, 4, 8, 12), fused_calls, 0)
        assert "add_ may change in place what the convolution reads" in str(dip_fast.fusion_report(model))


def test_channels_last_stays_with_a_skip(fused_calls: list[tuple[str, str]]) -> None:
    model, x = Unet(*JOINS["first"]), picture(2, 4, 8, 12).to(memory_format=torch.channels_last)
    expected, got = model(x), dip_fast.fuse(model)(x)
    assert got.stride() == expected.stride()
    assert len(fused_calls) == 1


class Functional(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(picture(4, 4, 3, 3)), nn.Parameter(picture(4))
        self.options = options or {"padding": 1}

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.interpolate(x, scale_factor=2.0), self.weight, self.bias, **self.options)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "options", [{"padding": 1}, {"padding": (1, 1), "stride": (1, 1)}, {"padding": "same"}], ids=str
)
def test_function_in_place_of_the_layer(options: dict[str, object], fused_calls: list[tuple[str, str]]) -> None:
    model = Functional(**options)
    check(nn.Sequential(model), picture(), fused_calls, 1)
    assert str(dip_fast.fusion_report(model)) == "replaced 1\n  the model itself: nearest, zeros\nleft 0"


@pytest.mark.parametrize(
    "options", [{"padding": 0}, {"padding": 1, "stride": 2}, {"padding": 2, "dilation": 2}], ids=str
)
def test_function_that_is_left(options: dict[str, object], fused_calls: list[tuple[str, str]]) -> None:
    model = Functional(**options)
    check(model, picture(), fused_calls, 0)
    assert "conv2d has " in str(dip_fast.fusion_report(model))


def test_weight_that_is_computed(fused_calls: list[tuple[str, str]]) -> None:
    """As in StyleGAN's modulated convolutions, and between two images of other taps."""

    class Modulated(nn.Module):
        def __init__(self, taps: int) -> None:
            super().__init__()
            self.weight, self.style = nn.Parameter(picture(4, 4, taps, taps)), nn.Parameter(picture(4, 1, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            up = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            weight = self.weight * self.style
            return F.conv2d(F.pad(up, (1, 1, 1, 1), mode="replicate"), weight / weight.norm())

    check(Modulated(3), picture(), fused_calls, 1)
    check(Modulated(2), picture(), fused_calls, 0)


class ListedSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.conv = nn.Sequential(conv(), nn.ReLU()), conv()

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return self.conv(F.interpolate(x, size=[2 * side for side in x.shape[2:]], mode="nearest"))


def test_size_in_a_comprehension(fused_calls: list[tuple[str, str]]) -> None:
    model = ListedSize()
    fused = check(model, picture(), fused_calls, 1)
    row = picture(4, 4, 6)  # of three dimensions: no image for the upsampling, but one for the convolution
    torch.testing.assert_close(fused(row), model(row), atol=0, rtol=0)


def test_arguments_that_a_block_is_called_with(fused_calls: list[tuple[str, str]]) -> None:
    plain = SkipBlock()
    fused = dip_fast.fuse(plain)
    x, skip = picture(2, 4, 4, 6), picture(2, 3, 8, 12)
    for args, kwargs, expected in [
        ((x, 8, 12), {}, 1),
        ((x, 8, 13), {}, 0),
        ((x, 8, 12), {"skip": skip}, 1),
        ((x,), {"width": 12, "height": 8, "skip": skip}, 1),
        ((x, 8, 12, None), {}, 1),
        ((torch.cat([x, x], 3), 8, 24, torch.cat([skip, skip], 3)), {}, 1),
    ]:
        fused_calls.clear()
        torch.testing.assert_close(fused(*args, **kwargs), plain(*args, **kwargs), atol=1e-5, rtol=1e-5)
        assert len(fused_calls) == expected
    compiled = torch.compile(fused, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, 8, 12, skip), plain(x, 8, 12, skip), atol=1e-5, rtol=1e-5)


def test_numbers_that_are_shapes(fused_calls: list[tuple[str, str]]) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = SkipBlock(padding_mode="replicate")

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x[:, :4, ::2, ::2], *x.shape[2:], skip=x[:, 4:])

    check(Around(), picture(2, 7, 8, 12), fused_calls, 1)


def test_report_counts_what_ran(fused_calls: list[tuple[str, str]]) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.norm = SkipBlock(), SkipBlock(), nn.BatchNorm2d(4)

        def forward(self, x: Tensor, factor: int) -> Tensor:
            height, width = x.shape[2] * 2, x.shape[3] * factor
            x = self.first(self.norm(x), height, width)
            return self.second(x, 2 * height, 2 * width, skip=x[:, :3].repeat(1, 1, 2, 2))

    model, x = Two(), picture(2, 4, 4, 6)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    first = "first.without_skip: nearest, zeros (if its size is twice that of its input)"
    second = "second.with_skip.0: nearest, zeros (if its size is twice that of its input; what it is concatenated with "
    ran = [str(pair) for pair in dip_fast.fusion_report(model, x, factor=2).replaced]
    assert ran == [first, second + "is convolved apart)"]
    assert len(fused_calls) == 2
    report = str(dip_fast.fusion_report(dip_fast.fuse(model), x, 3)).splitlines()
    assert report[0] == "replaced 1"
    assert report[1:] == [
        "  second.with_skip.0: nearest, zeros (if its size is twice that of its input; what it is concatenated with is "
        "convolved apart)",
        "replaced, not used 1",
        "  first.without_skip: nearest, zeros (its size is not twice that of its input)",
        "left 0",
    ]
    assert type(model.first) is SkipBlock
    assert model.training
    torch.testing.assert_close(model.state_dict(), state, atol=0, rtol=0)


def test_image_too_small_to_gain_runs_plain() -> None:
    """The operator took twice to ten times as long as the layers at 8x8 and less."""
    model = nn.Sequential(nn.Upsample(scale_factor=2), conv())
    sizes = [(3, 8, 8), (31, 8, 8), (32, 8, 8)]
    reports = [str(dip_fast.fusion_report(model, picture(batch, 4, *size))) for batch, *size in sizes]
    for report in reports[:2]:
        assert "replaced, not used 1\n  1: nearest, zeros (the image is too small to gain from it)" in report
    assert "replaced 1\n" in reports[2]
    joined, x = Unet(*JOINS["first"]), picture(1, 4, 96, 96)
    assert "(it has too few channels to gain beside what it is concatenated with)" in str(
        dip_fast.fusion_report(joined, x)
    )
