"""The processes that make the measured steps, as the measuring process sees them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any, Self

from dip_fast.bench.configurations import Configuration
from dip_fast.errors import DipFastError


class Worker:
    """A process that holds one fit and makes a step on request; it ends with the ``with`` block.

    Parameters
    ----------
    configuration : Configuration

    Attributes
    ----------
    answers : text file
        The answers of the process, a line each; it becomes readable when there is one.
    """

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the worker)
        start = (
            "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
            "from dip_fast.bench import serving; serving.serve(sys.argv[2])"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", start, json.dumps(sys.path), configuration.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            process_group=0,  # Ctrl-C is for this process, which ends the others, with the compilers that they run
        )
        assert self._process.stdout is not None
        self.answers = self._process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        self.close()

    def ask(self, request: str) -> dict[str, Any]:
        """Send a request and wait for the answer."""
        self.send(request)
        return self.receive()

    def send(self, request: str) -> None:
        """Send a request; `serving.serve` lists them."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `receive` reports a process that has ended
            self._process.stdin.write(f"{request}\n")
            self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """Wait for an answer.

        Raises
        ------
        DipFastError
            If the process ended instead of answering, or answers with an error.
        """
        line = self.answers.readline()
        answer: dict[str, Any] = json.loads(line) if line.endswith("\n") else {"error": self._how_it_ended()}
        if "error" in answer:
            raise DipFastError(f"{self._configuration}: {answer['error']}")
        return answer

    def _how_it_ended(self) -> str:
        """Describe the end of the process: its signal or exit code, and the last line that it printed."""
        self.kill()
        code = self._process.wait()
        self._errors.seek(0)
        printed = self._errors.read().decode(errors="replace").strip().splitlines()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"its process ended ({how}){': ' + printed[-1] if printed else ''}"

    def kill(self) -> None:
        """End the process and what it started, now."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close the requests, at which the process ends, and wait for its end."""
        if self._errors.closed:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        self.answers.close()
        self._errors.close()
