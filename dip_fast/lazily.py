"""Functions that import what they call only when they are called."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def resolve(target: str) -> Any:
    """Import what ``"module:attribute"`` names."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def lazily(target: str) -> Callable[..., Any]:
    """Return a function that imports another one when it is called, and calls it.

    Parameters
    ----------
    target : str
        The other function as ``"module:attribute"``.  A table can then name functions whose libraries take long to
        load, or may be missing.
    """

    def call(*arguments: Any, **options: Any) -> Any:
        return resolve(target)(*arguments, **options)

    return call
