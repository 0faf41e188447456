"""The figures that README, docs and `dip-fast presets` print: measure them, and render them.

    python benchmarks/figures.py                      # measure what is cheap, in about five minutes, and render
    python benchmarks/figures.py presets --whole quick paper --picture F16.png --halve
    python benchmarks/figures.py denoising --denoising "F16.png House.png --presets fast default --bm3d-python PYTHON"
    python benchmarks/figures.py speed --speed-presets quick paper --sizes 256 512 --engines fused plain compile
    python benchmarks/figures.py --render             # only render, from dip_fast/data/figures.json
    python benchmarks/figures.py --check              # whether rendering would change a document

A measurement is a command, run from this checkout.  It goes into the file with date, commit, machine and command, in
place of the one of the same name.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import figure_tables

from dip_fast import figures
from dip_fast.figures import Measurement
from dip_fast.presets import PRESETS
from dip_fast.tasks import TASKS

IMAGES = common.ROOT / "docs" / "images"
FILE = common.ROOT / "dip_fast" / "data" / "figures.json"
CHEAP = ("example-denoise", "example-inpaint", "presets", "speed")


@dataclass(frozen=True)
class Found:
    """What a measurement gave: the commands, the rows, and the number of threads where it is not the option's."""

    commands: list[str]
    rows: list[dict[str, Any]]
    threads: int | None = None


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASURES)}")
    parser.add_argument("--render", action="store_true", help="only render the documents")
    parser.add_argument("--check", action="store_true", help="only compare the documents with what would be rendered")
    parser.add_argument("--list", action="store_true", help="only list the measurements and where they are from")
    parser.add_argument("--picture", default="examples/clean.png", help="for presets: the clean picture")
    parser.add_argument("--halve", action="store_true", help="for presets: halve it first")
    presets = list(PRESETS)
    parser.add_argument("--whole", nargs="*", choices=presets, default=["quick"], help="for presets: fits to their end")
    parser.add_argument(
        "--denoising",
        metavar="ARGUMENTS",
        default="examples/clean.png",
        help="for denoising: what benchmarks/denoising.py is given, as one word",
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[256], help="for speed")
    parser.add_argument("--speed-presets", nargs="+", choices=["quick", "paper"], default=["quick"], help="for speed")
    parser.add_argument("--engines", nargs="+", default=["fused", "plain", "plain-retained"], help="for speed")
    parser.add_argument("--seconds", type=float, default=120.0, help="for speed: of each preset")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of all measurements")
    options = parser.parse_args()
    if unknown := set(options.names) - MEASURES.keys():
        parser.error(f"no measurement is named {unknown.pop()}; there are {', '.join(MEASURES)}")
    if options.list:
        for measurement in figures.read(FILE).values():
            print(f"{measurement.name}: {measurement.date}, {measurement.commit}, {measurement.machine}")
            print(f"    {measurement.command}")
        return
    if not options.render and not options.check:
        measure(options)
    stale = render(write=not options.check)
    for path in stale:
        print(f"{path}: {'rendered anew' if not options.check else 'differs; run benchmarks/figures.py --render'}")
    sys.exit(1 if options.check and stale else 0)


def render(*, write: bool, root: Path = common.ROOT) -> list[Path]:
    """Render the documents; return those that change."""
    measurements = figures.read(FILE)
    changed = []
    for path in figure_tables.documents(root):
        text = path.read_text(encoding="utf-8")
        try:
            rendered = figure_tables.render(text, measurements, path)
        except ValueError as error:
            sys.exit(str(error))
        if rendered != text:
            changed.append(path)
            if write:
                path.write_text(rendered, encoding="utf-8")
    return changed


def measure(options: argparse.Namespace) -> None:
    """Run the measurements and write the file after each."""
    commit, date = measured_commit(), datetime.datetime.now(datetime.UTC).date().isoformat()
    for name in options.names or CHEAP:
        print(f"measuring {name}", file=sys.stderr)
        found = MEASURES[name](options)
        command = " && ".join(found.commands)
        measurements = figures.read(FILE)
        measurements[name] = Measurement(
            name, date, commit, machine(found.threads or options.threads), command, found.rows
        )
        figures.write(measurements, FILE)


def measured_commit() -> str:
    """Name the commit of the checkout, marked where the code differs from it."""
    code = ["dip_fast", "csrc", "benchmarks", "setup.py", ":!dip_fast/data"]
    commit = git("rev-parse", "--short=7", "HEAD")
    return f"{commit}, modified" if git("status", "--porcelain", "--", *code) else commit


def git(*arguments: str) -> str:
    """Return what a git command prints."""
    ended = subprocess.run(["git", *arguments], cwd=common.ROOT, check=True, capture_output=True, text=True)
    return ended.stdout.strip()


def machine(threads: int) -> str:
    """Describe this machine, for a person who compares figures."""
    from dip_fast.bench.machine import machine as facts_of_machine

    facts = facts_of_machine()
    kernels = f", kernels {facts['kernels']}" if facts["kernels"] else ""
    return f"{facts['cpu']}, {threads} thread{'s' if threads > 1 else ''}{kernels}, torch {facts['torch']}"


def typed(*arguments: str) -> str:
    """Write a command of this checkout as a person types it, with files by their names."""
    program, rest = f"python {arguments[0]}", arguments[1:]
    if arguments[:2] == ("-m", "dip_fast"):
        program, rest = "dip-fast", arguments[2:]
    words = [Path(word).name if Path(word).is_absolute() else word for word in rest if word != "--json"]
    return f"{program} {shlex.join(words)}"


def run(*arguments: str) -> tuple[str, Any]:
    """Run a command of this checkout that prints JSON; return it as a person types it, and what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(common.ROOT)}
    command = [sys.executable, *arguments]
    ended = subprocess.run(command, cwd=common.ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if ended.returncode:
        sys.exit(f"{typed(*arguments)} ended with exit code {ended.returncode}")
    return typed(*arguments), json.loads(ended.stdout)


# --- measurements -------------------------------------------------------------------------------------------------


def example_denoise(options: argparse.Namespace) -> Found:
    """Restore the noisy example picture."""
    return _example(options, "denoise", "restored.png", "examples/noisy.png")


def example_inpaint(options: argparse.Namespace) -> Found:
    """Fill in the example picture with holes."""
    return _example(options, "inpaint", "filled.png", "examples/holed.png", "--mask", "examples/mask.png")


def _example(options: argparse.Namespace, task: str, image: str, *arguments: str) -> Found:
    """Restore a picture as the task does by default, and keep the result among the images of the documents."""
    fixed = ["--reference", "examples/clean.png", "--device", "cpu"]
    command = [*arguments, *fixed, "--threads", str(options.threads)]
    with tempfile.TemporaryDirectory() as folder:
        quietly = ["--out", str(Path(folder) / "run"), "--quiet", "--export", "none", "--json"]
        _, summary = run("-m", "dip_fast", "run", *command, *quietly)
        shutil.copyfile(summary["result"], IMAGES / image)
    row = {
        "preset": TASKS[task].preset("cpu"),
        "psnr_damaged": round(summary["psnr_input"], 2),
        "psnr_result": round(summary["psnr"], 2),
        "ssim_damaged": round(summary["ssim_input"], 3),
        "ssim_result": round(summary["ssim"], 3),
        "seconds": round(summary["seconds"], 1),
    }
    return Found([f"dip-fast run {shlex.join(command)}"], [row])


def presets(options: argparse.Namespace) -> Found:
    """Fit some presets to their end, and time a few steps of the others."""
    # Those of the masked objective draw many predictions besides their steps; `denoising` measures all of it.
    timed = [name for name in PRESETS if name not in options.whole and PRESETS[name].recipe.masking is None]
    command, records = run(
        "benchmarks/presets.py",
        options.picture,
        *(["--halve"] if options.halve else []),
        "--presets",
        *options.whole,
        *(["--timed", *timed] if timed else []),
        *("--threads", str(options.threads), "--json"),
    )
    kept = ("preset", "picture", "width", "height", "damage")
    rows = [
        {
            **{name: record[name] for name in kept},
            "psnr_damaged": round(record["psnr_damaged"], 2),
            "psnr_result": None if record["psnr_result"] is None else round(record["psnr_result"], 2),
            "step_seconds": round(record["step_seconds"], 4),
            "fit_seconds": round(record["fit_seconds"], 1),
        }
        for record in records
    ]
    return Found([command], rows)


def denoising(options: argparse.Namespace) -> Found:
    """Compare presets with non-local means and BM3D."""
    arguments = [*shlex.split(options.denoising), "--threads", str(options.threads)]
    command, found = run("benchmarks/denoising.py", *arguments, "--json")
    return Found([command], found["rows"])


def speed(options: argparse.Namespace) -> Found:
    """Measure a step of the engines, and draw the plot of the last preset."""
    commands: list[str] = []
    rows: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    for preset in options.speed_presets:
        command, records = run(
            *("-m", "dip_fast", "bench", "--preset", preset, "--sizes", *map(str, options.sizes)),
            *("--engines", *options.engines, "--seconds", f"{options.seconds:g}", "--device", "cpu", "--json"),
            *("--threads", str(options.threads)),
        )
        commands.append(command)
        rows += [speed_row(group) for group in groups(records)]
    from dip_fast.bench.tables import plot

    (IMAGES / "bench.png").write_bytes(plot(records))
    return Found(commands, rows)


def groups(records: list[dict[str, Any]]) -> list[dict[str, dict[str, Any]]]:
    """Gather the records of each size and upsampling, by engine."""
    gathered: dict[tuple[int, str], dict[str, dict[str, Any]]] = {}
    for record in records:
        gathered.setdefault((record["size"], record["upsampling"]), {})[record["engine"]] = record
    return list(gathered.values())


def speed_row(engines: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Compare the engines of one size and upsampling."""
    if "fused" not in engines:
        sys.exit("the fused engine is missing: the ratios are to its time")
    fused = engines["fused"]
    step = fused["median_step_seconds"]
    others = {name: record for name, record in engines.items() if name != "fused"}
    plain = engines.get("plain")
    return {
        "preset": fused["preset"],
        "size": fused["size"],
        "upsampling": fused["upsampling"],
        "fused_seconds": round(step, 4),
        "ratios": {name: round(record["median_step_seconds"] / step, 2) for name, record in others.items()},
        "fused_mb": round(fused["peak_memory_bytes"] / 1e6),
        "plain_mb": None if plain is None else round(plain["peak_memory_bytes"] / 1e6),
    }


def operator(options: argparse.Namespace) -> Found:
    """Compare the operator with PyTorch's layers."""
    sizes, channels = ["--sizes", "64", "128"], ["--channels", "128", "64", "32"]
    engines = ["--engines", "fused", "plain", "--seconds", "2", "--threads", str(options.threads)]
    command, records = run("benchmarks/upsample_conv.py", *sizes, *channels, *engines, "--json")
    return Found([command], operator_rows(records))


def operator_rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Divide the times of PyTorch's layers by those of the operator."""
    keys = ("channels", "height", "mode", "pass", "engine")
    seconds = {tuple(record[key] for key in keys): record["median_seconds"] for record in records}
    rows: dict[tuple[int, int, str], dict[str, Any]] = {}
    for channels, size, mode, which, engine in seconds:
        if engine == "fused":
            row = rows.setdefault((channels, size, mode), {"channels": channels, "size": size, "mode": mode})
            plain, fused = (seconds[channels, size, mode, which, name] for name in ("plain", "fused"))
            row[which.replace("+", "_")] = round(plain / fused, 2)
    return list(rows.values())


def curves(options: argparse.Namespace) -> Found:
    """Compare the curves of the engines, and draw those of bilinear upsampling."""
    commands, rows = [], []
    plot = str(IMAGES / "curves.png")
    for upsampling, more in (("nearest", []), ("bilinear", ["--plot", plot])):
        fixed = ["--preset", "quick", "--upsampling", upsampling, "--threads", "1", "--others", "3"]
        command, found = run("benchmarks/curves.py", *fixed, *more, "--json")
        commands.append(command)
        fused, *others = (round(each["largest_distance_db"], 2) for each in found)
        rows.append({"preset": "quick", "upsampling": upsampling, "fused_db": fused, "others_db": others})
    return Found(commands, rows, 1)


MEASURES: dict[str, Callable[[argparse.Namespace], Found]] = {
    "example-denoise": example_denoise,
    "example-inpaint": example_inpaint,
    "presets": presets,
    "denoising": denoising,
    "speed": speed,
    "operator": operator,
    "curves": curves,
}


if __name__ == "__main__":
    main()
