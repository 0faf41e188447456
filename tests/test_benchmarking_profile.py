"""The floors of a step, and the profile that accounts for its time."""

import pytest
import torch

from dip_fast.bench import floors, profile_tables, profiling
from dip_fast.bench.configurations import endless_recipe
from dip_fast.bench.meters import CPUMeter
from dip_fast.fitting import prepare
from dip_fast.fitting.degradations import Identity
from dip_fast.ops import extension


@pytest.mark.parametrize("preset", ["quick", "paper", "default"])
def test_idle_step_has_the_operators_of_the_step_and_one_channel(preset):
    recipe = endless_recipe(preset, "nearest")
    idle = floors.idle_recipe(recipe)
    parts = [
        [{name for name, _ in prepare(Identity(torch.rand(1, 3, 64, 64)), each).network.named_parameters()}]
        for each in (recipe, idle)
    ]
    assert parts[0] == parts[1]
    assert all(idle.network_options[name] == 1 for name in ("down", "up", "skip"))


def test_micro_kernel_makes_the_products_that_are_counted(monkeypatch):
    build = extension.load()
    if build is None:
        pytest.skip("there is no compiled extension")
    tile = build.multiply(8)
    torch_threads = torch.get_num_threads()
    assert tile % (64 * 8 * torch_threads) == 0  # chains of 64 terms, 8 parts of each thread
    assert build.multiply(24) == 3 * tile
    assert build.multiply(8, in_16_bits=True) == tile


# --- the profile --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_profile_accounts_for_the_whole_step(monkeypatch):
    monkeypatch.setattr(floors, "TILES", 100)
    recipe = endless_recipe("quick", "bilinear")
    picture = Identity(torch.rand(1, 3, 20, 16))
    fit, idle = (prepare(picture, each, engine="fused") for each in (recipe, floors.idle_recipe(recipe)))
    found = profiling.profile(fit, idle, 2, CPUMeter())
    assert fit.steps == 3 + 2 + profiling.PROFILED_STEPS
    parts = {name: found[f"{name}_seconds"] for name in ("forward", "backward", "rest")}
    assert min(parts.values()) > 0
    assert sum(parts.values()) == pytest.approx(found["step_seconds"])
    assert found["rest_share"] == pytest.approx(parts["rest"] / found["step_seconds"])
    for name, seconds in (("seconds", found["step_seconds"]), *parts.items()):
        assert sum(operator[name] for operator in found["operators"]) == pytest.approx(seconds)
    operators = {operator["name"]: operator for operator in found["operators"]}
    for name in ("dip_fast::norm_conv2d", "dip_fast::norm_upsample_conv2d"):
        assert operators[name]["forward"] > 0
        assert operators[name]["backward"] == operators[name]["rest"] == 0
        assert operators[f"{name}_backward"]["backward"] > 0
    assert operators["aten::_fused_adam_"]["rest"] > 0
    assert operators["aten::_fused_adam_"]["calls"] == 1

    # 664 a pixel forward (counted in test_roofline.py); z, which 8 + 72 of them read, has no gradient.
    products, traffic, dispatch = (found[name] for name in ("products", "traffic", "dispatch"))
    assert products["flop"] == 2 * (3 * 664 - 80) * 20 * 16
    assert products["seconds"] == pytest.approx(products["flop"] / products["flop_per_second"])
    assert traffic["seconds"] == pytest.approx(traffic["bytes"] / traffic["bytes_per_second"])
    # The outputs alone: of two scales the thin branch, the four convolutions of 8 channels, and the head.
    outputs = (2 + 8 / 4 + 8 / 4 + 8 + 8) * (1 + 1 / 4) + 3
    assert traffic["image_bytes"] - 4 * outputs * 20 * 16 == 16 * (2 * 2 + 8 * 8 + 3)  # and their statistics
    assert dispatch["operators"] == 2 * 11
    assert dispatch["share"] == pytest.approx(dispatch["seconds"] / found["median_step_seconds"])
    floor = max(products["seconds"], traffic["seconds"])
    assert found["share_of_floor"] == pytest.approx(floor / found["median_step_seconds"])
    named = {"size": 16, "upsampling": "bilinear", **found}
    lines = profile_tables.profile_lines(named)
    assert f"{found['share_of_floor']:.1%} of the speed of the larger" in lines[0]
    assert [line.split()[0] for line in lines[1:4]] == ["multiplications", "traffic", "Python"]
    assert any(line.startswith("sum of dip_fast::") for line in lines)
    assert "100.0%" in lines[-1]
