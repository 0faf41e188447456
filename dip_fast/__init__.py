"""Restore one damaged picture with no training data: a fast Deep Image Prior.

Importing the package is quick and loads neither torch nor the extension; a name that needs them loads them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dip_fast.api import denoise, inpaint
    from dip_fast.errors import DipFastError, UsageError
    from dip_fast.fitting import Fit, fit, linear
    from dip_fast.fitting.degradations import Degradation, Identity, Mask, Operator
    from dip_fast.fitting.results import Result
    from dip_fast.inverse import deblur, dejpeg, guided, superres
    from dip_fast.models.exporting import export
    from dip_fast.models.replaying import replay
    from dip_fast.ops.fuse import fuse, fusion_report, unfuse
    from dip_fast.ops.modules import UpsampleConv2d
    from dip_fast.presets import PRESETS, FitOptions, Recipe
    from dip_fast.runs.batch.interface import batch

__version__ = "0.1.0"

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
    "UpsampleConv2d",
    "UsageError",
    "batch",
    "deblur",
    "dejpeg",
    "denoise",
    "export",
    "fit",
    "fuse",
    "fusion_report",
    "guided",
    "inpaint",
    "linear",
    "replay",
    "superres",
    "unfuse",
]

_HOME = {
    "api": ("denoise", "inpaint"),
    "fitting": (
        "DeepImagePrior",
        "Degradation",
        "Fit",
        "Identity",
        "Mask",
        "Objective",
        "Operator",
        "Result",
        "fit",
        "linear",
    ),
    "errors": ("DipFastError", "UsageError"),
    "inverse": ("deblur", "dejpeg", "guided", "superres"),
    "models.exporting": ("export",),
    "ops.fuse": ("fuse", "fusion_report", "unfuse"),
    "ops.modules": ("UpsampleConv2d",),
    "runs.batch.interface": ("batch",),
    "presets": ("PRESETS", "FitOptions", "Recipe"),
    "models.replaying": ("replay",),
}


def __getattr__(name: str) -> Any:
    if name == "interop":
        return importlib.import_module("dip_fast.interop")
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f"dip_fast.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
