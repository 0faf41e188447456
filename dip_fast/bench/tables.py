"""Records of `measuring.measure` as a table, and as a plot."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from dip_fast.bench.configurations import group_name


def table(records: Sequence[Mapping[str, Any]], *, head: bool = True) -> list[str]:
    """Write records as the lines of a table, with the ratios to the fused engine of the same size and upsampling."""
    unit, per_second = ("ms", 1e3) if records[0]["device"] == "cuda" else ("s", 1.0)
    lines = []
    if head:
        lines.append(
            f"{'size':>9} {'upsampling':10} {'engine':20} {'step ' + unit:>8} {'quartiles':>17} {'ratio':>7} "
            f"{'peak MB':>8} {'ratio':>7} {'steps':>5}"
        )
    fused = {(r["size"], r["upsampling"]): r for r in records if r["engine"] == "fused"}
    for record in records:
        base = fused.get((record["size"], record["upsampling"]))
        ratios = {
            key: f"{record[key] / base[key]:.2f}x" if base else "-"
            for key in ("median_step_seconds", "peak_memory_bytes")
        }
        low, high = (per_second * seconds for seconds in record["quartiles_step_seconds"])
        lines.append(
            f"{record['size']:>4}x{record['size']:<4} {record['upsampling']:10} {record['engine']:20} "
            f"{per_second * record['median_step_seconds']:8.3f} {f'{low:.3f} - {high:.3f}':>17} "
            f"{ratios['median_step_seconds']:>7} {record['peak_memory_bytes'] / 1e6:8.0f} "
            f"{ratios['peak_memory_bytes']:>7} {record['steps']:5}"
        )
    return lines


def plot(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw step time and peak memory of each engine as bars, as a PNG file."""
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys(group_name(record["size"], record["upsampling"]) for record in records))
    engines = list(dict.fromkeys(record["engine"] for record in records))
    figure = Figure(figsize=(max(6, 2 + 2 * len(groups)), 7), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    for axis, key, unit, label in zip(
        axes,
        ("median_step_seconds", "peak_memory_bytes"),
        (1.0, 1e9),
        ("one step, s", "peak memory of the process, GB"),
        strict=True,
    ):
        for i, engine in enumerate(engines):
            rows = [record for record in records if record["engine"] == engine]
            places = [groups.index(group_name(record["size"], record["upsampling"])) for record in rows]
            offset = (i - (len(engines) - 1) / 2) * 0.8 / len(engines)
            heights = [record[key] / unit for record in rows]
            bars = axis.bar([place + offset for place in places], heights, 0.8 / len(engines), label=engine)
            axis.bar_label(bars, fmt="{:.2g}", fontsize="small")
        axis.set_ylabel(label)
        axis.grid(axis="y", alpha=0.3)
    axes[0].legend()
    axes[0].set_title(f"preset {records[0]['preset']}, threads: {records[0]['threads']}", fontsize="medium")
    axes[-1].set_xticks(range(len(groups)), groups)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    return data.getvalue()
