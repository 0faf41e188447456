"""The command line of dip-fast bench: its options, its errors, and what it prints."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

from dip_fast import names
from dip_fast.bench import measuring
from dip_fast.bench.configurations import ENGINES, BenchSettings
from dip_fast.presets import PRESETS

KEYS = {
    "size",
    "upsampling",
    "engine",
    "median_step_seconds",
    "peak_memory_bytes",
    "threads",
    "device",
}
TINY = ("--preset", "quick", "--threads", "1", "--sizes", "16", "--upsampling", "nearest")


@pytest.fixture
def asked(dip, monkeypatch):
    """The settings that a command line results in; nothing is measured."""

    def settings(*arguments):
        found = []

        def measure(settings, log):
            found.append(settings)
            return iter(())

        monkeypatch.setattr(measuring, "measure", measure)
        outcome = dip("bench", *arguments)
        assert (outcome.code, outcome.err) == (0, "")
        return found[0]

    return settings


# --- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    ["--sizes 256 512", "--sizes 256,512", "--sizes 256 --sizes 512", "--sizes=256,512", "--sizes 256 512 256", ""],
)
@pytest.mark.parametrize("more", ["", "--json", "--steps 3"])
def test_sizes_are_written_as_one_likes(asked, arguments, more):
    assert asked(*arguments.split(), *more.split()).sizes == (256, 512)
    assert asked(*more.split(), *arguments.split()).sizes == (256, 512)


def test_defaults_are_those_of_the_function(asked):
    assert asked() == BenchSettings()
    assert tuple(ENGINES) == names.BENCH_ENGINES


def test_options_reach_the_function(asked):
    given = (
        "--engines plain compile --sizes 64 --upsampling bilinear --preset quick --threads 1 --device cuda "
        "--precision bf16 --seconds 9"
    )
    assert asked(*given.split()) == BenchSettings(
        (64,), ("bilinear",), "quick", ("plain", "compile"), threads=1, device="cuda", precision="bf16", seconds=9.0
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("256", ["256"]),
        ("--sizes", ["--sizes"]),
        ("--sizes 256 large", ["large", "integer"]),
        ("--sizes 8", ["8", "16"]),
        ("--engines fused plian", ["plian", "did you mean plain"]),
        ("--device cpu --engines compile-max-autotune", ["compile-max-autotune", "on cpu", "plain-retained"]),
        ("--precision fp64", ["fp64", "fp32, tf32, bf16"]),
        ("--upsampling cubic", ["cubic", "nearest, bilinear, both"]),
        ("--preset decoder", ["decoder", "quick, paper"]),
        ("--threads 100000", ["100000", "cores"]),
        ("--steps 2 --seconds 3", ["--steps", "--seconds"]),
        ("--profile --plot new.png", ["--profile", "--plot"]),
        ("--profile --engines plain", ["--profile", "--engines"]),
        ("--plot old.png", ["old.png", "exists"]),
        ("--plot new.jpg", ["new.jpg", ".png"]),
        ("--plot nowhere/new.png", ["nowhere"]),
        ("--sizes 100000", ["100000x100000", "GB"]),
    ],
)
@pytest.mark.usefixtures("place")
def test_wrong_usage_is_one_line(dip, arguments, words):
    Path("old.png").write_bytes(b"mine")
    outcome = dip("bench", *arguments.split())
    assert (outcome.code, outcome.out) == (2, b"")
    (line,) = outcome.err.splitlines()
    assert all(word in line for word in words), line
    assert [path.read_bytes() for path in Path().iterdir()] == [b"mine"]


def test_gpu_that_is_not_there_is_one_line(dip, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcome = dip("bench", *TINY, "--device", "cuda")
    assert (outcome.code, outcome.out) == (2, b"")
    assert "--device cuda" in outcome.err


def test_presets_offered_are_those_of_the_skip_network():
    assert set(PRESETS) > {"quick", "paper"}
    for name in ("quick", "paper"):
        assert PRESETS[name].recipe.network == "skip"


# --- what it prints -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small", "place")
def test_records_on_standard_output(dip):
    engines = ("fused", "plain", "plain-retained")
    outcome = dip("bench", *TINY, "--engines", *engines, "--steps", "2", "--json", "--plot", "new.png")
    assert outcome.code == 0
    records = json.loads(outcome.out)
    assert [record["engine"] for record in records] == list(engines)
    for record in records:
        assert record.keys() >= KEYS
        assert (record["size"], record["upsampling"]) == (16, "nearest")
        assert (record["threads"], record["device"], record["preset"]) == (1, "cpu", "quick")
        assert (record["steps"], record["alternating"]) == (2, True)
        low, high = record["quartiles_step_seconds"]
        assert 0 < low <= record["median_step_seconds"] <= high
        assert 100e6 < record["peak_memory_bytes"] < 2e9
    with Image.open("new.png") as image:
        image.load()


@pytest.mark.usefixtures("small")
def test_profile_of_the_command_line_is_one_object(dip):
    outcome = dip("bench", *TINY, "--profile", "--steps", "1", "--json")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert found.keys() >= {"cpu", "kernels", "torch", "preset", "device", "threads", "profiles"}
    (profile,) = found["profiles"]
    assert (profile["size"], profile["upsampling"], found["threads"]) == (16, "nearest", 1)
    assert profile["share_of_floor"] > 0


def test_ctrl_c_ends_the_workers_too(place):
    command = [sys.executable, "-m", "dip_fast", "bench", *TINY, "--engines", "plain", "--steps", "100000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline() == "16x16 nearest: plain\n"
        (worker,) = psutil.Process(process.pid).children()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.strip() == "dip-fast: stopped by the user"
    assert not worker.is_running()
