"""The driver of a batch: hands pictures to a pool, tries again what was lost, and stops when it is told to."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dip_fast.errors import UsageError
from dip_fast.runs.batch import messages
from dip_fast.runs.batch.plan import Item
from dip_fast.runs.batch.pool import Event, Pool

SECONDS_BETWEEN_LOOKS = 0.5  # at signals, where no event comes
SECONDS_BETWEEN_TRIES = 1.0  # of a folder in which another process is at work
PATIENCE = 600.0  # seconds that it may be at work there: a step, and what follows the last one

Emit = Callable[[Event], None]


@dataclass
class Progress:
    """How far a batch has come.

    Attributes
    ----------
    ended : dict of str to str
        What became of each picture that is out of hand, by name.
    errors : dict of str to str
        Why, where it is not done.
    pixels, pixels_done : int
        Of all pictures that were to be restored, and of those that are.
    started : float
        When, by the clock that does not jump.
    """

    pixels: int = 0
    pixels_done: int = 0
    started: float = field(default_factory=time.monotonic)
    ended: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def seconds_left(self) -> float | None:
        """Estimate the time that is left: it grows with the pixels; None before anything is done."""
        if not self.pixels_done:
            return None
        return (time.monotonic() - self.started) * (self.pixels - self.pixels_done) / self.pixels_done


class Driver:
    """Restores pictures with a pool.

    Parameters
    ----------
    pool : Pool
    items : list of Item
        What is to be restored, in order.
    emit : callable
        Takes all events, and an event "picture" for each that is out of hand.
    retries : int
        How often a picture is tried again whose worker was lost, or whose run failed.
    max_failures : int
        How many pictures in a row may fail until nothing new is begun.

    Attributes
    ----------
    progress : Progress
    is_stopped : bool
        Whether the user has stopped it.
    gave_up : bool
        Whether too many failed in a row.
    """

    def __init__(self, pool: Pool, items: list[Item], emit: Emit, *, retries: int, max_failures: int) -> None:
        self.pool, self.emit = pool, emit
        self.retries, self.max_failures = retries, max_failures
        self.progress = Progress(pixels=sum(item.pixels for item in items))
        self.is_stopped = self.gave_up = False
        self._signals = self._in_a_row = 0
        self._waiting = deque(items)
        self._busy: deque[tuple[float, Item]] = deque()  # with the time at which each may be tried again
        self._busy_since: dict[str, float] = {}
        self._under_way: dict[str, Item] = {}
        self._tries: dict[str, int] = {}

    def run(self) -> Progress:
        """Restore all pictures, or as many as can be until it is stopped.

        Raises
        ------
        UsageError
            If the settings are wrong for all pictures.
        DipFastError
            If the pool cannot work.
        """
        told = 0
        with self._signals_handled():
            while self._under_way or (not self._is_ending() and (self._waiting or self._busy)):
                if self._signals != told:
                    told = self._signals
                    self.emit({"event": "stopping", "signals": told})
                    self.pool.stop()
                if self._signals > 1:
                    self.pool.kill()
                    break
                if not self._is_ending():
                    self._submit()
                for event in self.pool.events(SECONDS_BETWEEN_LOOKS):
                    self._take(event)
        self.is_stopped = self._signals > 0
        return self.progress

    def stop(self) -> None:
        """Begin nothing new, and let what is under way end with a checkpoint; a second time, end it at once."""
        self._signals += 1

    def _is_ending(self) -> bool:
        """Whether nothing new begins; where too many have failed, what is under way goes on to its end."""
        return self._signals > 0 or self.gave_up

    def _submit(self) -> None:
        """Hand the pool as much as it takes."""
        now = time.monotonic()
        while self._busy and self._busy[0][0] <= now:
            self._waiting.append(self._busy.popleft()[1])
        while self._waiting and self.pool.free() > 0:
            item = self._waiting.popleft()
            self._under_way[item.name] = item
            self.pool.submit(item)

    def _take(self, event: Event) -> None:
        """Act on an event."""
        if event["event"] == "refused":
            raise messages.unpacked(event["error"], UsageError)
        self.emit(event)
        if event["event"] == "ended":
            item = self._under_way.pop(event["picture"])
            self._end(item, event["status"], event.get("error"))

    def _end(self, item: Item, status: str, error: str | None) -> None:
        """Decide what becomes of a picture that the pool has done with."""
        if status == "unstarted":
            self._waiting.appendleft(item)
        elif status == "busy":
            self._wait_for(item, error)
        elif status in ("lost", "failed", "interrupted") and not self._is_stopping_it(status):
            self._tries[item.name] = self._tries.get(item.name, 0) + 1
            if self._tries[item.name] > self.retries:
                self._out_of_hand(item, "failed", error)
            else:
                self.emit({"event": "retry", "picture": item.name, "error": error or status})
                self._waiting.append(item)
        else:
            self._out_of_hand(item, "interrupted" if status in ("lost", "failed") else status, error)

    def _is_stopping_it(self, status: str) -> bool:
        return self._signals > 0 and status in ("interrupted", "lost")

    def _wait_for(self, item: Item, error: str | None) -> None:
        """Try again later, while whoever is at work in the folder ends."""
        now = time.monotonic()
        if now - self._busy_since.setdefault(item.name, now) > PATIENCE:
            self._out_of_hand(item, "failed", error)
        else:
            self._busy.append((now + SECONDS_BETWEEN_TRIES, item))

    def _out_of_hand(self, item: Item, status: str, error: str | None) -> None:
        """Count a picture that nothing more is done about."""
        self.progress.ended[item.name] = status
        if error is not None:
            self.progress.errors[item.name] = error
        if status == "done":
            self.progress.pixels_done += item.pixels
            self._in_a_row = 0
        elif status != "interrupted":
            self.progress.pixels -= item.pixels
            self._in_a_row += 1
            self.gave_up = self.gave_up or self._in_a_row >= self.max_failures
        left = self.progress.seconds_left()
        self.emit(
            {
                "event": "picture",
                "picture": item.name,
                "status": status,
                "error": error,
                "folder": str(Path(item.folder)),
                "done": len(self.progress.ended),
                "seconds_left": None if left is None else round(left, 1),
            }
        )

    @contextmanager
    def _signals_handled(self) -> Iterator[None]:
        """Let Ctrl-C, SIGTERM and SIGHUP stop the batch."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[signal.Signals, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a job in the background: it is to go on
                before[number] = signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        self.stop()
