"""The folded network is the network: batch norm gone, the same picture."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from dip_fast import networks
from dip_fast.models import onnx_format
from dip_fast.networks import Coarse, Decoder, Hourglass, Skip
from dip_fast.networks.layers import batch_norm
from dip_fast.networks.network_input import draw
from dip_fast.programs import drawing as torch_program
from dip_fast.programs import folding
from dip_fast.programs.folding import Folder, Value
from dip_fast.programs.program import InputPart, Layer, Program

SIZE = (37, 45)

NETWORKS = {
    "nearest": lambda: Skip(5, 3, down=8, up=12, skip=4, scales=3, upsampling="nearest"),
    "bilinear": lambda: Skip(5, 3, down=8, up=12, skip=4, scales=3, upsampling="bilinear"),
    "zeros": lambda: Skip(5, 3, down=8, up=8, scales=2, upsampling="bilinear", padding_mode="zeros"),
    "zeros-nearest": lambda: Skip(5, 3, down=8, up=8, scales=2, upsampling="nearest", padding_mode="zeros"),
    "replicate": lambda: Skip(5, 3, down=8, up=8, scales=2, padding_mode="replicate"),
    "average": lambda: Skip(5, 3, down=8, up=8, scales=2, downsampling="average"),
    "max": lambda: Skip(5, 3, down=8, up=8, scales=2, downsampling="max"),
    "no-branch": lambda: Skip(5, 3, down=8, up=8, skip=(0, 3), upsampling="nearest"),
    "no-1x1": lambda: Skip(5, 3, down=8, up=8, scales=2, conv1x1=False),
    "kernels": lambda: Skip(
        5, 1, down=8, up=8, kernel_down=5, kernel_up=(5, 3, 1), kernel_skip=3, upsampling="nearest"
    ),
    "kernels-zeros": lambda: Skip(5, 1, down=8, up=8, kernel_up=(5, 3), padding_mode="zeros"),
    "hourglass": lambda: Hourglass(5, 3),
    "decoder": lambda: Decoder(5, 3, depth=3),
    "coarse": lambda: Coarse(5, 3, doublings=1, down=8, up=8, scales=2),
}


def made(case: str, seed: int = 0) -> tuple[networks.Network, Program]:
    """A network whose scales are of both signs and whose shifts are not 0, and what it folds to."""
    torch.manual_seed(seed)
    network = NETWORKS[case]()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = torch.where(torch.rand_like(module.weight) < 0.3, -1, 1) * (
                0.5 + torch.rand_like(module.weight)
            )
            module.bias.data = torch.randn_like(module.bias) / 2
    z = draw("gaussian", 5, network.input_size(*SIZE), seed=seed)
    return network, folding.fold(network, z, SIZE)


@pytest.mark.parametrize("case", NETWORKS)
def test_folded_network_draws_what_the_network_draws(case: str) -> None:
    network, program = made(case)
    ((codes, denominator),) = program.inputs
    z = torch.from_numpy(codes).float() / denominator
    with torch.no_grad():
        expected = networks.crop(network.double()(z.double()), *SIZE)[0].permute(1, 2, 0).numpy()
    # Against the network in float64.  Worst seen: 1.2e-5, max pooling; the scale is that of the decoder, unbounded.
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(torch_program.draw(program), expected, rtol=0, atol=5e-5 * scale)


@pytest.mark.parametrize("case", NETWORKS)
def test_statistics_are_folded_into_convolutions(case: str) -> None:
    _, program = made(case)
    left = [layer.name for layer in program.layers if layer.kind == "affine"]
    if case in ("zeros", "zeros-nearest", "kernels-zeros", "decoder", "max"):
        assert left  # beside padding with zeros, and behind a maximum, they stay what they are
    else:
        assert not left


@pytest.mark.parametrize("case", NETWORKS)
def test_program_survives_its_file(case: str) -> None:
    _, program = made(case)
    data = onnx_format.write(program, {"picture": "none"}, {"blob": "text"})
    model = onnx.load_model_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    again, metadata, blobs = onnx_format.read(data)
    assert again.outline() == program.outline()
    assert (metadata["picture"], blobs) == ("none", {"blob": "text"})
    assert again.arrays.keys() == program.arrays.keys()
    for name, array in program.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)
    assert onnx_format.write(again, {"picture": "none"}, {"blob": "text"}) == data


def test_folding_leaves_the_network_alone() -> None:
    torch.manual_seed(1)
    network = Skip(5, 3, down=8, up=8, scales=2).use("fused")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    folding.fold(network, draw("uniform", 5, (40, 48), seed=0), SIZE)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert network.scale.fused


def test_network_that_does_not_fold_itself_is_refused() -> None:
    with pytest.raises(TypeError, match=r"method fold\(folder, z\) to be folded; Conv2d has none"):
        folding.fold(nn.Conv2d(1, 1, 1), draw("uniform", 1, (4, 4), seed=0), (4, 4))


class Branches(networks.Network):
    """Everything that a folder must keep apart: two norms of one output, a sum of one output with itself, a residual.

    What it reads twice is ``first``, whose output goes into two norms and, as it is, into ``last``.
    """

    multiple = 2

    def __init__(self, shared: bool = True) -> None:
        super().__init__()
        self.shared = shared
        self.first = nn.Conv2d(5, 6, 3, padding=1)
        self.norms = nn.ModuleList(batch_norm(6) for _ in range(2))
        self.twice = nn.Conv2d(6, 6, 1, bias=False)
        self.norm = batch_norm(6)
        self.deep = nn.ModuleList(nn.ConvTranspose2d(6, 3, 4, stride=2, padding=1, bias=False) for _ in range(3))
        self.joined = batch_norm(9)
        self.again = batch_norm(9)
        self.last = nn.Conv2d(9, 3, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        first = self.first(z)
        left, right = (nn.functional.leaky_relu(norm(first), 0.1) for norm in self.norms)
        x = self.twice(left)
        x = self.norm(x + x) + right + first
        parts = [nn.functional.avg_pool2d(conv(x), 2) for conv in self.deep]
        joined = torch.cat(parts, dim=1)
        return self.last(self.again(self.joined(joined)))

    def fold(self, folder: Folder, z: Value) -> Value:
        first = folder.conv(z, self.first, "first")
        left, right = (
            folder.layer("leaky_relu", f"relu.{i}", folder.norm(first, norm, shared=self.shared), slope=0.1)
            for i, norm in enumerate(self.norms)
        )
        x = folder.conv(left, self.twice, "twice")
        x = folder.norm(folder.layer("add", "sum", x, x), self.norm)
        x = folder.layer("add", "residual", folder.layer("add", "right", x, right), first)
        parts = [
            folder.layer("average_pool", f"pool.{i}", folder.transposed_conv(x, conv, f"deep.{i}"))
            for i, conv in enumerate(self.deep)
        ]
        joined = folder.norm(folder.layer("concat", "joined", *parts), self.joined)
        return folder.conv(folder.norm(joined, self.again), self.last, "last")


def test_outputs_with_several_readers_are_folded() -> None:
    torch.manual_seed(0)
    network = Branches()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    z = draw("gaussian", 5, (38, 46), seed=0)
    program = folding.fold(network, z, SIZE)
    with torch.no_grad():
        expected = networks.crop(network.double()(z.tensor().double()), *SIZE)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(torch_program.draw(program), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    # The two norms of "first", of "sum", whose convolution is read twice; those of "joined" are in the convolutions.
    affine = [layer.name for layer in program.layers if layer.kind == "affine"]
    assert affine == ["first.norm", "first.norm2", "sum.norm"]
    assert onnx_format.write(onnx_format.read(onnx_format.write(program))[0]) == onnx_format.write(program)


class Wrong(networks.Network):
    """A network whose fold does something that no program describes."""

    def __init__(self, fold: Callable[[Folder, Value], Value]) -> None:
        super().__init__()
        self.how = fold

    def fold(self, folder: Folder, z: Value) -> Value:
        return self.how(folder, z)


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        (lambda f, z: f.conv(z, nn.Conv2d(5, 3, 3, dilation=2), "head"), "head: .*groups=1 and dilation=1"),
        (lambda f, z: f.conv(z, nn.Conv2d(5, 5, 3, groups=5), "head"), "head: .*groups=1 and dilation=1"),
        (lambda f, z: f.conv(z, nn.Conv2d(5, 3, (1, 3)), "head"), "head: a convolution must be square"),
        (lambda f, z: f.conv(z, nn.Conv2d(5, 3, 3, padding="same"), "head"), "head: a convolution must be square"),
        (lambda f, z: f.conv(z, nn.Conv2d(5, 3, 3, stride=3), "head"), "head: stride must be one of 1, 2"),
        (lambda f, z: f.upsample_conv(z, nn.Conv2d(5, 3, 5), "head", mode="nearest"), "head: .* must be 3x3"),
        (lambda f, z: f.transposed_conv(z, nn.ConvTranspose2d(5, 3, 2, 2), "head"), "head: .* must be 4x4"),
        (lambda f, z: f.norm(z, nn.BatchNorm2d(5)), "use the image's statistics"),
        (lambda f, z: f.norm(z, nn.BatchNorm2d(5, affine=False, track_running_stats=False)), "must have weight and"),
        (lambda f, z: z, "must return the value of the last layer, got z"),
        (lambda f, z: (f.layer("sigmoid", "one", z), f.layer("sigmoid", "two", z))[0], "last layer, got one"),
        (lambda f, z: f.layer("sigmoid", "one", f.layer("sigmoid", "one", z)), "two layers are called one"),
        (lambda f, z: f.conv(z, nn.Conv2d(5, 3, 1), "crop"), "crop is a name that model files use"),
        (lambda f, z: f.conv(z, nn.Conv2d(5, 3, 1), "Head"), "must begin with a small letter"),
        (
            lambda f, z: Branches(shared=False).fold(f, z),
            "a batch norm reads first .* fold that batch norm with shared=True",
        ),
    ],
)
def test_what_no_program_describes_is_refused(fold: Callable[[Folder, Value], Value], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        folding.fold(Wrong(fold), draw("uniform", 5, (38, 46), seed=0), SIZE)


def upsampled(name: str, times: int) -> list[Layer]:
    """Double the sides again and again."""
    names = [name, *(f"u{i}" for i in range(times))]
    return [Layer("upsample", new, (old,), {"mode": "nearest"}) for old, new in itertools.pairwise(names)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"size": (41, 10**6)}, "must lie in what is drawn"),
        (lambda p: {"size": (0, 5)}, "size must be positive"),
        (lambda p: {"inputs": (InputPart(p.inputs[0].codes, 0),)}, "denominator"),
        (lambda p: {"inputs": (InputPart(p.inputs[0].codes, True),)}, "denominator"),
        (lambda p: {"value_range": (1.0, 1.0)}, "range must not be empty"),
        (lambda p: {"value_range": (0.0, float("inf"))}, "must be two finite floats"),
        (lambda p: {"inputs": ()}, "1 to 64 parts"),
        (lambda p: {"inputs": 65 * p.inputs}, "1 to 64 parts"),
        (lambda p: {"inputs": (InputPart(p.inputs[0].codes.astype(np.int32), 32),)}, "8 or 16 bits or float32"),
        (lambda p: {"inputs": (InputPart(p.inputs[0].codes.astype(np.float32), 32),)}, "must be 1"),
        (lambda p: {"inputs": (InputPart(np.full((1, 5, 40, 48), np.nan, np.float32), 1),)}, "z must be finite"),
        (lambda p: {"inputs": (InputPart(p.inputs[0].codes[0], 32),)}, r"z must be \(1, C, h, w\)"),
        (lambda p: {"inputs": (InputPart(p.inputs[0].codes[:, :4], 32),)}, "do not have the shape"),
        (lambda p: {"inputs": (*p.inputs, InputPart(p.inputs[0].codes[..., 1:], 32))}, "of one size"),
        (lambda p: {"inputs": (*p.inputs, InputPart(p.inputs[0].codes, 32))}, "do not have the shape"),
        (lambda p: {"arrays": p.arrays | {"more": np.zeros(3, np.float32)}}, "those that layers use"),
        (lambda p: {"arrays": p.arrays | {"head.bias": np.full(3, np.nan, np.float32)}}, "finite"),
        (lambda p: {"arrays": p.arrays | {"head.bias": np.zeros(3)}}, "16- or 32-bit floats"),
        (lambda p: {"arrays": p.arrays | {"head.bias": np.zeros(4, np.float32)}}, "head: .* do not have the shape"),
        (lambda p: {"layers": ()}, "1 to 10000 layers"),
        (lambda p: {"layers": (Layer("run", "xx", ("z",), {}),)}, "must be one of KINDS"),
        (lambda p: {"layers": (Layer("sigmoid", "xx", ("yy",), {}),)}, "computed later or never"),
        (lambda p: {"layers": (*p.layers, p.layers[-1])}, "there twice"),
        (lambda p: {"layers": (*p.layers, Layer("sigmoid", "a/b", ("head",), {}))}, "must begin with a small letter"),
        (lambda p: {"layers": (*p.layers, Layer("sigmoid", "crop", ("head",), {}))}, "crop is a name that model files"),
        (lambda p: {"layers": (*p.layers, Layer("sigmoid", "head.weight", ("head",), {}))}, "named as an array"),
        (lambda p: {"layers": (*p.layers, Layer("leaky_relu", "xx", ("head",), {"slope": 1e9}))}, "xx: slope must be"),
        (lambda p: {"layers": (*p.layers, Layer("add", "xx", ("head",), {}))}, "xx: add must read 2 values"),
        (
            lambda p: {"layers": (*p.layers, *upsampled("head", 20))},
            "empty or huge",
        ),
        (lambda p: {"known": (np.zeros((*SIZE, 2), bool), np.zeros((*SIZE, 3), np.uint8))}, "known.mask"),
        (lambda p: {"known": (np.zeros((*SIZE, 1), bool), np.zeros((*SIZE, 3), np.int32))}, "known.samples"),
    ],
)  # fmt: skip
def test_what_is_no_program_is_refused(change: object, message: str) -> None:
    _, program = made("no-1x1")
    with pytest.raises(ValueError, match=message):
        replace(program, **change(program)).check()  # type: ignore[operator]


def test_names_that_differ_in_dots_alone_are_two_names() -> None:
    layers = [Layer("affine", name, (before,), {}) for name, before in (("a.b", "z"), ("a_b", "a.b"))]
    arrays = {
        f"{name}.{part}": np.full((1, 1, 1), value, np.float32)
        for name, values in (("a.b", (2, 3)), ("a_b", (5, 7)))
        for part, value in zip(("weight", "bias"), values, strict=True)
    }
    inputs = (InputPart(np.ones((1, 1, 4, 4), np.uint8), 1),)
    program = Program(tuple(layers), arrays, inputs, (4, 4), (0.0, 1.0))
    program.check()
    assert (torch_program.draw(program) == (2 + 3) * 5 + 7).all()


def test_memory_that_a_program_needs_is_known_without_running_it() -> None:
    weights = {"big.weight": np.zeros((10_000, 1, 1, 1), np.float32), "big.bias": np.zeros(10_000, np.float32)}
    layers = (Layer("conv", "big", ("z",), {"stride": 1, "padding": 0, "padding_mode": "zeros"}),)
    program = Program(
        layers, weights, (InputPart(np.zeros((1, 1, 1000, 1000), np.uint8), 1),), (1000, 1000), (0.0, 1.0)
    )
    assert program.needed_bytes > 4 * 10_000 * 1000 * 1000
