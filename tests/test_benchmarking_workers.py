"""The processes of dip-fast bench: each computes what its engine's name says, and none is left behind."""

import os
import signal
from dataclasses import replace

import pytest
import torch

from dip_fast.bench import serving
from dip_fast.bench.configurations import ENGINES, Configuration, endless_recipe, engines_on
from dip_fast.bench.serving import prepare_fit
from dip_fast.bench.workers import Worker
from dip_fast.device import memory
from dip_fast.errors import DipFastError


def configuration(engine="plain", size=16, upsampling="nearest", device="cpu", precision="fp32"):
    return Configuration(engine, size, endless_recipe("quick", upsampling), 1, device, precision)


@pytest.mark.usefixtures("small")
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # of torch._inductor, as it is imported
@pytest.mark.parametrize("engine", engines_on("cpu"))
def test_each_engine_is_what_its_name_says(engine, monkeypatch):
    kept = []
    monkeypatch.setattr(memory, "keep_memory", lambda: kept.append(True))
    fit = prepare_fit(configuration(engine))
    assert bool(kept) == (engine in ("fused", "fused-bf16", "plain-retained"))
    assert fit.network.scale.fused == engine.startswith("fused")
    assert (fit.network._compiled_call_impl is not None) == (engine == "compile")
    assert fit.options.stop == "never"


@pytest.mark.usefixtures("small")
def test_upsampling_of_the_preset_is_replaced():
    fit = prepare_fit(Configuration.from_json(configuration(upsampling="bilinear").to_json()))
    assert fit.network.scale.upsample.mode == "bilinear"
    assert fit.network.scale.inner.upsample.mode == "bilinear"


@pytest.mark.usefixtures("small")
def test_step_that_fell_back_is_no_measurement():
    fit = prepare_fit(configuration())
    next(fit.network.parameters()).data.fill_(float("nan"))
    with pytest.raises(DipFastError, match="the loss became nan"):
        serving.answer(fit, configuration(), ["step"])


@pytest.mark.usefixtures("small")
def test_worker_that_is_killed_is_reported_in_a_line():
    with Worker(configuration()) as worker:
        assert worker.ask("step")["peak_bytes"] > 100e6
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(DipFastError, match=r"^plain at 16x16 nearest: its process ended \(signal SIGKILL\)$"):
            worker.ask("step")


def test_error_in_a_worker_is_reported_in_a_line_and_leaves_no_process():
    wrong = configuration()
    wrong = replace(wrong, recipe=replace(wrong.recipe, network="mirror"))
    with (
        pytest.raises(DipFastError, match=r"^plain at 16x16 nearest: network must be one of"),
        Worker(wrong) as w,
    ):
        w.ask("step")
    assert w._process.returncode is not None


def test_unexpected_errors_are_named_by_their_type():
    assert serving.first_line(DipFastError("no room\nmore")) == "no room"
    assert serving.first_line(ValueError("no room\nmore")) == "ValueError: no room"


def test_peak_memory_is_that_of_this_process():
    before = memory.peak_bytes()
    held = torch.ones(before // 4 + 2**24)  # larger than all there was
    assert memory.peak_bytes() >= before + 2**25
    del held


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("engine", "layout"), [("plain", torch.contiguous_format), ("plain-channels-last", torch.channels_last)]
)
def test_plain_engines_on_a_gpu_keep_to_one_layout(engine, layout, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setenv("DIP_FAST_GRAPH", "auto")
    fit = prepare_fit(configuration("plain", size=20))
    serving.tune_plain_on_gpu(fit, channels_last=ENGINES[engine].channels_last)
    seen = []
    for module in fit.network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    fit.step()
    assert seen
    assert all(output.is_contiguous(memory_format=layout) for output in seen)
    assert torch.backends.cudnn.benchmark
    assert os.environ["DIP_FAST_GRAPH"] == "never"
