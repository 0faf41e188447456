"""Restore one damaged picture with no training data: a fast Deep Image Prior.

Importing the package is quick and loads neither torch nor the extension; a name that needs them loads them.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {"UpsampleConv2d": "dip_fast.ops.modules", "fuse": "dip_fast.ops.fuse", "fusion_report": "dip_fast.ops.fuse"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
