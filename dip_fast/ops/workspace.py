"""Memory of the fused operators' images, kept from step to step."""

from __future__ import annotations

import weakref
from types import ModuleType

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
