"""A step as one CUDA graph: captured once, then repeated without Python and without a wait for the host.

The environment variable ``DIP_FAST_GRAPH`` decides: ``auto`` (the default) captures, ``never`` makes each step from
Python, with the same results.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dip_fast.errors import UsageError

WARMUP = 3  # steps before a capture, as PyTorch advises: libraries choose their algorithms and take their memory
logger = logging.getLogger("dip_fast")


def repeatable(step: Callable[[], None], state: Sequence[Tensor], device: torch.device) -> Callable[[], None]:
    """Turn a step into what makes it again and again: on a GPU its graph, where it can be captured; else itself.

    Parameters
    ----------
    step : callable
        Works on tensors whose memory stays where it is, and reads none of them on the host.
    state : sequence of Tensor
        All that it changes: warm-up and capture leave their values as they were.
    device : device

    Raises
    ------
    UsageError
        If ``DIP_FAST_GRAPH`` is neither ``auto`` nor ``never``.
    """
    policy = os.environ.get("DIP_FAST_GRAPH", "auto")
    if policy not in ("auto", "never"):
        raise UsageError(f"DIP_FAST_GRAPH must be auto or never, got {policy!r}")
    if device.type != "cuda" or policy == "never":
        return step
    before = [tensor.clone() for tensor in state]
    current = torch.cuda.current_stream(device)
    try:
        _warm_up(step, device)
        _restore(state, before)
        return _capture(step)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).strip().splitlines()
        logger.warning(
            "dip-fast: the step cannot be one CUDA graph (%s); each is made from Python",
            reason[0] if reason else "no reason",
        )
        torch.cuda.set_stream(current)  # PyTorch leaves that of a capture which failed in place
        _restore(state, before)
        return step


def _warm_up(step: Callable[[], None], device: torch.device) -> None:
    """Make some steps on a stream of their own; what they draw of the GPU's generator is put back."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    random_state = torch.cuda.get_rng_state(device)
    try:
        with torch.cuda.stream(stream):
            for _ in range(WARMUP):
                step()
    finally:
        torch.cuda.set_rng_state(random_state, device)
    torch.cuda.current_stream(device).wait_stream(stream)


def _capture(step: Callable[[], None]) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


@torch.no_grad()
def _restore(state: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    for tensor, value in zip(state, before, strict=True):
        tensor.copy_(value)
