"""Memory of the machine."""

from __future__ import annotations

import contextlib
import ctypes
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


def keep_memory() -> None:
    """Let glibc keep freed memory in this process, instead of returning each large tensor to the system.

    Every step would fault the same pages in again: a step of the quick preset at 512x512 takes twice as long without
    this, one of the paper preset at 256x256 1.3 times (medians of alternating runs, 2 threads, Zen 3).
    A library must not do this to its host, so only the command line does.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        threshold = 2**30  # larger single blocks are still mapped and unmapped
        libc.mallopt(-3, threshold)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
