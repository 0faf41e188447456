"""The state of the caller's process that no result may depend on, and that nothing here changes.

A program may have switched gradients off, or autocast on, set another default device or dtype, run several threads, or
forked.  What computes a result does so in `fresh_state`, and draws its first weights inside `drawn_from`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Functions that make a tensor of the default dtype where none is named; the others only for numbers with a point.
MAKE_FLOATS = {torch.empty, torch.eye, torch.linspace, torch.ones, torch.rand, torch.randn, torch.zeros}
MAKE_WHAT_IS_GIVEN = {torch.arange, torch.full, torch.scalar_tensor, torch.tensor}


@contextmanager
def fresh_state() -> Iterator[None]:
    """Compute as a fresh process does: with gradients, without autocast, in float32, on the CPU by default.

    All of it holds for this thread alone, and is as it was afterwards.  In a child of fork that has lost PyTorch's
    threads, which would be waited for without end, PyTorch computes on one.
    """
    default = torch.empty(0)
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if default.device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if default.dtype != torch.float32:
            stack.enter_context(_Float32())
        if _threads_were_lost and torch.get_num_threads() > 1:
            stack.enter_context(_one_thread())
        yield


def in_fresh_state(*methods: str) -> Callable[[type], type]:
    """Decorate a class, so that these methods of it compute in `fresh_state`."""

    def decorate(cls: Any) -> Any:
        for name in methods:
            setattr(cls, name, fresh_state()(getattr(cls, name)))
        return cls

    return decorate


def to_keep(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd may keep: a copy of one that was made in inference mode, else itself."""
    return tensor.clone() if tensor.is_inference() else tensor


class Mode(TorchDispatchMode):
    """A dispatch mode whose ``__torch_dispatch__`` torch leaves as it is.

    torch wraps it otherwise, to keep torch.compile out, and the first call then imports torch._dynamo, which takes a
    second of CPU.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class drawn_from(Mode):  # noqa: N801  (a context, as torch.no_grad is)
    """While entered, what this thread draws comes from a generator; PyTorch's own, which all threads share, is left.

    Parameters
    ----------
    generator : torch.Generator
        Of the device that is drawn on.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        """Call an operator, with the generator if it draws."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
            func, kwargs = _with_generator(func), {**kwargs, "generator": self.generator}
        return func(*args, **kwargs)


def _with_generator(func: Any) -> Any:
    """Find the overload of an operator that takes a generator."""
    packet, name = func.overloadpacket, func._overloadname
    for overload in (name, "generator" if name == "default" else f"{name}_generator"):
        found = getattr(packet, overload, None)
        if found is not None and any(argument.name == "generator" for argument in found._schema.arguments):
            return found
    raise TypeError(
        f"first weights must be drawn from a generator, and {func} takes none; draw them with torch.nn.init"
    )


class _Float32(TorchFunctionMode):
    """While entered, float32 is the default dtype of this thread: PyTorch's own default is that of all threads."""

    def __torch_function__(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        floats = func in MAKE_FLOATS or (func in MAKE_WHAT_IS_GIVEN and any(isinstance(each, float) for each in args))
        if floats and kwargs.get("dtype") is None:
            kwargs = {**kwargs, "dtype": torch.float32}
        return func(*args, **kwargs)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_threads_were_lost = False  # whether this process was forked from one that had threads beside Python's


def _note_threads() -> None:
    """Note, before a fork, whether there are threads that the child will not have: PyTorch's, for example."""
    global _had_threads
    tasks = Path("/proc/self/task")
    _had_threads = _threads_were_lost or not tasks.exists() or len(list(tasks.iterdir())) > threading.active_count()


def _note_loss() -> None:
    global _threads_were_lost
    _threads_were_lost = _had_threads


_had_threads = False
os.register_at_fork(before=_note_threads, after_in_child=_note_loss)
