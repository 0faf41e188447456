"""Where a fit runs, and whether it fits there."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dip_fast import networks
from dip_fast.device import memory
from dip_fast.device.modes import Mode
from dip_fast.device.precision import drawing
from dip_fast.errors import Argument, TooLargeError, UsageError
from dip_fast.names import DEVICES
from dip_fast.presets import Recipe


def choose(device: torch.device | str) -> torch.device:
    """Find a device by its name; ``auto`` is the GPU where there is a usable one.

    Raises
    ------
    UsageError
        If torch knows no such device, or ``cuda`` is named and there is no usable GPU.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device must be one of {', '.join(DEVICES)}, got {device!r}") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        why = "this torch is a CPU build" if torch.version.cuda is None else "torch finds no usable GPU"
        raise UsageError(
            "{}: {} (torch {}); use {} or see dip-fast info",
            *(Argument("device", str(device)), why, torch.__version__, Argument("device", "cpu")),
        )
    return found


def require_threads(threads: int) -> None:
    """Refuse more threads than there are cores: they would only wait for each other, minutes for a step.

    Raises
    ------
    UsageError
    """
    cores = os.cpu_count() or 1
    if not 1 <= threads <= cores:
        raise UsageError("{}: this machine has {} cores; give 1 to as many", Argument("threads", threads), cores)


def describe(device: torch.device) -> str:
    """Describe the device, for the log: threads of a CPU, name of a GPU."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"{device.type} ({threads} thread{'s' if threads > 1 else ''})"


def available_bytes(device: torch.device) -> int:
    """Measure the memory that a fit may use: free on the GPU, or available in the machine and its control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return memory.available_bytes()


def needed_bytes(
    recipe: Recipe,
    channels: int,
    size: tuple[int, int],
    engine: str = "plain",
    device: str = "cpu",
    in_channels: int | None = None,
    precision: str = "fp32",
) -> int:
    """Estimate the peak memory of a step beyond that of the process before the fit.

    One forward pass on torch's meta device, which computes shapes only, counts the tensors that backward will read.
    To these come the gradients alive at once, which so many times the largest tensor covers, z with its
    perturbation, and ten copies of the weights (gradients, Adam's moments, average, best, and five that are kept).

    On a GPU, the device ``cuda``, the graph of a step holds what a step made from Python would, whose memory is
    returned before; the nine fields of the fused joined layer, of a quarter of its image each, come to it.  Not
    measured yet.  There bfloat16 takes less; the workspaces of cuDNN, for the plain engine, are not known beforehand.
    """
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    inputs = recipe.in_channels if in_channels is None else in_channels
    with torch.device("meta"):
        network = networks.build(recipe.network, inputs, channels, **recipe.network_options)
        network.use(engine)
        z = torch.empty(1, inputs, *network.input_size(*size))
        stored = drawing(precision if device == "cpu" else "fp32", torch.device(device), network)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _Shapes(), stored:
            network(z)
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    activations = [storage.nbytes() for key, storage in kept.items() if key not in weights]
    weight_bytes = sum(parameter.nbytes for parameter in network.parameters())
    transient: float = TRANSIENT_FUSED if network.is_wholly_fused() else TRANSIENT
    if network.is_fused() and device == "cuda":
        transient += FIELDS
    return int(sum(activations) + transient * max(activations) + 3 * z.nbytes + 10 * weight_bytes)


class _Shapes(Mode):
    """Computes the shapes of pointwise operators on the meta device.

    torch has these in Python; the first call imports torch._dynamo and sympy, which takes a second of CPU.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.pointwise not in func.tags or func._schema.is_mutable:
            return func(*args, **(kwargs or {}))
        operands = [value for value in args if isinstance(value, Tensor)]
        # Not torch.broadcast_shapes, which imports sympy too.
        return operands[0].new_empty(np.broadcast_shapes(*(operand.shape for operand in operands)))


# Largest tensors alive at once beyond those kept for backward.  Found by comparing with the peak resident memory of
# some steps in a process of its own: benchmarks/memory.py.
TRANSIENT, TRANSIENT_FUSED = 11, 2
FIELDS = 9 / 4  # of the largest image, on a GPU
# Of a picture whose steps see squares of it: bytes a sample that reading and writing it take, while no step is made;
# and the memory of a drawing, as a part of what a step of plain PyTorch takes for as many pixels.  A tile of 1024x1024
# pixels takes 1.4 GB in onnxruntime, with the networks of all presets that hide samples.
IN_PIECES, DRAWING = 2, 0.3
DRAWN = 2**20  # pixels of a tile that is drawn at once


def require_memory(
    recipe: Recipe,
    channels: int,
    size: tuple[int, int],
    device: torch.device,
    engine: str = "plain",
    in_channels: int | None = None,
    step_size: tuple[int, int] | None = None,
    precision: str = "fp32",
) -> int:
    """Estimate the memory a fit needs, in bytes, and refuse a picture that will not fit.

    Parameters
    ----------
    recipe, channels, size, engine, in_channels, precision
        As in `needed_bytes`.
    device : device
    step_size : tuple of int, optional
        Height and width of what a step sees of a picture that is never drawn at once; by default that is all of it.

    Raises
    ------
    TooLargeError
        Naming the size, of the same shape, that would fit.
    """

    def of(size: tuple[int, int]) -> int:
        step = needed_bytes(recipe, channels, step_size or size, engine, device.type, in_channels, precision)
        if not step_size:
            return step
        pixels, seen = math.prod(size), math.prod(step_size)
        plain = needed_bytes(recipe, channels, step_size, "plain", "cpu", in_channels)
        drawn = DRAWING * plain * min(pixels if recipe.masking else seen, DRAWN) / seen
        return max(step, int(drawn)) + IN_PIECES * channels * pixels

    needed, available = of(size), available_bytes(device)
    if needed > available:
        scale = (available / needed) ** 0.5
        while scale > 0 and of(_scaled(size, scale)) > available:
            scale -= 0.02
        height, width = _scaled(size, max(scale, 0.0))
        raise TooLargeError(
            f"a {size[1]}x{size[0]} picture needs about {needed / 1e9:.1f} GB and {available / 1e9:.1f} GB are free; "
            + (f"{width}x{height} would fit" if min(height, width) >= 16 else "free some memory")
            + ", or take a smaller preset (dip-fast presets)"
        )
    return needed


def out_of_memory(size: tuple[int, int]) -> TooLargeError:
    """Make the error of a fit on a GPU that needed more memory than was free."""
    height, width = _scaled(size, 0.5**0.5)
    return TooLargeError(
        f"a {size[1]}x{size[0]} picture needs more memory than the GPU has free; {width}x{height} would need half as "
        "much; or take a smaller preset (dip-fast presets)"
    )


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))
