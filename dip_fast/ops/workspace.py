"""Resources of the fused operators: memory that is kept from step to step, and a pool of threads."""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from dip_fast.ops import extension


class Workspace:
    """Keeps the memory that the operators free for their next calls, as long as this object exists.

    Without it the C library returns large blocks to the system, and the next step pays for the page faults of new ones.
    The process's allocator is not changed.  All such objects share the blocks; they are returned to the system when the
    last object is gone.
    """

    def __init__(self) -> None:
        build = extension.load()
        if build is not None:
            build.hold_workspace()
            weakref.finalize(self, build.release_workspace).atexit = False


def own_threads() -> AbstractContextManager[Any]:
    """Run the operators that this thread calls on a pool of their own while entered, with as many threads as PyTorch.

    PyTorch itself then computes on one thread.  Its own threads all have to arrive at the end of each loop, and spin
    until they do: where another program used one of the cores, a step took 30 times as long.  No bit of a fused
    operator's result depends on the pool.
    """
    build = extension.load()
    return nullcontext() if build is None else build.own_threads()
