"""The precision of the products of a fit on a GPU; a CPU computes in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from dip_fast.errors import Argument, UsageError
from dip_fast.names import PRECISIONS


def require(precision: str, device: torch.device) -> None:
    """Refuse a precision that the device has not.

    Raises
    ------
    UsageError
        For an unknown one, or for bf16 on another device than a GPU.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "bf16" and device.type != "cuda":
        raise UsageError("{} needs a GPU, and this is {}; leave it out", Argument("precision", "bf16"), device.type)


@contextmanager
def products(precision: str, device: torch.device) -> Iterator[None]:
    """Let products of float32 convolutions and matrices round their factors to TF32, or not; then as it was before.

    PyTorch has an old and a new setting for this and refuses to read the old one where the new one was used for
    something else, so the one that the caller uses is kept.
    """
    if device.type != "cuda":
        yield
        return
    allowed = precision != "fp32"
    wanted: Any = allowed
    backends: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    name = "allow_tf32"
    try:
        before = [getattr(backend, name) for backend in backends]
    except RuntimeError:
        backends[0] = getattr(torch.backends.cudnn, "conv")  # noqa: B009  (unknown to mypy)
        name, wanted = "fp32_precision", "tf32" if allowed else "ieee"
        before = [getattr(backend, name) for backend in backends]
    try:
        for backend in backends:
            setattr(backend, name, wanted)
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            setattr(backend, name, value)


def drawing(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Make the context that the network is called in: plain layers compute in bfloat16 there where that is wanted.

    The parameters stay in float32; each is used once a step, so no copy in bfloat16 is cached.
    """
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
