"""A process that restores one picture after the other: requests come as lines on standard input, events leave as lines.

The end of standard input is the wish to stop, whether the driver has closed it or has died: a fit that is under way
ends after its step, with a checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import platform
import queue
import signal
import sys
import threading
from typing import Any, BinaryIO

from dip_fast.errors import DipFastError
from dip_fast.runs.batch import messages

# After these a process is not used again: an unforeseen error may leave anything behind in it, and another one is cheap
# beside a fit.
LAST = ("failed", "interrupted")


class Stop:
    """The wish to stop, as a signal brings it to the thread that works.

    Attributes
    ----------
    is_wished : bool
    may_raise : bool
        Whether the work may be left by an exception now.
    """

    def __init__(self) -> None:
        self.is_wished = False
        self.may_raise = False
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for number in numbers:
            signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)  # a parent's mask is inherited, and Ray's holds SIGINT

    def _handle(self, number: int, frame: object) -> None:
        self.is_wished = True
        if self.may_raise:
            self.may_raise = False
            raise KeyboardInterrupt

    def wish(self) -> None:
        """Stop, from another thread; a fit that is under way has its own handler meanwhile."""
        self.is_wished = True
        os.kill(os.getpid(), signal.SIGINT)


def main() -> None:
    """Serve a driver; the first line holds the settings."""
    events = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints must not stand between the events
    requests = sys.stdin.buffer
    stop = Stop()
    first = requests.readline()
    if not first:
        return
    # Imported once a worker, which is what it is kept warm for.
    from dip_fast.device.memory import keep_memory
    from dip_fast.runs.batch import work
    from dip_fast.runs.batch.settings import Settings

    keep_memory()
    settings = Settings.from_json(first.decode())
    try:
        work.check(settings)
    except DipFastError as error:
        _send(events, {"event": "refused", "error": messages.packed(error)})
        return
    pending = _listen(requests, stop)
    while (request := pending.get()) is not None and not stop.is_wished:
        if not _serve(work, settings, request, events, stop):
            return


def _listen(requests: BinaryIO, stop: Stop) -> queue.Queue[dict[str, Any] | None]:
    """Read the requests in a thread, which sees the end of the input while a fit is under way."""
    pending: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def listen() -> None:
        for line in requests:
            if line.endswith(b"\n"):
                pending.put(messages.parsed(line))
        pending.put(None)
        stop.wish()

    threading.Thread(target=listen, daemon=True).start()
    return pending


def _serve(work: Any, settings: Any, request: dict[str, Any], events: BinaryIO, stop: Stop) -> bool:
    """Restore a picture; returns whether the process is good for another one."""
    from dip_fast.runs.batch.plan import Item

    item = Item(**request)
    name = {"picture": item.name}
    _send(events, {"event": "started", **name, "host": platform.node(), "pid": os.getpid()})

    def emit(event: dict[str, Any]) -> None:
        _send(events, {**event, **name})

    try:
        stop.may_raise = True
        if stop.is_wished:
            raise KeyboardInterrupt
        outcome = work.perform(settings, item, lambda text: emit({"event": "note", "text": text}), emit)
    except KeyboardInterrupt:  # between the lines of `perform`
        outcome = work.Outcome("interrupted")
    stop.may_raise = False
    _send(events, {"event": "ended", **name, "status": outcome.status, "error": outcome.error})
    return outcome.status not in LAST


def _send(events: BinaryIO, event: dict[str, Any]) -> None:
    """Send an event; a driver that is gone takes none, and the run's folder has it all."""
    with contextlib.suppress(OSError):
        events.write(messages.line(event))


if __name__ == "__main__":
    main()
