"""dip-fast bench takes turns and leaves out what is missing; no figure is asserted that a clock gives."""

import io
import os

import pytest
import torch
from PIL import Image

from dip_fast.bench import measuring, tables
from dip_fast.bench.configurations import BASE_PROCESS_BYTES, BenchSettings, engines_on
from dip_fast.device import devices, engines
from dip_fast.errors import DipFastError, UsageError

CPU_ENGINES = engines_on("cpu")


class Fake:
    """A worker that takes no time, and whose memory is its engine's place in the list."""

    asked: list = []  # noqa: RUF012

    def __init__(self, configuration):
        self.configuration = configuration
        reader, self.writer = os.pipe()
        self.answers = os.fdopen(reader)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send(self, question):
        assert question == "step"
        self.asked.append(self.configuration.engine)
        self.answer()

    def answer(self):
        os.write(self.writer, b"\n")

    def receive(self):
        self.answers.readline()
        steps = self.asked.count(self.configuration.engine)
        engine_names = engines_on(self.configuration.device)
        return {"seconds": float(steps), "peak_bytes": 1 + engine_names.index(self.configuration.engine), "threads": 1}

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
        monkeypatch.setattr(measuring, "Worker", kind)
        monkeypatch.setattr(measuring, "PAUSE_SECONDS", 0.0)
        return kind.asked

    return use


def measured(**settings):
    logged = []
    settings = {"sizes": (16,), "upsampling": ("nearest",), "preset": "quick", "threads": 1, **settings}
    return [record for group in measuring.measure(BenchSettings(**settings), logged.append) for record in group], logged


@pytest.mark.usefixtures("small")
def test_engines_take_turns(fake):
    asked = fake()
    records, _ = measured(engines=("plain", "fused"), steps=3)
    assert asked == (["plain"] * 2 + ["fused"] * 2) * 4  # the warm-up, and three turns of which the second step counts
    assert [record["median_step_seconds"] for record in records] == [6, 6]
    assert [record["quartiles_step_seconds"] for record in records] == [[5, 7]] * 2
    assert [record["peak_memory_bytes"] for record in records] == [3, 1]


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
        (size, mode, engine) for size in (16, 32) for mode in ("nearest", "bilinear") for engine in CPU_ENGINES
    ]
    assert asked[:4] == ["compile"] * 4  # compiled before anything is measured


@pytest.mark.usefixtures("small")
def test_engines_run_one_by_one_where_the_memory_is_short(fake, monkeypatch):
    asked = fake()
    monkeypatch.setattr(devices, "available_bytes", lambda device: 1.2 * BASE_PROCESS_BYTES)
    records, logged = measured(engines=("fused", "plain"), steps=1)
    assert asked == ["fused"] * 4 + ["plain"] * 4
    assert [record["alternating"] for record in records] == [False, False]
    assert any("one after the other" in line for line in logged)


@pytest.mark.usefixtures("small")
def test_compile_that_fails_is_left_out(fake):
    class Failing(Fake):
        def receive(self):
            if self.configuration.engine == "compile":
                raise DipFastError(f"{self.configuration}: no C++ compiler")
            return super().receive()

    fake(Failing)
    records, logged = measured(steps=1)
    assert [record["engine"] for record in records] == ["fused", "fused-bf16", "plain", "plain-retained"]
    assert "left out, compile at 16x16 nearest: no C++ compiler" in logged
    with pytest.raises(DipFastError, match="no engine is left"):
        measured(engines=("compile",), steps=1)


@pytest.mark.usefixtures("small")
def test_compile_that_takes_too_long_is_left_out(fake):
    class Slow(Fake):
        def answer(self):
            if self.configuration.engine != "compile":
                super().answer()

    fake(Slow)
    records, logged = measured(seconds=0.1)
    assert [record["engine"] for record in records] == ["fused", "fused-bf16", "plain", "plain-retained"]
    assert any("not compiled in time" in line for line in logged)


@pytest.mark.usefixtures("small")
def test_fused_engine_that_is_not_available_is_left_out_unless_it_is_asked_for(fake, monkeypatch):
    def refuse(*_):
        raise UsageError("the fused engine is not available: no compiler")

    fake()
    monkeypatch.setattr(engines, "choose", refuse)
    records, logged = measured(steps=1)
    assert [record["engine"] for record in records] == ["plain", "plain-retained", "compile"]
    assert "left out, fused: the fused engine is not available: no compiler" in logged
    with pytest.raises(UsageError, match="no compiler"):
        measured(engines=("fused", "plain"), steps=1)


@pytest.fixture
def pretended_gpu(monkeypatch):
    """A GPU for whoever only asks whether there is one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "available_bytes", lambda device: 1e12)
    monkeypatch.setattr(engines, "choose", lambda engine, network, device: engine)


@pytest.mark.usefixtures("small", "pretended_gpu")
def test_engines_on_a_gpu_take_turns_of_batches_of_steps(fake):
    asked = fake()
    records, logged = measured(device="cuda", steps=60)
    engine_names = list(engines_on("cuda"))
    assert [record["engine"] for record in records] == engine_names
    assert {record["precision"] for record in records} == {"tf32"}
    assert {record["device"] for record in records} == {"cuda"}
    assert {record["steps"] for record in records} == {100}  # two batches of fifty
    assert asked[:2] == ["compile", "compile-max-autotune"]
    assert asked[2:] == engine_names + [name for name in engine_names for _ in range(2)] * 2  # warm-up, and two turns
    assert [line for line in logged if "max-autotune" in line]
    assert tables.table(records)[0].split()[4] == "ms"


@pytest.mark.usefixtures("small", "pretended_gpu")
def test_only_autotuning_waits_for_what_is_compiled_before(monkeypatch, fake):
    """Its choices go by the clock."""
    running, most = set(), {}

    class Watched(Fake):
        def send(self, question):
            running.add(self)
            most[self.configuration.engine] = max(most.get(self.configuration.engine, 0), len(running))
            super().send(question)

        def receive(self):
            running.discard(self)
            return super().receive()

    monkeypatch.setattr(measuring.os, "cpu_count", lambda: 4)
    fake(Watched)
    measured(device="cuda", sizes=(16, 32), engines=("compile", "compile-max-autotune"), steps=1)
    assert most == {"compile": 2, "compile-max-autotune": 1}


def test_table_gives_ratios_to_the_fused_engine_of_the_same_row():
    record = {"upsampling": "nearest", "quartiles_step_seconds": [1.0, 1.0], "steps": 2, "device": "cpu"}
    figures = [(64, "fused", 2.0, 4e6), (64, "plain", 5.0, 8e6), (32, "plain", 1.0, 1e6)]
    keys = ("size", "engine", "median_step_seconds", "peak_memory_bytes")
    _, fused, plain, alone = tables.table([{**record, **dict(zip(keys, row, strict=True))} for row in figures])
    assert (fused.count("1.00x"), fused.split()[0]) == (2, "64x64")
    assert "2.50x" in plain
    assert "2.00x" in plain
    assert "x" not in alone.replace("32x32", "")


def test_plot_has_bars_where_records_are_missing():
    record = {"upsampling": "nearest", "preset": "quick", "threads": 1, "median_step_seconds": 1.0}
    figures = [(64, "fused", 4e6), (64, "plain", 8e6), (32, "plain", 1e6)]
    keys = ("size", "engine", "peak_memory_bytes")
    data = tables.plot([{**record, **dict(zip(keys, row, strict=True))} for row in figures])
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_compiled_network_is_measured():
    records, logged = measured(engines=("compile",), steps=1)
    assert [record["engine"] for record in records] == ["compile"]
    assert not any("left out" in line for line in logged)
