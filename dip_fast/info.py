"""What a bug report needs."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import psutil
import torch

from dip_fast import __version__, networks
from dip_fast.device import engines
from dip_fast.ops import extension
from dip_fast.presets import PRESETS, Recipe

LIBRARIES = (
    "numpy",
    "pillow",
    "tifffile",
    "imagecodecs",
    "opencv-python-headless",
    "scikit-image",
    "matplotlib",
    "safetensors",
    "onnx",
    "onnxruntime",
)


def collect() -> dict[str, Any]:
    """Collect versions, the machine, what is built, and the GPUs; everything is JSON."""
    build = extension.info()
    cuda = torch.cuda.is_available()
    return {
        "dip_fast": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cuda_of_torch": torch.version.cuda,
        "libraries": {name: _version(name) for name in LIBRARIES},
        "cpu": platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "engines": ["plain", "fused"] if build.interface else ["plain"],
        "operators": _operators(build),
        "fused": {name: _fused(preset.recipe) for name, preset in PRESETS.items()},
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
    }


def _operators(build: extension.Extension) -> dict[str, Any]:
    """Describe where the compiled operators come from and which kernels they use, or why there are none."""
    if build.interface is None:
        return {"build": "none", "why": build.reason}
    return {
        "build": build.origin,
        "for torch": build.record["torch"],
        "compiler": build.record["compiler"],
        "cuda": build.record["cuda"],
        "kernels": f"{build.interface.cpu_level()} of {'/'.join(build.interface.cpu_levels())}",
    }


def _fused(recipe: Recipe) -> str:
    """Describe which blocks of a preset's network have a fused form; the meta device shows them."""
    with torch.device("meta"):
        return engines.describe(networks.build(recipe.network, recipe.in_channels, 3, **recipe.network_options))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
