"""In which precision a GPU computes the products of a fit; a CPU computes in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from dip_fast.errors import UsageError
from dip_fast.names import PRECISIONS


def require(precision: str, device: torch.device) -> None:
    """Refuse a precision that cannot be had.

    Raises
    ------
    ValueError
        For an unknown one.
    UsageError
        For bf16 on another device than a GPU.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "bf16" and device.type != "cuda":
        raise UsageError(f"--precision bf16 needs a GPU, and this is {device.type}; leave it out")


@contextmanager
def products(precision: str, device: torch.device) -> Iterator[None]:
    """Let products of float32 convolutions and matrices round their factors to TF32, or not; then as it was before.

    PyTorch has an old and a new way to say so and refuses to read the old one where the new one was used to say
    something else, so the caller's way is kept.
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
    """Give what the network is called in: with bf16, plain layers compute in bfloat16 from float32 parameters.

    Nothing is kept of the parameters in bfloat16: each is used once a step.
    """
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
