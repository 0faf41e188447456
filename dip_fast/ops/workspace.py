"""What the fused operators work with: memory that is kept from step to step, and threads of their own."""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

from dip_fast.ops import extension


class Workspace:
    """Keeps what the operators free, for their next calls, as long as it lives.

    The C library returns large blocks to the system and faults them in again at the next step.  The process's allocator
    is left as it is; blocks are shared by all holders, and returned to the system when the last one is gone.
    """

    def __init__(self) -> None:
        module = extension.load()
        if module is not None:
            module.hold_workspace()
            weakref.finalize(self, _release, module).atexit = False


def _release(module: ModuleType) -> None:
    module.release_workspace()


def own_threads() -> AbstractContextManager[Any]:
    """While entered, operators that this thread calls run on threads of their own, as many as PyTorch's.

    PyTorch itself computes on one, then.  Its threads all have to arrive at the end of each loop, and spin until they
    have: where another program wants one of the cores, a step took 30 times as long.  No bit of a result of the fused
    operators depends on it.
    """
    module = extension.load()
    return nullcontext() if module is None else module.OwnThreads()
