"""Restore one damaged picture with no training data: a fast Deep Image Prior.

Importing the package is quick and loads neither torch nor the extension; a name that needs them loads them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dip_fast.api import denoise, inpaint
    from dip_fast.degradations import Degradation, Identity, Mask, Operator
    from dip_fast.errors import DipFastError, UsageError
    from dip_fast.fitting import Fit, Result, fit
    from dip_fast.presets import PRESETS, FitOptions, Recipe

__version__ = "0.1.0"

_HOME = {
    "denoise": "api",
    "inpaint": "api",
    "Degradation": "degradations",
    "Identity": "degradations",
    "Mask": "degradations",
    "Operator": "degradations",
    "DipFastError": "errors",
    "UsageError": "errors",
    "Fit": "fitting",
    "Result": "fitting",
    "fit": "fitting",
    "PRESETS": "presets",
    "FitOptions": "presets",
    "Recipe": "presets",
}

__all__ = [
    "PRESETS",
    "Degradation",
    "DipFastError",
    "Fit",
    "FitOptions",
    "Identity",
    "Mask",
    "Operator",
    "Recipe",
    "Result",
    "UsageError",
    "denoise",
    "fit",
    "inpaint",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dip_fast' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dip_fast.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
