"""The fused engine is the same network: the same output and the same gradients from the same parameters."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dip_fast import networks
from dip_fast.fitting import fit
from dip_fast.fitting.degradations import Identity
from dip_fast.networks import Decoder, Hourglass, Network, Skip
from dip_fast.presets import FitOptions, Recipe

NETWORKS = {
    "nearest": (lambda: Skip(5, 3, down=8, up=12, skip=4, scales=3, upsampling="nearest"), (1, 5, 16, 24)),
    "bilinear": (lambda: Skip(5, 3, down=8, up=12, skip=4, scales=3, upsampling="bilinear"), (1, 5, 16, 24)),
    "zeros": (lambda: Skip(5, 3, down=8, up=8, scales=2, upsampling="bilinear", padding_mode="zeros"), (1, 5, 8, 12)),
    "replicate": (lambda: Skip(5, 3, down=8, up=8, scales=2, padding_mode="replicate"), (1, 5, 8, 12)),
    "no-branch": (lambda: Skip(5, 3, down=8, up=8, skip=(0, 3), upsampling="bilinear"), (1, 5, 8, 12)),
    "one-unfused": (lambda: Skip(5, 3, down=8, up=8, kernel_up=(5, 3), upsampling="nearest"), (1, 5, 8, 12)),
    "pooled": (
        lambda: Skip(5, 3, down=8, up=8, downsampling=("average", "max"), upsampling="nearest", kernel_skip=(3, 1)),
        (1, 5, 8, 12),
    ),
    "wide-branch": (lambda: Skip(5, 3, down=8, up=8, skip=(17, 16), conv1x1=False), (1, 5, 8, 12)),
    "wide-branch-nearest": (
        lambda: Skip(5, 3, down=8, up=8, skip=(17, 16), conv1x1=False, upsampling="nearest"),
        (1, 5, 8, 12),
    ),
    "kernels": (lambda: Skip(5, 3, down=8, up=8, scales=2, kernel_down=5, kernel_skip=5), (1, 5, 16, 24)),
    "decoder": (lambda: Decoder(8, 3, depth=3), (1, 8, 4, 5)),
}


def run(network: Network, engine: str, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Output, and gradients of a loss whose own gradient differs from pixel to pixel."""
    network.use(engine).zero_grad()
    z = z.clone().requires_grad_()
    output = network(z)
    weights = torch.sin(torch.arange(output.numel(), dtype=z.dtype)).reshape(output.shape)
    (output * weights.to(z.device)).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    return output.detach(), {"z": z.grad, **gradients}


@pytest.mark.parametrize("case", NETWORKS)
def test_fused_is_the_same_function(device: torch.device, case: str) -> None:
    make, shape = NETWORKS[case]
    torch.manual_seed(0)
    network = make().double()
    for parameter in network.parameters():  # so that no scale is 1 and no shift is 0
        parameter.data += 0.3 * torch.rand_like(parameter)
    network, z = network.to(device), torch.rand(shape, dtype=torch.float64).to(device)
    (output, gradients), (expected, theirs) = run(network, "fused", z), run(network, "plain", z)
    # Worst seen: 3e-15 in the output, 2e-12 in a gradient whose largest is 5.  Gradients that are zero in exact
    # arithmetic (a shift before a batch norm) are rounding in both, which the absolute bound compares.
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, theirs[name], rtol=1e-10, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
def test_fused_rounds_as_well_as_plain(device: torch.device, upsampling: str) -> None:
    """In float32, by the distances of output and gradients from those in float64, medians of five networks."""
    distances: dict[str, list[list[float]]] = {"fused": [], "plain": []}
    floors = []
    for seed in range(5):
        torch.manual_seed(seed)
        network = Skip(8, 3, down=32, up=32, scales=3, upsampling=upsampling)
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.rand_like(parameter)
        network, z = network.to(device), torch.rand(1, 8, 64, 64).to(device)
        output, gradients = run(deepcopy(network).double(), "plain", z.double())
        exact = {"output": output, **gradients}
        for engine, rows in distances.items():
            output, gradients = run(network, engine, z)
            got = {"output": output, **gradients}
            rows.append([(got[name].double() - exact[name]).norm().item() for name in exact])
        floors.append(torch.stack([exact[name].norm() for name, _ in network.named_parameters()]).norm())
    # Worst seen of what is above the floor: 1.46, the weights of the head.  The floor is half a unit in the last place
    # of the whole gradient, for the parts of it that are zero in exact arithmetic.
    floor = 2**-24 * torch.stack(floors).median().item()
    medians = (torch.tensor(rows).median(0).values.tolist() for rows in distances.values())
    for name, fused, plain in zip(exact, *medians, strict=True):
        assert fused <= 1.5 * plain + floor, f"{name}: {fused:.1e}, plain {plain:.1e}, floor {floor:.1e}"


def test_fused_engine_runs_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    from dip_fast import ops

    calls = []
    for name in ("norm_conv2d", "norm_upsample_conv2d"):
        real = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *a, real=real, name=name, **k: calls.append(name) or real(*a, **k))
    network = Skip(5, 3, down=8, up=8, kernel_up=(5, 3), upsampling="nearest")
    assert {name: why for name, why in network.blocks().items() if why} == {"scale": "its kernel is 5x5"}
    network.use("fused")(torch.rand(1, 5, 8, 12))
    # skip, reduce, deepen and mix at both scales, the head; the merge of the inner scale.
    assert calls.count("norm_conv2d") == 9
    assert calls.count("norm_upsample_conv2d") == 1
    calls.clear()
    network.use("plain")(torch.rand(1, 5, 8, 12))
    assert not calls


@pytest.mark.parametrize("case", ["nearest", "bilinear", "no-branch", "one-unfused", "pooled"])
def test_biases_before_a_batch_norm_have_no_gradient(device: torch.device, case: str) -> None:
    make, shape = NETWORKS[case]
    network = make().to(device).use("fused")
    network(torch.rand(shape, device=device)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        if name.endswith("deepen.conv.bias"):
            assert not parameter.grad.any(), name


def test_two_images_run_in_the_plain_form(device: torch.device) -> None:
    torch.manual_seed(0)
    network = Skip(5, 3, down=8, up=8, scales=2).double().to(device)
    z = torch.rand(2, 5, 8, 12, dtype=torch.float64, device=device)
    assert torch.equal(network.use("fused")(z), network.use("plain")(z))


def test_fused_step_gives_the_same_bits_for_any_number_of_threads() -> None:
    recipe = Recipe(
        "skip",
        {"down": 16, "up": 16, "scales": 3, "upsampling": "bilinear"},
        4,
        "uniform",
        FitOptions(iterations=3, consolidation=2),
    )
    y = torch.rand(1, 3, 150, 130, generator=torch.Generator().manual_seed(2))
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(fit(Identity(y), recipe, engine="fused"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        np.testing.assert_array_equal(other.history["loss"], results[0].history["loss"])
        np.testing.assert_array_equal(other.image, results[0].image)


def test_network_without_a_fusible_block_refuses_the_fused_engine() -> None:
    for network in (Hourglass(), Skip(4, 3, down=4, up=4, kernel_up=5, kernel_down=5, kernel_skip=5, conv1x1=False)):
        assert network.fusible() == []
        with pytest.raises(ValueError, match="no block of it has a fused form"):
            network.use("fused")


def test_state_is_the_same_for_both_engines() -> None:
    for name in ("skip", "decoder"):
        network = networks.build(name, 8, 3)
        before = list(network.state_dict())
        assert list(network.use("fused").state_dict()) == before


def test_fits_of_both_engines_start_alike() -> None:
    recipe = Recipe(
        "skip",
        {"down": 8, "up": 8, "scales": 2, "upsampling": "bilinear"},
        4,
        "uniform",
        FitOptions(iterations=3, consolidation=0),
    )
    y = torch.rand(1, 3, 17, 21, generator=torch.Generator().manual_seed(2))
    fused, plain = (fit(Identity(y), recipe, engine=engine) for engine in ("fused", "plain"))
    np.testing.assert_allclose(fused.history["loss"], plain.history["loss"], rtol=1e-5)
    again = fit(Identity(y), replace(recipe), engine="fused")
    np.testing.assert_array_equal(again.image, fused.image)
