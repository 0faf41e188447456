"""The functions of a build besides its operators: how it was built, which kernels run, the threads and the workspace.

They are C functions (csrc/interface.cpp), so a build serves every version of Python.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any


class Interface:
    """A loaded build; loading it registers its operators with PyTorch.

    Parameters
    ----------
    library : Path
        The file of the build.

    Raises
    ------
    OSError
        If the system cannot load the file.
    ValueError
        If the environment variable ``DIP_FAST_CPU`` names no instruction set, or one that this CPU does not support.
    """

    def __init__(self, library: Path) -> None:
        # torch is loaded, so the names of its libraries, and of the OpenMP that they bring, need no paths.
        self._library = ctypes.CDLL(str(library))
        self._require("initialise")

    def build_information(self) -> dict[str, Any]:
        """Return the version of torch, whether loops are parallel, and whether there are CUDA kernels."""
        return json.loads(self._text("build_information"))

    def cpu_levels(self) -> list[str]:
        """Return the instruction sets that this CPU supports, slowest first."""
        return self._text("cpu_levels").split()

    def cpu_level(self) -> str:
        """Return the instruction set whose kernels are in use."""
        return self._text("cpu_level")

    def select_cpu_level(self, name: str) -> None:
        """Use the kernels of another instruction set from here on; ValueError if this CPU does not support it."""
        self._require("select_cpu_level", ctypes.c_char_p(name.encode()))

    def own_threads(self) -> OwnThreads:
        """Make a context manager that runs the operators that this thread calls on threads of their own."""
        return OwnThreads(self)

    def hold_workspace(self) -> None:
        """Keep freed memory of images until `release_workspace` has been called as often as this method."""
        self.call("hold_workspace", None)

    def release_workspace(self) -> None:
        """Undo one call of `hold_workspace`."""
        self.call("release_workspace", None)

    def workspace_bytes(self) -> int:
        """Return the bytes of memory for images, free or in use."""
        return int(self.call("workspace_bytes", ctypes.c_int64))

    def workspace_blocks(self) -> int:
        """Return how many blocks of such memory the system has been asked for."""
        return int(self.call("workspace_blocks", ctypes.c_int64))

    def multiply(self, count: int, *, in_16_bits: bool = False) -> int:
        """Let the micro-kernel make products on all threads, of operands in the caches; return the multiplications.

        It is that of layers that write float32, or of those that write 16 bits.
        """
        return int(self.call("multiply", ctypes.c_int64, ctypes.c_int64(count), ctypes.c_bool(in_16_bits)))

    def rounds_factors(self) -> bool:
        """Return whether layers that write 16 bits round their factors to 16 bits, too, in the kernels in use."""
        return self.cpu_level() == "avx512_bf16"

    def call(self, name: str, result: Any, *arguments: Any) -> Any:
        """Call a C function by its name without the prefix; ``result`` is the type of what it returns."""
        function = self._library[f"dip_fast_{name}"]  # an object of its own at each look-up
        function.restype = result
        return function(*arguments)

    def _text(self, name: str) -> str:
        return bytes(self.call(name, ctypes.c_char_p)).decode()

    def _require(self, name: str, *arguments: Any) -> None:
        message = self.call(name, ctypes.c_char_p, *arguments)
        if message is not None:
            raise ValueError(message.decode())


class OwnThreads:
    """Runs the operators that a thread calls on threads of their own while entered; it can be entered again."""

    def __init__(self, interface: Interface) -> None:
        self._interface = interface
        self._entered: list[int] = []

    def __enter__(self) -> None:
        self._entered.append(self._interface.call("enter_own_threads", ctypes.c_void_p))

    def __exit__(self, *_: object) -> None:
        self._interface.call("leave_own_threads", None, ctypes.c_void_p(self._entered.pop()))
