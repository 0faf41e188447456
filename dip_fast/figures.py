"""Figures that were measured, with date, commit, machine and command.  Plain data; nothing here needs torch.

They stand in one file, ``data/figures.json``, which ``benchmarks/figures.py`` writes.  The tables of README and docs
and ``dip-fast presets`` are printed from it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data" / "figures.json"


@dataclass(frozen=True)
class Measurement:
    """What one command found on one machine.

    Attributes
    ----------
    name : str
        The name in the file, by which documents refer to it.
    date : str
        The day of the measurement, YYYY-MM-DD.
    commit : str
        The commit that was measured; of figures from before 2026-11-26, the one that published them.
    machine : str
        The processor, its threads, and the version of torch.
    command : str
    rows : list of dict
        The figures; what a row holds depends on the name (``benchmarks/figures.py``).
    note : str
        What a reader of the figures has to know besides, as sentences.
    """

    name: str
    date: str
    commit: str
    machine: str
    command: str
    rows: list[dict[str, Any]]
    note: str = ""


def read(path: Path = DATA) -> dict[str, Measurement]:
    """Read the measurements, by name."""
    return {entry["name"]: Measurement(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))}


def write(measurements: dict[str, Measurement], path: Path = DATA) -> None:
    """Write the measurements."""
    path.write_text(json.dumps([asdict(each) for each in measurements.values()], indent=1) + "\n", encoding="utf-8")


def preset_rows(measurement: Measurement) -> dict[str, dict[str, Any]]:
    """Return the row of each preset in the measurement ``presets``: the first with its time."""
    rows: dict[str, dict[str, Any]] = {}
    for row in measurement.rows:
        if row["step_seconds"] is not None:
            rows.setdefault(row["preset"], row)
    return rows


def preset_cost(name: str) -> str:
    """Describe in a sentence what a preset costs and reaches."""
    row = preset_rows(read()["presets"]).get(name)
    if row is None:
        return "not measured"
    cost = (
        f"{row['step_seconds']:.2g} s a step and {duration(row['fit_seconds'])} in all at "
        f"{row['width']}x{row['height']}"
    )
    if row["psnr_result"] is None:
        return f"{cost}, from a few steps"
    return f"{cost}; {row['picture']}, {row['damage']}: {row['psnr_damaged']:.2f} -> {row['psnr_result']:.2f} dB"


def duration(seconds: float) -> str:
    """Write a time for people: in seconds up to 90, then in minutes, with two digits."""
    value, unit = (seconds, "s") if seconds < 90 else (seconds / 60, "min")
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"
