"""Every script of benchmarks/ runs: two steps of it, at 32x32."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dip_fast

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NOT_SCRIPTS = {
    "common.py",
    "damage.py",
    "figure_tables.py",
    "frame_cases.py",
    "mutations.py",
    "other_models.py",
    "inverse_cases.py",
    "yardsticks.py",
}  # modules that scripts share

# The arguments of each script, and words that it prints.  A new script needs an entry.
SCRIPTS = {
    "against.py": (
        f"{Path(dip_fast.__file__).parents[1]} --presets quick --size 32 --rounds 2 --seconds 0 --threads 1",
        ["quick 32x32: ", "; ratio"],
    ),
    "batch.py": ("--list", ["kills: ", "warm: "]),  # it takes minutes of processes
    "batch_cluster.py": ("--help", ["--iterations"]),  # Ray is not among the libraries of the tests
    "batch_simulation.py": (
        "--pictures 20 --pixels 65536 --gpus 4",
        ["| megapixels | cluster |", "| 0.066 | as it is |", "without model files"],
    ),
    "curves.py": (
        "noisy.png --reference clean.png --steps 2 --window 1 --threads 1 --plot curves.png",
        ["largest distance", "fused", "plain, bits 1"],
    ),
    "denoising.py": (
        "clean.png --presets fast --iterations 2 --threads 1 --records records",
        ["clean 32x32, sigma 25", "| `fast` | estimated |"],
    ),
    "exactness.py": ("run", ["ten replays give the result's bytes: yes", "torchscript: the recorded bytes: yes"]),
    "figures.py": ("--list", ["presets: ", "speed: "]),  # tests/test_figures.py has the rest
    "frames.py": (  # tests/test_frames.py has the others
        "flat --size 32 --threads 1",
        ["| frame | figure | measured | bar |", "| flat | levels from what it was | 0 | at most 1 |"],
    ),
    "inverse.py": (  # tests/test_inverse_benchmark.py has the other tasks
        "--jpeg clean.png --presets quick --iterations 2 --threads 1",
        ["| picture | decoded | `quick` |", "clean 32x32, JPEG quality 10"],
    ),
    "loop.py": ("--presets quick --size 32 --threads 1 --calls 2 --step", ["optimiser", "whole step"]),
    "memory.py": ("--presets quick --sizes 32 --steps 2", ["quick      fused", "quick      plain"]),
    "notebook_networks.py": (
        "--networks restoration --size 32 --turns 1 --threads 1",
        ["| network | plain | fused | |", "| restoration, 64x64 |"],
    ),
    "others.py": ("--list", ["smp Unet\n", "Real-ESRGAN\n"]),  # the models' libraries are not among those of the tests
    "presets.py": (
        "clean.png --iterations 2 --presets fast quick --timed default hourglass --timed-steps 2 --json",
        [
            '"preset": "fast"',
            '"preset": "quick"',
            '"preset": "default"',
            '"damage": "sigma 25"',
            '"psnr_average": null',
        ],
    ),
    "reliability.py": ("pictures --count 30 --fit-every 10", ["30 pictures, seed 0: 0 faults; the longest took "]),
    "replay.py": (
        "--presets quick hourglass --sizes 32 --rounds 2",
        ["quick 32x32: onnxruntime", "hourglass 32x32: onnxruntime"],
    ),
    "report_page.py": (
        "--height 300 --width 400 --rounds 1 --no-browser --check",
        ["400x300 pixels: ", "written: ", "browser: not measured"],
    ),
    "start.py": (
        "--presets quick --size 32 --iterations 2 --runs 1",
        ["quick: first step after ", " s of CPU, "],
    ),
    "stack.py": (
        "clean.png --frames 3 --alone 1 --pan 2 --preset fast --iterations 2 --threads 1",
        ["3 frames of 28x32: ", "ratio", "| 2 | 2", "flicker, in 1/255: noisy "],
    ),
    "stress_runs.py": (
        "--kills 2 --mutations 4",
        ["| runs killed | 2 | 2 went on, 0 lost, 0 stuck, 0 with other bits |", "0 failed, 0 stuck"],
    ),
    "task_pictures.py": ("jpeg --out . --iterations 2 --threads 1", ["jpeg damaged ", " dB, quick "]),
    "pieces.py": (
        "clean.png --limit 1000 --preset fast --iterations 2 --threads 1 --check",
        ["clean 32x32, sigma 25, fast", "| in pieces | ", "lost: "],
    ),
    "tiles.py": (  # of 32x32 pixels, one tile is the whole
        "clean.png --tasks jpeg --tile 64 --iterations 2 --threads 1 --check",
        [
            "| picture | task | tiles | PSNR, dB | lost, dB | borders | of one piece | seconds |",
            "| clean | jpeg | 64 |",
            "| 0.00 | ",
        ],
    ),
    "tomography.py": (  # deepinv is not among the libraries of the tests
        "--pictures phantom --size 32 --iterations 2 --threads 1 --without-deepinv",
        ["| picture | filtered back-projection | `quick` |", "| phantom 32x32, 30 views | "],
    ),
    "upsample_conv.py": (
        "--sizes 8 --channels 8 --engines fused plain --modes nearest --threads 1 --seconds 0",
        ["8x8", "torch.mm", "weight gradient"],
    ),
    "whole_fits.py": (
        "--device cpu --preset quick --size 32 --iterations 2 --precisions fp32 --twice",
        ["the same", "mean PSNR"],
    ),
}


def test_every_script_has_an_entry():
    assert {path.name for path in BENCHMARKS.glob("*.py")} == SCRIPTS.keys() | NOT_SCRIPTS


def test_every_module_is_checked_as_strictly_as_the_package():
    mypy = tomllib.loads((BENCHMARKS.parent / "pyproject.toml").read_text())["tool"]["mypy"]
    (strict,) = (entry["module"] for entry in mypy["overrides"] if "dip_fast.*" in entry["module"])
    assert set(strict) == {"dip_fast.*", *(path.stem for path in BENCHMARKS.glob("*.py"))}


@pytest.mark.slow
def test_runs_live_through_hundreds_of_kills_and_changes(place):
    command = [sys.executable, BENCHMARKS / "stress_runs.py", "--kills", "500", "--mutations", "1000"]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_runs(script, place, dip):
    clean = np.full((32, 32, 3), 100, np.uint8)
    clean[8:20, 10:30] = 180
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 25, clean.shape), 0, 255).astype(np.uint8)
    for name, image in (("clean", clean), ("noisy", noisy)):
        Image.fromarray(image).save(f"{name}.png")
    if script == "exactness.py":
        options = ["--export", "onnx,torchscript", "--iterations", "2", "--snapshot-every", "0"]
        assert dip("run", "noisy.png", *options, "--quiet", "--out", "run").code == 0
    arguments, words = SCRIPTS[script]
    command = [sys.executable, BENCHMARKS / script, *arguments.split()]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr
    assert [word for word in words if word not in ended.stdout] == []
    assert "NaN" not in ended.stdout
    if "--json" in arguments:
        assert json.loads(ended.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), [("pictures", 10_000), ("models", 2_000)])
def test_many_damaged_files(kind, number, place):
    """As docs/reliability.md tells of them, of another seed."""
    command = [sys.executable, BENCHMARKS / "reliability.py", kind, "--count", str(number), "--seed", "12"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
