"""What is said of a device that is measured: the clocks, what must move and be multiplied, and how near its bound."""

import contextlib
import json
from types import SimpleNamespace

import pytest
import torch

from dip_fast.bench import meters, operator_calls, operator_passes, profile_tables, roofline
from dip_fast.bench.configurations import endless_recipe
from dip_fast.bench.meters import CPUMeter, CUDAMeter
from dip_fast.bench.operator_calls import Call, Recorder, TensorSpec
from dip_fast.bench.roofline import Ceilings
from dip_fast.fitting import prepare
from dip_fast.fitting.degradations import Identity
from dip_fast.ops import extension

pytestmark = pytest.mark.skipif(extension.load() is None, reason="there is no compiled extension")
CPU = torch.device("cpu")


# --- the clocks ---------------------------------------------------------------------------------------------------


@pytest.fixture
def cuda(monkeypatch):
    """The parts of torch.cuda that the meter calls, which write down that they were; the clock counts ms of work."""
    log, clock = [], [0.0]

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.time = clock[0]
            log.append("record")

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, other):
            return other.time - self.time

    class Graph:
        length = 0.0

        def replay(self):
            log.append("replay")
            clock[0] += self.length

    @contextlib.contextmanager
    def capturing(graph):
        log.append("capture")
        before = clock[0]
        yield
        graph.length, clock[0] = clock[0] - before, before  # nothing runs while it is captured
        log.append("captured")

    def work():
        log.append("work")
        clock[0] += 2.0

    stream = SimpleNamespace(wait_stream=lambda other: log.append("order"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 5)
    return SimpleNamespace(log=log, work=work)


def test_events_stand_around_all_work_and_nothing_else(cuda):
    assert CUDAMeter(torch.device("cuda")).seconds(cuda.work) == pytest.approx(0.002)
    assert cuda.log == ["synchronize", "record", "work", "synchronize", "record", "wait"]


def test_operator_on_a_gpu_is_timed_as_a_graph_after_its_warm_up(cuda):
    run, calls = CUDAMeter(torch.device("cuda")).repeated(cuda.work)
    assert calls == 3  # of 2 ms, so that the graph takes 5 at least
    begin = cuda.log.index("capture")
    assert cuda.log[:begin].count("work") == meters.WARM_UP_CALLS + 1
    assert cuda.log[begin:] == ["capture", *["work"] * 3, "captured", "replay"]
    assert CUDAMeter(torch.device("cuda")).seconds(run) == pytest.approx(0.006)
    assert meters.medians({"a": cuda.work}, CUDAMeter(torch.device("cuda"))) == {"a": pytest.approx(0.002)}


def test_memory_of_a_gpu_is_that_of_its_allocator(cuda):
    assert CUDAMeter(torch.device("cuda")).peaks() == {"peak_bytes": 3, "reserved_bytes": 5}


def test_each_device_has_its_meter():
    assert isinstance(meters.meter_for(CPU), CPUMeter)
    assert isinstance(meters.meter_for(torch.device("cuda")), CUDAMeter)
    calls = []
    assert CPUMeter().seconds(lambda: calls.append(1)) > 0
    assert len(calls) == 1


# --- what a call costs --------------------------------------------------------------------------------------------


def fitted(size=(40, 36)):
    recipe = endless_recipe("quick", "bilinear")
    picture = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    return prepare(Identity(picture), recipe, engine="fused", precision="fp32")


@pytest.mark.usefixtures("small")
def test_multiplications_of_the_recorded_calls_are_those_of_the_network():
    fit = fitted()
    calls = operator_calls.calls_of_step(fit)
    pixels = fit.z.codes.shape[-2] * fit.z.codes.shape[-1]
    counted = sum(count * call.multiplications(16 / 4)[0] for call, count in calls.items())
    # Scale by scale: thin branch 4 2, reduce 9 4 8 / 4, deepen 4 8 8 / 4, merge 9/4 8 8 + 9 2 8, mix 8 8; head 8 3.
    forward = (8 + 72 + 64 + 288 + 64) + (16 + 144 + 64 + 288 + 64) / 4 + 24
    # z has no gradient: the layers that read it make two passes, the others three.
    assert counted == pixels * (3 * forward - (8 + 72))


@pytest.mark.usefixtures("small")
def test_recording_leaves_the_fit_as_it_was():
    fit, other = fitted(), fitted()
    for each in (fit, other):
        each.step()
        if each is fit:
            operator_calls.calls_of_step(fit)
        each.step()
    assert fit.history()["loss"].tolist() == other.history()["loss"].tolist()


def recorded(function):
    with Recorder() as recorder:
        function()
    return recorder.calls


def test_each_tensor_is_counted_once_and_multiplications_by_form():
    ops = operator_passes.passes(8, 16, {"mode": "nearest", "padding_mode": "zeros"}, "fp32", CPU)
    forward, backward = recorded(ops["forward+backward"]["fused"])
    image, weight, bias = 8 * 16 * 16, 8 * 8 * 9, 8
    assert forward.nbytes == 4 * (image + weight + bias + 4 * image)
    assert backward.nbytes == 4 * (4 * image + image + weight + image + weight + bias)
    assert forward.multiplications(4) == (9 / 4 * 8 * 8 * 32 * 32, 9 * 8 * 8 * 32 * 32)
    assert backward.multiplications(4) == tuple(2 * count for count in forward.multiplications(4))
    assert forward.name == "upsample_conv2d 8x16x16 8x8x3x3"
    assert backward.name == "upsample_conv2d_backward 8x32x32 8x8x3x3"


def test_drawn_tensors_are_like_the_recorded_ones():
    image = torch.rand(1, 5, 6, 7).contiguous(memory_format=torch.channels_last)
    for tensor in (image, torch.zeros(3, dtype=torch.int8), torch.ones(2, 3, dtype=torch.float64)):
        drawn = operator_calls.describe(tensor).random(CPU)
        assert (drawn.shape, drawn.stride(), drawn.dtype) == (tensor.shape, tensor.stride(), tensor.dtype)
    assert operator_calls.describe(torch.ones(1).expand(4)).random(CPU).stride() == (
        1,
    )  # one number that stands for many
    assert (operator_calls.describe(torch.ones(2, 3)).random(CPU) > 0).all()  # it may be a variance


def test_share_is_that_of_the_slower_of_memory_and_products():
    call = Call(None, (TensorSpec((1, 1, 10, 10), (100, 100, 10, 1), torch.float32),), ())
    call_of = SimpleNamespace(nbytes=call.nbytes, multiplications=lambda per_3x3: (1000.0, 4000.0))
    ceiling = Ceilings(bytes_per_second=100.0, flop_per_second={"fp32": 1000.0, "bf16": 250.0})
    found = roofline.rates_of_calls([call_of], 10.0, ceiling, "fp32", CPU)
    assert (found["bound"], found["bound_seconds"], found["share"]) == ("memory", 4.0, 0.4)
    assert (found["bytes_per_second"], found["flop_per_second"], found["direct_flop_per_second"]) == (40, 200, 800)
    found = roofline.rates_of_calls([call_of, call_of], 32.0, ceiling, "bf16", CPU)
    assert (found["bound"], found["bound_seconds"], found["share"]) == ("matrix", 16.0, 0.5)


# --- the profile --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_profile_against_the_ceilings(monkeypatch):
    """The same code as on a GPU, with the clock of the CPU."""
    monkeypatch.setitem(roofline.MATRIX_SIDE, "cpu", 64)
    monkeypatch.setitem(roofline.COPIED_BYTES, "cpu", 2**16)
    monkeypatch.setattr(roofline, "COMPARED_OPERATOR", (4, 8))
    monkeypatch.setattr(meters, "RUNS", 2)
    fit = fitted()
    found = json.loads(json.dumps(roofline.profile(fit, 2, CPUMeter())))
    assert fit.steps == 4
    operators = found["operators"]
    assert {operator["name"].split()[0] for operator in operators} == {
        f"norm{which}_conv2d{way}" for which in ("", "_upsample") for way in ("", "_backward")
    }
    assert found["operators_seconds"] == pytest.approx(sum(o["calls"] * o["seconds"] for o in operators))
    assert found["share_of_floor"] == pytest.approx(found["floor_seconds"] / found["median_step_seconds"])
    assert found["ceilings"]["flop_per_second"].keys() == {"fp32"}
    compared = [(record["mode"], record["pass"]) for record in found["upsample_conv2d"]]
    assert compared == [(mode, which) for mode in ("nearest", "bilinear") for which in ("forward", "forward+backward")]
    for record in found["upsample_conv2d"]:
        plain = min(record["plain_seconds"], record["plain_channels_last_seconds"])
        assert record["ratio"] == pytest.approx(plain / record["seconds"])

    lines = profile_tables.profile_lines({"size": 40, "upsampling": "bilinear", **found})
    assert any(line.startswith(operators[0]["name"]) for line in lines)
    assert lines[-1].startswith("bilinear")
    assert f"{found['share_of_floor']:.1%} of its speed" in lines[1]
