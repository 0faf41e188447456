"""What a signal does to a fit that is being run."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from dip_fast.fitting import Fit


@contextlib.contextmanager
def interruptible(fit: Fit, *, quiet: bool) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP end the fit after its step; a second one ends the program."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: object) -> None:
        restore()
        fit.interrupt()
        if not quiet:  # os.write, since a handler must not enter a stream that may be in the middle of a line
            with contextlib.suppress(OSError):  # the terminal is closed
                os.write(2, b"\nstopping after this step; once more to stop at once, without the result\n")

    before: dict[signal.Signals, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a job in the background: it is to go on
            before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
