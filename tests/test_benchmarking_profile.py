"""The floor of a step, and the profile that accounts for its time."""

import pytest
import torch

from dip_fast.bench import profile_tables, profiling
from dip_fast.bench.configurations import endless_recipe
from dip_fast.errors import UsageError
from dip_fast.fitting import prepare
from dip_fast.fitting.degradations import Identity
from dip_fast.networks import Decoder, Skip


@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
def test_paper_network_takes_121028_multiplications_a_pixel(upsampling):
    with torch.device("meta"):
        assert profiling.multiplications(Skip(32, 3, upsampling=upsampling)) == 121_028


@pytest.mark.parametrize(
    ("options", "count"),
    [
        # head, reduce, deepen, merge (upsampled, skip), and what the option adds
        ({"skip": 0}, 4 * 3 + 9 * 8 * 6 / 4 + 4 * 6 * 6 / 4 + 9 / 4 * 6 * 4),
        ({"skip": 2}, 4 * 3 + 9 * 8 * 6 / 4 + 4 * 6 * 6 / 4 + 9 / 4 * 6 * 4 + 9 * 2 * 4 + 8 * 2),
        ({"skip": 0, "downsampling": "max"}, 4 * 3 + 4 * 8 * 6 + 4 * 6 * 6 / 4 + 9 / 4 * 6 * 4),
        ({"skip": 0, "kernel_down": 5}, 4 * 3 + 25 * 8 * 6 / 4 + 25 * 6 * 6 / 4 + 9 / 4 * 6 * 4),
        ({"skip": 2, "kernel_up": 5}, 4 * 3 + 9 * 8 * 6 / 4 + 4 * 6 * 6 / 4 + 25 * (6 + 2) * 4 + 8 * 2),
        ({"skip": 0, "conv1x1": True}, 4 * 3 + 9 * 8 * 6 / 4 + 4 * 6 * 6 / 4 + 9 / 4 * 6 * 4 + 4 * 4),
    ],
    ids=str,
)
def test_multiplications_of_one_scale(options, count):
    network = Skip(8, 3, **{"down": 6, "up": 4, "scales": 1, "conv1x1": False, **options})
    assert profiling.multiplications(network) == count


def test_floor_of_another_network_is_not_known():
    with torch.device("meta"), pytest.raises(UsageError, match="decoder"):
        profiling.multiplications(Decoder(256, 3))


# --- the profile --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_profile_accounts_for_the_whole_step(monkeypatch):
    monkeypatch.setattr(profiling, "MATRIX_SIDE", 64)
    fit = prepare(Identity(torch.rand(1, 3, 20, 16)), endless_recipe("quick", "bilinear"), engine="fused")
    found = profiling.profile(fit, 2)
    assert fit.steps == 2 + 2 + profiling.PROFILED_STEPS
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

    flop = 6 * profiling.multiplications(fit.network) * 20 * 16
    assert found["floor_seconds"] == pytest.approx(flop / found["mm_flop_per_second"])
    assert found["share_of_floor"] == pytest.approx(found["floor_seconds"] / found["median_step_seconds"])
    named = {"size": 16, "upsampling": "bilinear", **found}
    lines = profile_tables.profile_lines(named)
    assert f"{found['share_of_floor']:.1%} of the floor's speed" in lines[0]
    assert any(line.startswith("sum of dip_fast::") for line in lines)
    assert "100.0%" in lines[-1]
