"""A pool of processes on this machine, which stay warm from picture to picture."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from dip_fast.errors import DipFastError
from dip_fast.pictures.files import one_line
from dip_fast.runs.batch import messages
from dip_fast.runs.batch.plan import Item
from dip_fast.runs.batch.pool import Event
from dip_fast.runs.batch.settings import Settings
from dip_fast.runs.batch.worker import LAST

MAX_STARTS = 5  # in a row that fail: then it is the machine, not a picture or a kill
SECONDS_TO_END = 10.0
START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from dip_fast.runs.batch import worker; worker.main()"


class LocalPool:
    """A `Pool` of child processes.

    Parameters
    ----------
    settings : Settings
    size : int
        How many processes there are at most.
    threads : int, optional
        Of each, for libraries that do not follow the settings.
    """

    def __init__(self, settings: Settings, size: int, threads: int | None = None) -> None:
        self._settings, self._size, self._threads = settings, size, threads
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._failed_starts = 0
        self._stopping = False

    def free(self) -> int:
        """Return how many pictures it takes now."""
        return self._size - sum(worker.item is not None for worker in self._workers)

    def submit(self, item: Item) -> None:
        """Hand a picture to a warm process, or start one."""
        idle = (worker for worker in self._workers if worker.item is None and not worker.is_leaving)
        (next(idle, None) or self._start()).take(item)

    def events(self, timeout: float) -> list[Event]:
        """Wait for events."""
        deadline = time.monotonic() + timeout
        found: list[Event] = []
        while not found and (left := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                found += self._events_of(key.data)
        return found

    def stop(self) -> None:
        """Close what the workers read, at which they stop; those that have nothing to do end."""
        self._stopping = True
        for worker in self._workers:
            worker.dismiss()

    def kill(self) -> None:
        """End all workers at once."""
        for worker in [*self._workers]:
            worker.kill()
            self._forget(worker)

    def close(self) -> None:
        """Let the workers end, and wait for it."""
        self.stop()
        deadline = time.monotonic() + SECONDS_TO_END
        for worker in [*self._workers]:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, deadline - time.monotonic()))
        self.kill()
        self._selector.close()

    def _start(self) -> _Worker:
        worker = _Worker(self._settings, self._threads)
        self._workers.append(worker)
        self._selector.register(worker.output, selectors.EVENT_READ, worker)
        return worker

    def _forget(self, worker: _Worker) -> None:
        self._selector.unregister(worker.output)
        self._workers.remove(worker)
        worker.close()

    def _events_of(self, worker: _Worker) -> list[Event]:
        """Read what a worker has sent; where that is its end, what it had in hand is lost."""
        events, is_over = worker.read()
        for event in events:
            if event["event"] == "started":
                self._failed_starts, worker.has_started = 0, True
            elif event["event"] == "ended":
                worker.item = None
                worker.is_leaving = event["status"] in LAST
        if is_over:
            how = worker.how_it_ended()
            if worker.item is not None and not any(event["event"] == "refused" for event in events):
                if not worker.has_started and not self._stopping:
                    self._failed_starts += 1
                    if self._failed_starts >= MAX_STARTS:
                        raise DipFastError(f"no worker of the batch could start: {how}")
                status = "lost" if worker.has_started else "unstarted"
                events.append({"event": "ended", "picture": worker.item.name, "status": status, "error": how})
            self._forget(worker)
        return events


class _Worker:
    """A process, and what it has in hand."""

    def __init__(self, settings: Settings, threads: int | None) -> None:
        self.item: Item | None = None
        self.has_started = self.is_leaving = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the worker)
        environment = os.environ if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            bufsize=0,
            process_group=0,  # Ctrl-C is for the driver, which stops the workers
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout
        self._read = b""
        self._send(settings.to_json().encode() + b"\n")

    def take(self, item: Item) -> None:
        """Begin with a picture."""
        self.item, self.has_started = item, False
        self._send(messages.line(item.to_dict()))

    def _send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):  # `read` finds that it has ended
            self.process.stdin.write(data)

    def read(self) -> tuple[list[Event], bool]:
        """Read what there is: whole events, and whether the process has ended."""
        data = os.read(self.output.fileno(), 2**16)
        *lines, self._read = (self._read + data).split(b"\n")
        return [messages.parsed(line) for line in lines], not data

    def how_it_ended(self) -> str:
        """Describe the end of the process: its signal or exit code, and the last line that it printed."""
        with contextlib.suppress(subprocess.TimeoutExpired):  # it has closed its output, and may be about to end
            self.process.wait(SECONDS_TO_END)
        self.kill()
        code = self.process.wait()
        self._errors.seek(0)
        printed = self._errors.read().decode(errors="replace").strip().splitlines()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return one_line(f"its process ended ({how}){': ' + printed[-1] if printed else ''}")

    def dismiss(self) -> None:
        """Close the requests, at which the process stops."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def kill(self) -> None:
        """End the process and what it started, now."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Free what the process took here."""
        self.dismiss()
        self.process.wait()
        self.output.close()
        self._errors.close()


def threads_each(workers: int) -> int | None:
    """Share the cores among workers; None for one worker, which takes as many as a run does."""
    if workers == 1:
        return None
    named: Any = os.environ.get("OMP_NUM_THREADS", "")
    cores = int(named) if named.isdecimal() else len(os.sched_getaffinity(0))
    return max(1, cores // workers)
