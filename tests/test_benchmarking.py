"""What dip-fast bench measures, and that its processes take turns and end; no figure is asserted that a clock gives."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

from dip_fast import names
from dip_fast.bench import benchmarking, profiling
from dip_fast.bench.benchmarking import Job, Settings, Worker
from dip_fast.device import devices, memory
from dip_fast.errors import DipFastError, UsageError
from dip_fast.fitting import prepare
from dip_fast.fitting.degradations import Identity
from dip_fast.networks import Decoder, Skip
from dip_fast.presets import PRESETS

ENGINES = benchmarking.ENGINES["cpu"]
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
    """Settings that a command line comes to; nothing is measured."""

    def settings(*arguments):
        found = []

        def measure(settings, say):
            found.append(settings)
            return iter(())

        monkeypatch.setattr(benchmarking, "measure", measure)
        outcome = dip("bench", *arguments)
        assert (outcome.code, outcome.err) == (0, "")
        return found[0]

    return settings


def job(engine="plain", size=16, upsampling="nearest", device="cpu", precision="fp32"):
    return Job(engine, size, benchmarking._recipe("quick", upsampling), 1, device, precision)


# --- the floor ----------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(profiling, "SIDE", 64)
    fit = prepare(Identity(torch.rand(1, 3, 20, 16)), benchmarking._recipe("quick", "bilinear"), engine="fused")
    found = profiling.profile(fit, 2)
    assert fit.steps == 2 + 2 + profiling.PROFILED
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
    lines = benchmarking.profile_lines(named)
    assert f"{found['share_of_floor']:.1%} of the floor's speed" in lines[0]
    assert any(line.startswith("sum of dip_fast::") for line in lines)
    assert "100.0%" in lines[-1]


@pytest.mark.usefixtures("small")
def test_profile_of_the_command_line_is_one_object(dip):
    outcome = dip("bench", *TINY, "--profile", "--steps", "1", "--json")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert found.keys() >= {"cpu", "kernels", "torch", "preset", "device", "threads", "profiles"}
    (profile,) = found["profiles"]
    assert (profile["size"], profile["upsampling"], found["threads"]) == (16, "nearest", 1)
    assert profile["share_of_floor"] > 0


# --- the command line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    ["--sizes 256 512", "--sizes 256,512", "--sizes 256 --sizes 512", "--sizes=256,512", "--sizes 256 512 256", ""],
)
@pytest.mark.parametrize("more", ["", "--json", "--steps 3"])
def test_sizes_are_written_as_one_likes(asked, arguments, more):
    assert asked(*arguments.split(), *more.split()).sizes == (256, 512)
    assert asked(*more.split(), *arguments.split()).sizes == (256, 512)


def test_defaults_are_those_of_the_function(asked):
    assert asked() == Settings()
    assert set(names.BENCH_ENGINES) == {name for names in benchmarking.ENGINES.values() for name in names}


def test_options_reach_the_function(asked):
    given = (
        "--engines plain compile --sizes 64 --upsampling bilinear --preset quick --threads 1 --device cuda "
        "--precision bf16 --seconds 9"
    )
    assert asked(*given.split()) == Settings(
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
        ("--device cpu --precision bf16", ["--precision bf16", "needs a GPU"]),
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


# --- measuring ----------------------------------------------------------------------------------------------------


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


class Fake:
    """A worker that takes no time, and whose memory is its engine's place in the list."""

    asked: list = []  # noqa: RUF012

    def __init__(self, job):
        self.job = job
        reader, self.writer = os.pipe()
        self.answers = os.fdopen(reader)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send(self, question):
        assert question == "step"
        self.asked.append(self.job.engine)
        self.answer()

    def answer(self):
        os.write(self.writer, b"\n")

    def receive(self):
        self.answers.readline()
        steps = self.asked.count(self.job.engine)
        names = benchmarking.ENGINES[self.job.device]
        return {"seconds": float(steps), "peak_bytes": 1 + names.index(self.job.engine), "threads": 1}

    def ask(self, question):
        self.send(question)
        return self.receive()

    def kill(self):
        pass

    def close(self):
        self.answers.close()


@pytest.fixture
def fake(monkeypatch):
    """Workers of no time; their steps take as many seconds as they made steps."""

    def use(kind=Fake):
        monkeypatch.setattr(kind, "asked", [])
        monkeypatch.setattr(benchmarking, "Worker", kind)
        monkeypatch.setattr(benchmarking, "PAUSE", 0.0)
        return kind.asked

    return use


def measured(**settings):
    said = []
    settings = {"sizes": (16,), "upsampling": ("nearest",), "preset": "quick", "threads": 1, **settings}
    return [record for group in benchmarking.measure(Settings(**settings), said.append) for record in group], said


@pytest.mark.usefixtures("small")
def test_engines_take_turns(fake):
    asked = fake()
    records, _ = measured(engines=("plain", "fused"), steps=3)
    assert asked == (["plain"] * 2 + ["fused"] * 2) * 4  # the warm-up, and three turns of which the second step counts
    assert [record["median_step_seconds"] for record in records] == [6, 6]
    assert [record["quartiles_step_seconds"] for record in records] == [[5, 7]] * 2
    assert [record["peak_memory_bytes"] for record in records] == [2, 1]


@pytest.mark.usefixtures("small")
def test_two_steps_are_measured_when_the_time_is_over_and_fifty_at_most(fake):
    fake()
    assert measured(engines=("plain",), seconds=0.0)[0][0]["steps"] == 2
    assert measured(engines=("plain",))[0][0]["steps"] == 50


@pytest.mark.usefixtures("small")
def test_each_size_and_upsampling_is_measured(fake):
    asked = fake()
    records, _ = measured(sizes=(16, 32), upsampling=("nearest", "bilinear"), steps=1)
    places = [(record["size"], record["upsampling"], record["engine"]) for record in records]
    assert places == [
        (size, mode, engine) for size in (16, 32) for mode in ("nearest", "bilinear") for engine in ENGINES
    ]
    assert asked[:4] == ["compile"] * 4  # compiled before anything is measured


@pytest.mark.usefixtures("small")
def test_engines_run_one_by_one_where_the_memory_is_short(fake, monkeypatch):
    asked = fake()
    monkeypatch.setattr(devices, "available_bytes", lambda device: 1.2 * benchmarking.PROCESS)
    records, said = measured(engines=("fused", "plain"), steps=1)
    assert asked == ["fused"] * 4 + ["plain"] * 4
    assert [record["alternating"] for record in records] == [False, False]
    assert any("one after the other" in line for line in said)


@pytest.mark.usefixtures("small")
def test_compile_that_fails_is_left_out(fake):
    class Failing(Fake):
        def receive(self):
            if self.job.engine == "compile":
                raise DipFastError(f"{self.job}: no C++ compiler")
            return super().receive()

    fake(Failing)
    records, said = measured(steps=1)
    assert [record["engine"] for record in records] == ["fused", "plain", "plain-retained"]
    assert "left out, compile at 16x16 nearest: no C++ compiler" in said
    with pytest.raises(DipFastError, match="no engine is left"):
        measured(engines=("compile",), steps=1)


@pytest.mark.usefixtures("small")
def test_compile_that_takes_too_long_is_left_out(fake):
    class Slow(Fake):
        def answer(self):
            if self.job.engine != "compile":
                super().answer()

    fake(Slow)
    records, said = measured(seconds=0.1)
    assert [record["engine"] for record in records] == ["fused", "plain", "plain-retained"]
    assert any("not compiled in time" in line for line in said)


@pytest.mark.usefixtures("small")
def test_fused_engine_that_cannot_be_had_is_left_out_unless_it_is_asked_for(fake, monkeypatch):
    def refuse(*_):
        raise UsageError("the fused engine cannot be had: no compiler")

    fake()
    monkeypatch.setattr(benchmarking.engines, "choose", refuse)
    records, said = measured(steps=1)
    assert [record["engine"] for record in records] == ["plain", "plain-retained", "compile"]
    assert "left out, fused: the fused engine cannot be had: no compiler" in said
    with pytest.raises(UsageError, match="no compiler"):
        measured(engines=("fused", "plain"), steps=1)


@pytest.fixture
def pretended_gpu(monkeypatch):
    """A GPU for whoever only asks whether there is one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "available_bytes", lambda device: 1e12)
    monkeypatch.setattr(benchmarking.engines, "choose", lambda engine, network, device: engine)


@pytest.mark.usefixtures("small", "pretended_gpu")
def test_engines_on_a_gpu_take_turns_of_batches_of_steps(fake):
    asked = fake()
    records, said = measured(device="cuda", steps=60)
    names = list(benchmarking.ENGINES["cuda"])
    assert [record["engine"] for record in records] == names
    assert {record["precision"] for record in records} == {"tf32"}
    assert {record["device"] for record in records} == {"cuda"}
    assert {record["steps"] for record in records} == {100}  # two batches of fifty
    assert asked[:2] == ["compile", "compile-max-autotune"]
    assert asked[2:] == names + [name for name in names for _ in range(2)] * 2  # warm-up, and two turns
    assert [line for line in said if "max-autotune" in line]
    assert benchmarking.table(records)[0].split()[4] == "ms"


@pytest.mark.usefixtures("small", "pretended_gpu")
def test_only_autotuning_waits_for_what_is_compiled_before(monkeypatch, fake):
    """Its choices go by the clock."""
    running, most = set(), {}

    class Watched(Fake):
        def send(self, question):
            running.add(self)
            most[self.job.engine] = max(most.get(self.job.engine, 0), len(running))
            super().send(question)

        def receive(self):
            running.discard(self)
            return super().receive()

    monkeypatch.setattr(benchmarking.os, "cpu_count", lambda: 4)
    fake(Watched)
    measured(device="cuda", sizes=(16, 32), engines=("compile", "compile-max-autotune"), steps=1)
    assert most == {"compile": 2, "compile-max-autotune": 1}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("engine", "layout"), [("plain", torch.contiguous_format), ("plain-channels-last", torch.channels_last)]
)
def test_plain_engines_on_a_gpu_keep_to_one_layout(engine, layout, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setenv("DIP_FAST_GRAPH", "auto")
    fit = benchmarking._fit(job("plain", size=20))
    benchmarking._as_on_a_gpu(fit, job(engine, device="cuda"))
    seen = []
    for module in fit.network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    fit.step()
    assert seen
    assert all(output.is_contiguous(memory_format=layout) for output in seen)
    assert torch.backends.cudnn.benchmark
    assert os.environ["DIP_FAST_GRAPH"] == "never"


def test_table_gives_ratios_to_the_fused_engine_of_the_same_row():
    record = {"upsampling": "nearest", "quartiles_step_seconds": [1.0, 1.0], "steps": 2, "device": "cpu"}
    figures = [(64, "fused", 2.0, 4e6), (64, "plain", 5.0, 8e6), (32, "plain", 1.0, 1e6)]
    keys = ("size", "engine", "median_step_seconds", "peak_memory_bytes")
    _, fused, plain, alone = benchmarking.table([{**record, **dict(zip(keys, row, strict=True))} for row in figures])
    assert (fused.count("1.00x"), fused.split()[0]) == (2, "64x64")
    assert "2.50x" in plain
    assert "2.00x" in plain
    assert "x" not in alone.replace("32x32", "")


def test_plot_has_bars_where_records_are_missing():
    record = {"upsampling": "nearest", "preset": "quick", "threads": 1, "median_step_seconds": 1.0}
    figures = [(64, "fused", 4e6), (64, "plain", 8e6), (32, "plain", 1e6)]
    keys = ("size", "engine", "peak_memory_bytes")
    data = benchmarking.plot([{**record, **dict(zip(keys, row, strict=True))} for row in figures])
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"


# --- the workers --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # of torch._inductor, as it is imported
@pytest.mark.parametrize("engine", ENGINES)
def test_each_engine_is_what_its_name_says(engine, monkeypatch):
    kept = []
    monkeypatch.setattr(memory, "keep_memory", lambda: kept.append(True))
    fit = benchmarking._fit(job(engine))
    assert bool(kept) == (engine in ("fused", "plain-retained"))
    assert fit.network.scale.fused == (engine == "fused")
    assert (fit.network._compiled_call_impl is not None) == (engine == "compile")
    assert fit.options.stop == "never"


@pytest.mark.usefixtures("small")
def test_upsampling_of_the_preset_is_replaced():
    fit = benchmarking._fit(benchmarking._job(json.dumps(benchmarking.asdict(job(upsampling="bilinear")))))
    assert fit.network.scale.upsample.mode == "bilinear"
    assert fit.network.scale.inner.upsample.mode == "bilinear"


@pytest.mark.usefixtures("small")
def test_step_that_fell_back_is_no_measurement():
    fit = benchmarking._fit(job())
    next(fit.network.parameters()).data.fill_(float("nan"))
    with pytest.raises(DipFastError, match="the loss became nan"):
        benchmarking._answer(fit, job(), ["step"])


@pytest.mark.usefixtures("small")
def test_worker_that_is_killed_is_said_in_a_line():
    with Worker(job()) as worker:
        assert worker.ask("step")["peak_bytes"] > 100e6
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(DipFastError, match=r"^plain at 16x16 nearest: its process ended \(signal SIGKILL\)$"):
            worker.ask("step")


def test_error_in_a_worker_is_said_in_a_line_and_leaves_no_process():
    wrong = job()
    wrong = replace(wrong, recipe=replace(wrong.recipe, network="mirror"))
    with (
        pytest.raises(DipFastError, match="plain at 16x16 nearest: ValueError: network must be one of"),
        Worker(wrong) as w,
    ):
        w.ask("step")
    assert w._process.returncode is not None


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


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_compiled_network_is_measured():
    records, said = measured(engines=("compile",), steps=1)
    assert [record["engine"] for record in records] == ["compile"]
    assert not any("left out" in line for line in said)


def test_peak_memory_is_that_of_this_process():
    before = memory.peak_bytes()
    held = torch.ones(before // 4 + 2**24)  # larger than all there was
    assert memory.peak_bytes() >= before + 2**25
    del held


def test_presets_offered_are_those_of_the_skip_network():
    assert set(PRESETS) > {"quick", "paper"}
    for name in ("quick", "paper"):
        assert PRESETS[name].recipe.network == "skip"
