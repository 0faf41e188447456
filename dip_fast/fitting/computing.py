"""What the steps of a fit hold meanwhile: memory, and the threads that compute them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, TypeVar

import torch

from dip_fast import networks


def workspace(network: networks.Network, device: torch.device) -> object:
    """Hold the memory of the fused engine between steps, while the returned object lives."""
    if device.type != "cpu" or not network.is_fused():
        return None
    from dip_fast.ops.workspace import Workspace  # here, since it loads or builds the extension

    return Workspace()


def threads(network: networks.Network, device: torch.device) -> AbstractContextManager[Any]:
    """Make the context of a step: the operators' own threads, where hardly anything is computed beside them."""
    if device.type != "cpu" or not network.is_wholly_fused():
        return nullcontext()
    from dip_fast.ops.workspace import own_threads  # here, since it loads or builds the extension

    return _Threads(own_threads())


Item = TypeVar("Item")
Made = TypeVar("Made")
_free: ContextVar[int] = ContextVar("free", default=1)  # threads that neither PyTorch nor an operator uses meanwhile


class _Threads(AbstractContextManager[None]):
    """The operators' own threads, which `shared` uses while no operator runs: PyTorch computes on one."""

    def __init__(self, own: AbstractContextManager[Any]) -> None:
        self._own = own
        self._entered: list[Token[int]] = []

    def __enter__(self) -> None:
        self._entered.append(_free.set(max(_free.get(), torch.get_num_threads())))
        self._own.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._own.__exit__(kind, value, trace)
        _free.reset(self._entered.pop())


def shared(function: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """Call a function for each item on the threads that are free, and yield what it returns, in the order of the items.

    No more than two results a thread exist at a time.
    """
    threads = _free.get()
    if threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Made]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
