"""Memory of the machine."""

from __future__ import annotations

import contextlib
from pathlib import Path


def available_bytes() -> int:
    """Memory that may be taken: available in the machine and in the process's control group."""
    import psutil  # here, so that the functions on arrays do without it

    available = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    with contextlib.suppress(OSError, ValueError):  # no control group, or one without a limit ("max")
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return available


def peak_bytes() -> int:
    """Peak resident memory of this process; getrusage may give that of the process which started it."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])
