"""What Ctrl-C, SIGTERM and SIGHUP do to the program outside a fit.  Importing this loads nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

INTERRUPTED = 130  # exit code
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def handle(handler: Callable[[int, Any], object]) -> dict[signal.Signals, Any]:
    """Set the handler of these signals, and return those that they had.

    One that is ignored stays so: a job under nohup or in the background is to go on.
    """
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    return before


def restore(before: dict[signal.Signals, Any]) -> None:
    """Set the handlers that `handle` returned."""
    for number, handler in before.items():
        signal.signal(number, handler)


def end_at_once(number: int, frame: object) -> None:
    """End the program with its line and nothing else: for the time in which there is nothing to be undone.

    An exception can be lost, or make a traceback, where it is raised in the middle of the import of a library.
    """
    with contextlib.suppress(OSError):
        os.write(2, b"dip-fast: stopped by the user\n")
    os._exit(INTERRUPTED)


interrupt = signal.default_int_handler  # raises KeyboardInterrupt, so that what was begun is undone


@contextlib.contextmanager
def handled(handler: Callable[[int, Any], object]) -> Iterator[None]:
    """Handle these signals in this way meanwhile."""
    before = handle(handler)
    try:
        yield
    finally:
        restore(before)


def importing() -> contextlib.AbstractContextManager[None]:
    """Import what takes long: a signal ends the program meanwhile."""
    return handled(end_at_once)
