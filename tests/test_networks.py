"""The networks: their shapes, their parameters, and the original program's weights in `Skip`."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import dip_fast
from dip_fast import networks
from dip_fast.networks import Coarse, Decoder, Hourglass, Skip
from dip_fast.presets import PRESETS, FitOptions, Recipe

# Outputs of the original program's network, in float64, for weights and inputs given by the formulas below; its
# state_dict keys and shapes stand beside them.
ORIGINAL = np.load(Path(__file__).parent / "data" / "skip_original.npz")
SAME_AS_ORIGINAL = {
    "bilinear-stride": {"skip": (4, 3), "upsampling": "bilinear"},
    "no-outer-branch-average": {"skip": (0, 4), "upsampling": "bilinear", "downsampling": "average"},
    "nearest-max-5x5-no-1x1": {
        "skip": (4, 0),
        "upsampling": "nearest",
        "downsampling": "max",
        "kernel_down": 5,
        "conv1x1": False,
    },
}


def original_state(case: str) -> dict[str, Tensor]:
    """State of the original's network: a sine in every weight, around 1 in the scales of batch norm."""
    state = {}
    number = 0
    for key, shape_text in zip(ORIGINAL[f"{case}/keys"], ORIGINAL[f"{case}/shapes"], strict=True):
        shape = [int(side) for side in shape_text.split(",")] if shape_text else []
        value = torch.zeros(shape, dtype=torch.float64)
        if key.endswith((".weight", ".bias")):
            wave = torch.sin(0.7 * torch.arange(value.numel(), dtype=torch.float64) + number)
            wave /= value[0].numel() ** 0.5 if value.dim() == 4 else 2
            if value.dim() == 1 and key.endswith(".weight"):
                wave += 1
            value = wave.view(shape)
            number += 1
        state[str(key)] = value
    return state


@pytest.mark.parametrize("case", SAME_AS_ORIGINAL)
def test_weights_of_the_original_load_in_order_and_draw_the_same(case: str) -> None:
    network = Skip(6, 3, down=(8, 12), up=(10, 14), **SAME_AS_ORIGINAL[case]).double()
    network.load_original(original_state(case))
    z = torch.cos(0.37 * torch.arange(6 * 16 * 24, dtype=torch.float64)).view(1, 6, 16, 24)
    with torch.no_grad():
        output = network(z)
    # The worst difference seen is 0: the same operations in the same order.
    np.testing.assert_allclose(output[0].numpy(), ORIGINAL[f"{case}/output"], rtol=0, atol=1e-12)


def test_weights_of_another_original_are_refused() -> None:
    network = Skip(6, 3, down=(8, 12), up=(10, 14), skip=(4, 4))
    with pytest.raises(
        ValueError, match=r"scale\.inner\.skip\.conv\.weight must be \(4, 8, 1, 1\), got \(3, 8, 1, 1\)"
    ):
        network.load_original(original_state("bilinear-stride"))
    with pytest.raises(ValueError, match="must hold 46 weights and biases, got 42"):
        network.load_original(original_state("no-outer-branch-average"))


def test_skip_of_the_paper_has_its_parameters() -> None:
    # 5 scales, 128 channels, 4 skip channels, 32 -> 3 channels: the number that the original's network has.
    assert sum(parameter.numel() for parameter in Skip().parameters()) == 2_217_831


@pytest.mark.parametrize(
    ("network", "z", "image"),
    [
        (Skip(4, 1, down=8, up=8, scales=3), (1, 4, 16, 24), (1, 1, 16, 24)),
        (Skip(4, 3, down=(6, 8), up=8, skip=(0, 3), upsampling=("nearest", "bilinear")), (1, 4, 8, 12), (1, 3, 8, 12)),
        (
            Skip(4, 3, down=8, up=8, scales=1, kernel_up=5, kernel_skip=3, padding_mode="zeros"),
            (1, 4, 4, 6),
            (1, 3, 4, 6),
        ),
        (Hourglass(3, 3), (1, 3, 128, 192), (1, 3, 128, 192)),
        (Decoder(8, 3, depth=2), (1, 8, 4, 6), (1, 3, 16, 24)),
        (Coarse(4, 3, doublings=2, down=8, up=8, scales=1), (1, 4, 4, 6), (1, 3, 16, 24)),
    ],
    ids=["skip", "skip-by-scale", "skip-kernels", "hourglass", "decoder", "coarse"],
)
def test_output_shape(network: torch.nn.Module, z: tuple[int, ...], image: tuple[int, ...]) -> None:
    assert network(torch.rand(z)).shape == image


@pytest.mark.parametrize(
    ("name", "options", "picture", "z"),
    [
        ("skip", {}, (256, 256), (256, 256)),
        ("skip", {}, (257, 100), (288, 128)),
        ("skip", {}, (16, 16), (64, 64)),  # two pixels at the deepest scale
        ("hourglass", {}, (16, 200), (128, 256)),
        ("decoder", {}, (256, 256), (4, 4)),
        ("decoder", {}, (200, 400), (4, 7)),
        ("coarse", {"doublings": 2}, (320, 321), (96, 96)),
        ("coarse", {"doublings": 0}, (257, 100), (288, 128)),
    ],
)
def test_input_covers_the_picture(name: str, options: dict, picture: tuple[int, int], z: tuple[int, int]) -> None:
    with torch.device("meta"):
        network = networks.build(name, 8, 3, **options)
        assert network.input_size(*picture) == z
        output = network(torch.empty(1, 8, *z))
    assert networks.crop(output, *picture).shape == (1, 3, *picture)


@pytest.mark.parametrize("padding_mode", ["reflect", "zeros", "replicate"])
@pytest.mark.parametrize("downsampling", ["stride", "average"])
@pytest.mark.parametrize(
    ("kernels", "least"),
    [
        ({"kernel_down": 5}, 12),
        ({"kernel_down": (9, 3)}, 12),
        ({"kernel_up": 7}, 8),
        ({"kernel_up": (3, 11)}, 12),
        ({"kernel_skip": 9}, 12),
        ({"kernel_skip": (9, 1), "kernel_down": (1, 3)}, 8),
        ({"kernel_down": 1, "kernel_up": 1}, 8),
    ],
    ids=str,
)
def test_smallest_input_size_can_be_padded(kernels: dict, least: int, downsampling: str, padding_mode: str) -> None:
    """Reflection needs more pixels than it adds, at every scale: a 5x5 kernel at the deepest one needs three there."""
    network = Skip(
        1, 1, down=2, up=2, skip=1, scales=2, downsampling=downsampling, padding_mode=padding_mode, **kernels
    )
    size = network.input_size(1, 1)
    assert size == ((least, least) if padding_mode == "reflect" else (8, 8))
    assert network(torch.rand(1, 1, *size)).shape == (1, 1, *size)
    with pytest.raises(ValueError, match=f"multiples of 4 and at least {size[0]}, got"):
        network(torch.rand(1, 1, size[0] - 4, size[0]))
    if padding_mode == "reflect" and least > 8:
        network._multiples -= 1
        with pytest.raises(RuntimeError, match="Padding size should be less"):
            network(torch.rand(1, 1, size[0] - 4, size[0]))


def test_crop_is_the_middle() -> None:
    image = torch.arange(6 * 8).view(1, 1, 6, 8)
    assert torch.equal(networks.crop(image, 3, 4), image[..., 1:4, 2:6])


def test_batch_norm_uses_the_statistics_of_the_image_in_inference_too() -> None:
    network = Skip(4, 3, down=8, up=8, scales=2)
    z = torch.rand(1, 4, 16, 16)
    fitted = network(z)
    assert torch.equal(network.eval()(z), fitted)
    assert not list(network.buffers())


def test_wrong_size_of_z_is_refused() -> None:
    with pytest.raises(ValueError, match=r"multiples of 32 and at least 64, got \(64, 48\)"):
        Skip(2, 3, down=4, up=4)(torch.rand(1, 2, 64, 48))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"down": (8, 8), "up": (8, 8, 8)}, r"one number of scales, got \[2, 3\]"),
        ({"scales": 0}, "scales must be at least 1, got 0"),
        ({"kernel_up": 4}, "kernel sizes must be odd"),
        ({"upsampling": "bicubic"}, "upsampling must be one of nearest, bilinear, got 'bicubic'"),
        ({"downsampling": ("stride", "lanczos"), "scales": 2}, "got 'lanczos'"),
    ],
)
def test_wrong_options_of_skip_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Skip(4, 3, **options)


def test_unknown_network_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of skip, hourglass, decoder, coarse, got 'unet'"):
        networks.build("unet", 3, 3)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build(name: str) -> None:
    recipe = PRESETS[name].recipe
    with torch.device("meta"):
        network = networks.build(recipe.network, recipe.in_channels, 1, **recipe.network_options)
        output = network(torch.empty(1, recipe.in_channels, *network.input_size(256, 256)))
    assert output.shape == (1, 1, 256, 256)


def test_names_of_networks_load_no_torch() -> None:
    code = (
        "import sys\n"
        "from dip_fast.networks import NETWORKS\n"
        "assert [*NETWORKS][:3] == ['skip', 'hourglass', 'decoder'], [*NETWORKS]\n"
        "assert 'skip' in NETWORKS\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


MINE = """
from torch import nn

from dip_fast.networks import Network


class Mine(Network):
    multiple = 2

    def __init__(self, in_channels, out_channels, width=6):
        super().__init__()
        self.first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width, track_running_stats=False)
        self.last = nn.Conv2d(width, out_channels, 1)

    def forward(self, z):
        return self.last(nn.functional.leaky_relu(self.norm(self.first(z)), 0.1)).sigmoid()

    def fold(self, folder, z):
        x = folder.norm(folder.conv(z, self.first, "first"), self.norm)
        x = folder.layer("leaky_relu", "relu", x, slope=0.1)
        return folder.layer("sigmoid", "sigmoid", folder.conv(x, self.last, "last"))
"""


def test_network_of_another_package_is_built_fitted_and_exported_by_its_name(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("networks_of_mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(place)
    monkeypatch.setattr(networks.NETWORKS, "_entries", {**networks.NETWORKS._entries})
    networks.NETWORKS.register("mine", "networks_of_mine:Mine")
    assert "networks_of_mine" not in sys.modules
    assert networks.build("mine", 2, 3).fusible() == []

    recipe = Recipe("mine", {"width": 5}, 2, "uniform", FitOptions(iterations=3, consolidation=2))
    target = torch.rand(1, 3, 17, 21, generator=torch.Generator().manual_seed(0))
    result = dip_fast.fit(dip_fast.Identity(target), recipe)
    for suffix in (".onnx", ".pt", ".pt2"):
        drawn = dip_fast.replay(dip_fast.export(result, f"model{suffix}"), trust=True)
        np.testing.assert_allclose(drawn, result.image, rtol=0, atol=2e-5)
    del sys.modules["networks_of_mine"]
