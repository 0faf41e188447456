"""The errors a user can meet, each with the exit code the command line gives it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Argument:
    """An argument in a message: spelled as Python spells it, or as the command line does.

    Attributes
    ----------
    name : str
        The argument's name in Python.
    value : object
        Its value; `UNSET` names the argument alone.
    """

    UNSET = object()

    name: str
    value: Any = UNSET

    def __str__(self) -> str:
        return self.name if self.value is Argument.UNSET else f"{self.name}={self.value!r}"


@dataclass(frozen=True)
class Spelling:
    """How messages name arguments: as Python does, but for those that a command has options for.

    Attributes
    ----------
    options : mapping of str to sequence of str
        By name of the argument: the option that takes its value, or the two that set it and that clear it.
    """

    options: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __call__(self, argument: Argument) -> str:
        """Spell an argument."""
        found = self.options.get(argument.name)
        if found is None:
            return str(argument)
        if len(found) == 1:
            return found[0] if argument.value is Argument.UNSET else f"{found[0]} {argument.value}"
        is_off = argument.value is False or argument.value == "plain"
        return found[1] if is_off and found[1] else found[0]

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Spell all messages in this way meanwhile: errors, and what records, notes and manifests say of them."""
        before = spelling.set(self)
        try:
            yield
        finally:
            spelling.reset(before)


spelling: ContextVar[Spelling] = ContextVar("spelling", default=Spelling())  # noqa: B039  (it is frozen)


class DipFastError(Exception):
    """A run that failed.  Exit code 1.

    Parameters
    ----------
    template : str
        One line: what, why, what to do.  With parts, a format whose ``{}`` they fill.
    *parts : object
        Texts, and `Argument` where an argument is named.
    """

    exit_code = 1

    def __init__(self, template: str, *parts: object) -> None:
        super().__init__(template, *parts)
        self.template, self.parts = template, parts

    def __str__(self) -> str:
        return self.spelled(spelling.get())

    def spelled(self, spell: Callable[[Argument], str]) -> str:
        """Write the message with the arguments in another spelling."""
        if not self.parts:
            return self.template
        return self.template.format(*(spell(part) if isinstance(part, Argument) else part for part in self.parts))


class UsageError(DipFastError, ValueError):
    """Wrong usage or wrong input, found before anything was written.  Exit code 2."""

    exit_code = 2


class PlaceError(UsageError):
    """A folder that cannot be used as things are: it is full, say, or may not be written to."""


class BusyError(PlaceError):
    """A folder in which another run or another batch is at work."""


class TooLargeError(UsageError):
    """A picture that needs more memory than there is."""


class Stopped(DipFastError):  # noqa: N818  (it is none)
    """The user has ended the program.  Exit code 130."""

    exit_code = 130


class ReplayDiffersError(DipFastError):
    """A model file that does not draw the picture that it was kept for.  Exit code 4."""

    exit_code = 4


def in_words(error: Exception) -> DipFastError:
    """Make what a user is shown of an error: itself where it is one of these, else a line of the same kind."""
    if isinstance(error, DipFastError):
        return error
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        return DipFastError("{} is missing; pip install it, or dip-fast with all it needs", error.name)
    if isinstance(error, MemoryError):
        return DipFastError("there is not enough memory; free some, or take a smaller preset (dip-fast presets)")
    if isinstance(error, OSError) and error.strerror:
        place = "" if error.filename is None else f"cannot use {error.filename}: "
        return DipFastError("{}{}; check the path and the drive", place, error.strerror)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return DipFastError("unexpected {}; please report it with the output of --debug", text)
