"""Checks of single values: one that is of another kind or out of range is refused by its name, in one line."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection
from typing import Any

from dip_fast.errors import Argument, UsageError


def integer(name: str, value: Any, *, least: int, most: int | None = None) -> int:
    """Return an integer, of Python or of NumPy, as Python's own.

    Raises
    ------
    UsageError
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or int(value) < least:
        raise UsageError(f"{name} must be an integer of at least {least}, got {value!r}")
    if most is not None and int(value) > most:
        raise UsageError("{} must be at most {}, got {}", Argument(name), most, value)
    return int(value)


def number(name: str, value: Any, *, least: float, most: float = math.inf) -> float:
    """Return a finite number within these bounds, as Python's own.

    Raises
    ------
    UsageError
    """
    fits = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or not least <= value <= most:
        bounds = f"of at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise UsageError(f"{name} must be a number {bounds}, got {value!r}")
    return float(value)


def choice(name: str, value: Any, choices: Collection[str]) -> str:
    """Return one of several words.

    Raises
    ------
    UsageError
    """
    if not isinstance(value, str) or value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value
