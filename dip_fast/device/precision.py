"""The precision of a fit: of its products on a GPU, and of the images that it keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from dip_fast.errors import Argument, UsageError
from dip_fast.names import PRECISIONS
from dip_fast.networks import Network


def require(precision: str, device: torch.device) -> None:
    """Refuse a precision that the device has not.

    Raises
    ------
    UsageError
        For an unknown one, or for bf16 on a device that has none.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "bf16" and device.type not in ("cuda", "cpu"):
        raise UsageError("{} is not for {}; leave it out", Argument("precision", "bf16"), device.type)


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


def used(precision: str, device: torch.device) -> str:
    """Return the precision that a device computes in where one is asked for: a CPU has no TF32."""
    return precision if device.type == "cuda" or precision == "bf16" else "fp32"


def describe(precision: str, device: torch.device, network: Network) -> str:
    """Describe the precision of a fit, as the end of a phrase; empty for a CPU in fp32."""
    if device.type == "cpu" and precision != "bf16":
        return ""
    if not is_stored_alone(precision, device, network):
        return f" in {precision}"
    if network.stores_images():
        from dip_fast.ops import extension  # here, since it loads or builds the extension

        build = extension.load()
        return f" with images{' and products' if build is not None and build.rounds_factors() else ''} in bf16"
    return " (in fp32: PyTorch keeps the images of this network, and bf16 changes nothing)"


def is_stored_alone(precision: str, device: torch.device, network: Network) -> bool:
    """Whether images between layers alone have 16 bits: in the fused engine on a CPU.

    What PyTorch computes there is computed in float32.  Some CPUs multiply 16 bits faster, and then the factors of the
    layers' products have 16 bits too (`Interface.rounds_factors`); sums have 32.
    """
    return precision == "bf16" and device.type == "cpu" and network.is_fused()


def drawing(precision: str, device: torch.device, network: Network) -> AbstractContextManager[Any]:
    """Make the context that the network is called in: plain layers compute in bfloat16 there where that is wanted.

    The parameters stay in float32; each is used once a step, so no copy in bfloat16 is cached.
    """
    if precision != "bf16":
        return nullcontext()
    if is_stored_alone(precision, device, network):
        from dip_fast.ops.norm_conv import stored_as  # here, since it loads or builds the extension

        return stored_as(torch.bfloat16)
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
