"""What the original notebooks of Deep Image Prior choose can be said of a recipe, is fitted, and is exported."""

import numpy as np
import pytest
import torch
from fit_cases import TINY, target
from torch import Tensor, nn

import dip_fast
from dip_fast import Identity, UsageError
from dip_fast.fitting import fit, prepare
from dip_fast.networks.layers import Lanczos
from dip_fast.networks.network_input import draw
from dip_fast.networks.skip import Skip

LAYERS = {
    "meshgrid": {"distribution": "meshgrid"},
    "learned input": {"learns_input": True},
    "weight noise": {"weight_noise": 0.02},
    "no sigmoid": {"network_options": {"sigmoid": False}},
    "elu": {"network_options": {"activation": "elu"}},
    "swish": {"network_options": {"activation": "swish"}},
    "lanczos2": {"network_options": {"downsampling": "lanczos2"}},
    "lanczos3": {"network_options": {"downsampling": ("lanczos3", "stride")}},
    "each scale": {"network_options": {"skip": (0, 3), "kernel_down": (5, 3), "kernel_up": (3, 5), "down": (6, 8)}},
}


@pytest.mark.parametrize("changes", LAYERS.values(), ids=LAYERS)
def test_option_is_fitted_repeated_and_exported(changes, tmp_path):
    recipe = TINY.with_(iterations=12, **changes)
    first, second = (fit(Identity(target()), recipe, device="cpu", seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    assert first.history["loss"][-1] < first.history["loss"][0]
    assert (
        np.abs(first.image - fit(Identity(target()), TINY.with_(iterations=12), device="cpu", seed=3).image).max() > 0
    )
    with torch.no_grad():
        drawn = first.network(first.z.tensor())
    assert drawn.shape[1] == 3
    replayed = dip_fast.replay(dip_fast.export(first, tmp_path / "model.onnx"))
    np.testing.assert_allclose(replayed, first.image, atol=5e-5)


@pytest.mark.parametrize("changes", [{"learns_input": True}, {"weight_noise": 0.1}], ids=str)
@pytest.mark.parametrize("perturbation", [0.0, 0.03])
def test_both_engines_and_an_interrupted_fit_take_the_same_steps(changes, perturbation):
    recipe = TINY.with_(iterations=8, perturbation=perturbation, stop="never", **changes)
    fused, plain = (fit(Identity(target()), recipe, device="cpu", engine=engine) for engine in ("fused", "plain"))
    # Later ones differ by what Adam makes of gradients that are nothing but rounding.
    np.testing.assert_allclose(fused.history["loss"][:2], plain.history["loss"][:2], rtol=1e-4)
    parts = prepare(Identity(target()), recipe)
    parts.advance(3)
    other = prepare(Identity(target()), recipe)
    other.load_state(parts.state())
    other.run()
    np.testing.assert_array_equal(other.result().image, fused.image)


def test_learned_input_leaves_the_one_that_was_drawn():
    drawn = fit(Identity(target()), TINY, device="cpu").z
    learned = fit(Identity(target()), TINY.with_(learns_input=True), device="cpu")
    assert learned.z.channels == drawn.channels
    change = learned.z.tensor() - drawn.tensor()
    assert 0 < change.abs().max() < 20 * 0.011  # so many steps of Adam at its learning rate
    assert isinstance(learned.network, Skip)
    with pytest.raises(UsageError, match="learns_input needs a fit whose input is the same at all steps"):
        fit(dip_fast.fitting.masked_prediction(*noisy(), MASKED), MASKED)


MASKED = dip_fast.PRESETS["fast"].with_(learns_input=True, network_options={"scales": 2}, iterations=2).recipe


def noisy():
    y = target(32, 32)
    return y, dip_fast.fitting.measure_noise(y)


def test_meshgrid_holds_the_places_of_the_pixels():
    z = draw("meshgrid", 32, (5, 3), seed=0).tensor()
    assert z.shape == (1, 2, 5, 3)
    np.testing.assert_allclose(z[0, 0, 2], [0, 0.5, 1], atol=1e-5)
    np.testing.assert_allclose(z[0, 1, :, 1], [0, 0.25, 0.5, 0.75, 1], atol=1e-5)
    with pytest.raises(UsageError, match="distribution must be one of uniform, gaussian, meshgrid, got 'normal'"):
        draw("normal", 2, (4, 4), seed=0)


def test_any_image_can_be_the_input():
    guide = torch.rand(1, 2, 17, 21)
    result = fit(Identity(target()), TINY, z=guide, device="cpu")
    top, left = (result.z.size[0] - 17) // 2, (result.z.size[1] - 21) // 2
    torch.testing.assert_close(result.z.tensor()[..., top : top + 17, left : left + 21], guide)


@pytest.mark.parametrize("lobes", [2, 3])
def test_lanczos_is_the_filter_of_the_original_program(lobes):
    """As its ``get_kernel`` makes it with phase 0.5, and its Downsampler pads."""
    side = 4 * lobes
    kernel = np.zeros((side, side))
    for i in range(side):
        for j in range(side):
            di, dj = (abs(k + 1.5 - (side + 2) / 2) / 2 for k in (i, j))
            value = 1.0
            for d in (di, dj):
                value *= lobes * np.sin(np.pi * d) * np.sin(np.pi * d / lobes) / (np.pi * d) ** 2
            kernel[i, j] = value
    kernel /= kernel.sum()
    reduction = Lanczos(lobes)
    np.testing.assert_allclose(reduction.kernel, kernel, atol=1e-6)
    x = torch.rand(1, 3, 12, 10)
    padded = nn.functional.pad(x, ((side - 2) // 2,) * 4, "replicate")
    expected = nn.functional.conv2d(padded.transpose(0, 1), Tensor(kernel)[None, None], stride=2).transpose(0, 1)
    torch.testing.assert_close(reduction(x), expected, atol=1e-5, rtol=0)
    assert reduction(torch.ones(1, 1, 2, 2)).shape == (1, 1, 1, 1)
    assert not reduction.state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "relu"}, "activation must be one of leaky_relu, elu, swish, got 'relu'"),
        ({"downsampling": "lanczos4"}, "downsampling must be one of stride, average, max, lanczos2, lanczos3"),
        ({"sigmoid": False, "corrects": True}, "corrects needs the sigmoid"),
    ],
)
def test_option_that_there_is_not_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Skip(4, 3, scales=2, **options)


def test_blocks_without_a_leaky_relu_are_plain():
    network = Skip(4, 3, scales=2, down=8, up=8, activation="elu")
    assert set(network.blocks().values()) == {"its activation is no LeakyReLU"}
    assert Skip(4, 3, scales=2, down=8, up=8, downsampling="lanczos2").fusible()


def test_recipe_of_ones_own_has_a_name():
    """Functions on arrays and the command line take presets by name."""
    mine = dip_fast.PRESETS["quick"].with_(
        iterations=2, width=8, distribution="meshgrid", network_options={"scales": 2}
    )
    dip_fast.PRESETS.register("mine-of-this-test", mine)
    try:
        assert dip_fast.superres(np.random.default_rng(0).random((16, 18)), 2, preset="mine-of-this-test").shape == (
            32,
            36,
        )
    finally:
        del dip_fast.PRESETS._entries["mine-of-this-test"]


def test_network_that_reads_no_coordinates_is_refused():
    module = nn.Conv2d(4, 3, 3, padding=1)
    with pytest.raises(UsageError, match="network reads 4 channels, and its input has 2; pass z="):
        fit(Identity(target()), TINY.with_(distribution="meshgrid"), network=module, device="cpu")
    result = fit(Identity(target()), TINY.with_(learns_input=True, iterations=3), network=module, device="cpu")
    assert result.network.module.in_channels == 4
    assert (result.z.size, result.z.channels) == ((17, 21), 4)
