"""The machine that figures are measured on."""

from __future__ import annotations

import contextlib
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """Name the CPU, its kernels (None without a build), the GPU and its driver (if any), and the version of torch."""
    from dip_fast.ops import extension  # here, since it loads or builds the extension

    names = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    build = extension.load()
    return {
        "cpu": names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine(),
        "kernels": build.cpu_level() if build is not None else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "driver": _driver(),
        "torch": torch.__version__,
    }


def machine_line(facts: Mapping[str, Any]) -> str:
    """Describe a machine in one line.

    Parameters
    ----------
    facts : mapping
        What `machine` returns, with the ``device``, ``threads`` and ``preset`` of a record, on a GPU its ``precision``.
    """
    if facts["device"] == "cuda":
        return (
            f"{facts['gpu']}, driver {facts['driver'] or 'unknown'}, torch {facts['torch']}, {facts['precision']}, "
            f"preset {facts['preset']}"
        )
    threads = facts["threads"]
    return (
        f"{facts['cpu']}, kernels {facts['kernels'] or 'absent'}, torch {facts['torch']}, "
        f"{threads} thread{'s' if threads > 1 else ''}, {facts['device']}, preset {facts['preset']}"
    )


def _driver() -> str | None:
    """Read the version of the GPU's driver, None where there is none."""
    versions = [re.search(r"Kernel Module.*?(\d+\.\d[\d.]*)", line) for line in _lines("/proc/driver/nvidia/version")]
    return next((found[1] for found in versions if found), None)


def _lines(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(path).read_text().splitlines()
    return []
