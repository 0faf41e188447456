"""The side of a worker process: it prepares one fit and answers requests from standard input."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dip_fast.bench import floors, profiling, roofline
from dip_fast.bench.configurations import CHANNELS, Configuration
from dip_fast.bench.meters import step_seconds
from dip_fast.errors import DipFastError
from dip_fast.fitting import Fit, prepare
from dip_fast.fitting.degradations import Identity


def serve(text: str) -> None:
    """Answer requests, one a line, until standard input is closed.

    ``step`` times a step of the fit, on a GPU the mean of a batch of steps; ``profile N`` times N of these and profiles
    some more.  Each answer is a line of JSON, with an ``error`` where a request failed.

    Parameters
    ----------
    text : str
        The configuration, as `Configuration.to_json` writes it.
    """
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print on standard output is not an answer
        configuration, fit = Configuration.from_json(text), None
        for request in sys.stdin:
            try:
                fit = fit or prepare_fit(configuration)
                found = answer(fit, configuration, request.split())
            except Exception as error:
                found = {"error": first_line(error)}
            print(json.dumps({**found, "threads": torch.get_num_threads()}), file=answers, flush=True)


def prepare_fit(configuration: Configuration) -> Fit:
    """Prepare the fit of a configuration, in a process of its own: process-wide settings change."""
    engine = configuration.measured_engine
    if engine.keeps_memory:
        from dip_fast.device import memory

        memory.keep_memory()
    torch.set_num_threads(configuration.threads)
    size = configuration.size
    ramp = torch.linspace(0.2, 0.8, size)
    noise = torch.randn(1, CHANNELS, size, size, generator=torch.Generator().manual_seed(0))
    image = (ramp * ramp[:, None] + 0.1 * noise).clamp(0, 1)
    fit = prepare(
        Identity(image),
        configuration.recipe,
        device=configuration.device,
        engine=engine.engine,
        precision=configuration.precision,
    )
    if configuration.device == "cuda" and engine.engine == "plain":
        tune_plain_on_gpu(fit, channels_last=engine.channels_last)
    if engine.compile_mode is not None:
        fit.network.compile(mode=engine.compile_mode)
    return fit


def tune_plain_on_gpu(fit: Fit, *, channels_last: bool) -> None:
    """Run plain PyTorch as an experienced user would: cuDNN tries its algorithms, and images keep one layout.

    Steps are eager, without a CUDA graph; torch.compile makes graphs of its own.  The weights, 9 MB, stay in the layout
    that the fit gives them; cuDNN converts them as it reads them.
    """
    torch.backends.cudnn.benchmark = True
    os.environ["DIP_FAST_GRAPH"] = "never"
    layout = torch.channels_last if channels_last else torch.contiguous_format
    forward = fit.network.forward

    def forward_in_layout(z: Tensor) -> Tensor:
        image: Tensor = forward(z.contiguous(memory_format=layout))
        return image

    fit.network.forward = forward_in_layout


def answer(fit: Fit, configuration: Configuration, words: Sequence[str]) -> dict[str, Any]:
    """Carry out a request, and return what it found.

    Raises
    ------
    DipFastError
        If the loss of a step went wrong, so that the fit went back: its time is no measurement.
    """
    meter = configuration.meter
    if words[0] == "profile":
        steps = int(words[1])
        if fit.device.type == "cuda":
            return roofline.profile(fit, steps, meter)
        recipe = floors.idle_recipe(configuration.recipe)
        idle = prepare_fit(replace(configuration, size=floors.IDLE_SIZE, recipe=recipe))
        return profiling.profile(fit, idle, steps, meter)
    seconds = step_seconds(fit, meter)
    if fit.events:
        raise DipFastError(f"a step went wrong: {fit.events[-1]['fault']}")
    return {"seconds": seconds, **meter.peaks()}


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; torch.compile raises pages."""
    lines = str(error).strip().splitlines()
    name = "" if isinstance(error, DipFastError) else f"{type(error).__name__}: "
    return name + (lines[0][:300] if lines else "")
