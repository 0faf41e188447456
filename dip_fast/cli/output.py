"""Standard output and standard error, whatever state they are in."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence

from dip_fast.errors import DipFastError, UsageError


def show(text: str) -> None:
    """Print a line to standard output; a path may hold what its encoding has not."""
    put(f"{text}\n".encode(getattr(sys.stdout, "encoding", None) or "utf-8", "backslashreplace"))


def put(data: bytes) -> None:
    """Write to standard output, at once: an error has to show here, and not when the interpreter ends.

    Raises
    ------
    DipFastError
        If nobody takes it.
    """
    if sys.stdout is None:
        raise DipFastError("cannot write to standard output: it is closed")
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        # What is left in the buffer would raise once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise DipFastError(f"cannot write to standard output: {error.strerror}") from error


def say(line: str) -> None:
    """Print a line to standard error; a log that nobody takes is no reason to lose anything."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr)


def greet(*, then_stdout: bool = False) -> None:
    """Show on a terminal that the program is there, before it loads what takes long; the next line takes its place.

    Parameters
    ----------
    then_stdout : bool
        Whether that line goes to standard output: where that is no terminal, nothing would take the place.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a closed stream
        if sys.stderr.isatty() and (not then_stdout or sys.stdout.isatty()):
            print("loading ...", end="\r", file=sys.stderr, flush=True)


def standard_input() -> bytes:
    """Read a picture's content from standard input.

    Raises
    ------
    UsageError
        If it is closed, or longer than any picture.
    """
    if sys.stdin is None:
        raise UsageError("standard input is closed; name the picture's file")
    from dip_fast.pictures.reading import read_stream

    return read_stream(sys.stdin.buffer)


def complain(message: str, code: int, arguments: Sequence[str]) -> int:
    """Print an error, after its traceback where ``--debug`` asks for it, and return its exit code."""
    with contextlib.suppress(OSError):
        if "--debug" in arguments:
            traceback.print_exc()
        print("dip-fast: " + " ".join(message.split()), file=sys.stderr)
    return code
