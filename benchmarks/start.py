"""How long a run takes to begin, and what it costs besides the fit: `dip-fast run` of a small picture, ten steps.

    python benchmarks/start.py [--command .venv/bin/dip-fast] [--presets quick default] [--runs 5] [--json]

Each run is a process of its own, after one whose times do not count, so the files are in memory.  `first step` is the
wall time until the first step is done; CPU seconds are those of the whole run, user and system, with its reading,
model file and report.  ``--command`` may be that of an environment with an installed wheel and no compiler.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
from PIL import Image


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--command", nargs="+", default=[sys.executable, "-m", "dip_fast"], help="how to call dip-fast")
    parser.add_argument("--presets", nargs="+", default=["quick", "default"])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = [measure(arguments, preset) for preset in arguments.presets]
    if arguments.json:
        common.print_json(found)
        return
    for each in found:
        print(
            f"{each['preset']}: first step after {each['first_step_seconds']:.2f} s, "
            f"{each['cpu_seconds']:.2f} s of CPU, {each['seconds']:.2f} s in all (medians of {arguments.runs})"
        )


def measure(arguments: Any, preset: str) -> dict[str, Any]:
    """Run several times, and take medians."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        noise = np.random.default_rng(0).normal(128, 40, (arguments.size, arguments.size, 3))
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / "noisy.png")
        words = [*arguments.command, "run", "noisy.png", "--preset", preset, "--json-events", "--overwrite"]
        words += ["--iterations", str(arguments.iterations), "--out", "out", "--device", "cpu"]
        runs = [one(words, folder) for _ in range(arguments.runs + 1)][1:]
    return {"preset": preset, **{name: statistics.median(run[name] for run in runs) for name in runs[0]}}


def one(words: list[str], folder: Path) -> dict[str, float]:
    """Run once."""
    before, started = os.times(), time.perf_counter()
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        events = (json.loads(line) for line in process.stdout)
        next(event for event in events if event["event"] == "progress")
        first = time.perf_counter() - started
        for _ in events:
            pass
    seconds, after = time.perf_counter() - started, os.times()
    if process.returncode:
        sys.exit(f"{' '.join(words)}: {process.returncode}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"first_step_seconds": first, "cpu_seconds": cpu, "seconds": seconds}


if __name__ == "__main__":
    main()
