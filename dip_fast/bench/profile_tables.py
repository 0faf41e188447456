"""The profiles of `measuring.profile` as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dip_fast.bench.configurations import group_name

LISTED = 15  # operators of a profile that have a line each, out of some fifty
COLUMNS = ("forward", "backward", "rest")


def profile_lines(found: Mapping[str, Any]) -> list[str]:
    """Write one of the profiles as lines: by part of the step on a CPU, against the ceilings on a GPU."""
    return _roofline_lines(found) if "ceilings" in found else _time_lines(found)


def _time_lines(found: Mapping[str, Any]) -> list[str]:
    """Write what `profiling.profile` found."""
    step, products, traffic, dispatch = (found[name] for name in ("step_seconds", "products", "traffic", "dispatch"))
    lines = [
        f"{group_name(found['size'], found['upsampling'])}: a step takes {1e3 * found['median_step_seconds']:.1f} ms, "
        f"{found['share_of_floor']:.1%} of the speed of the larger of the first two floors",
        f"multiplications {1e3 * products['seconds']:.1f} ms: {products['flop'] / 1e9:.2f} GFLOP, forward and for two "
        f"gradients, at the {products['flop_per_second'] / 1e9:.0f} GFLOP/s of the micro-kernel",
        f"traffic {1e3 * traffic['seconds']:.1f} ms: {traffic['bytes'] / 1e6:.0f} MB, each tensor read and written "
        f"once, at the {traffic['bytes_per_second'] / 1e9:.0f} GB/s of a copy of {traffic['image_bytes'] / 1e6:.0f} MB,"
        " which is what the images take",
        f"Python and dispatch {1e3 * dispatch['seconds']:.1f} ms, {dispatch['share']:.1%} of the step: a step of one "
        f"channel, {1e6 * dispatch['seconds'] / dispatch['operators']:.0f} us for each of {dispatch['operators']} "
        "operators",
        f"under the profiler {step:.3f} s: network forward {found['forward_seconds']:.3f} s, backward "
        f"{found['backward_seconds']:.3f} s, the rest of the loop {found['rest_seconds']:.3f} s "
        f"({found['rest_share']:.1%} of the step)",
        f"{'operator':44} {'calls':>6} {'ms':>9} {'share':>6} {'forward':>9} {'backward':>9} {'rest':>9}",
    ]
    operators = found["operators"]
    ours = [operator for operator in operators if operator["name"].startswith("dip_fast::")]
    rest = operators[LISTED:]
    sums = [("sum of dip_fast::", ours), (f"sum of {len(rest)} more", rest), ("sum", operators)]
    summed = [{"name": name, **_sum(parts)} for name, parts in sums if parts]
    for operator in [*operators[:LISTED], *summed]:
        columns = [f"{1e3 * operator[part]:9.2f}" for part in COLUMNS]
        lines.append(
            f"{operator['name']:44} {operator['calls']:6.0f} {1e3 * operator['seconds']:9.2f} "
            f"{operator['seconds'] / step:6.1%} {' '.join(columns)}"
        )
    return lines


def _sum(operators: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {key: sum(operator[key] for operator in operators) for key in ("calls", "seconds", *COLUMNS)}


def _roofline_lines(found: Mapping[str, Any]) -> list[str]:
    """Write what `roofline.profile` found."""
    ceilings, operators = found["ceilings"], found["operators"]
    rates = ", ".join(f"{name} {rate / 1e12:.1f} TFLOP/s" for name, rate in ceilings["flop_per_second"].items())
    lines = [
        f"{group_name(found['size'], found['upsampling'])}: a step takes {1e3 * found['median_step_seconds']:.3f} ms, "
        f"its operators, each alone, {1e3 * found['operators_seconds']:.3f} ms",
        f"floor {1e3 * found['floor_seconds']:.3f} ms, {found['share_of_floor']:.1%} of its speed: each tensor read "
        "and written once, or the form's multiplications, whichever takes longer",
        f"ceilings, measured: a copy {ceilings['bytes_per_second'] / 1e12:.2f} TB/s; torch.mm {rates}",
        f"{'operator':54} {'calls':>5} {_RATE_COLUMNS}",
    ]
    lines += [f"{operator['name']:54} {operator['calls']:5} {_rates(operator)}" for operator in operators]
    compared = found["upsample_conv2d"]
    size, channels = compared[0]["size"], compared[0]["channels"]
    lines += [
        "",
        f"upsample_conv2d, {channels} channels, {size}x{size} -> {2 * size}x{2 * size}, and interpolate, pad, conv2d",
        f"{'mode':8} {'pass':16} {_RATE_COLUMNS} {'plain ms':>9} {'NHWC ms':>9} {'ratio':>6}",
    ]
    return lines + [
        f"{record['mode']:8} {record['pass']:16} {_rates(record)} {1e3 * record['plain_seconds']:9.3f} "
        f"{1e3 * record['plain_channels_last_seconds']:9.3f} {record['ratio']:5.2f}x"
        for record in compared
    ]


_RATE_COLUMNS = f"{'ms':>8} {'GB/s':>7} {'TFLOP/s':>8} {'direct':>8} {'bound':>7} {'share':>6}"


def _rates(record: Mapping[str, Any]) -> str:
    return (
        f"{1e3 * record['seconds']:8.4f} {record['bytes_per_second'] / 1e9:7.0f} "
        f"{record['flop_per_second'] / 1e12:8.1f} {record['direct_flop_per_second'] / 1e12:8.1f} "
        f"{record['bound']:>7} {record['share']:6.1%}"
    )
