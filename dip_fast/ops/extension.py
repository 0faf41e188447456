"""Finds or builds the compiled operators, and loads them.

A build shipped in the wheel is loaded if it was made from these sources for this torch and this Python.  Otherwise one
is compiled, once, into ``$XDG_CACHE_HOME/dip-fast`` (``~/.cache/dip-fast``), in a folder named by a digest of
everything that it depends on; processes that need the same build at the same time wait for the one that compiles it.
Where that fails, a warning names the reason and the operators run through `dip_fast.ops.reference`.

The environment variable ``DIP_FAST_BUILD`` decides whether to compile: ``auto`` (the default) or ``never``, which only
loads a build that exists already.  ``CXX`` and ``MAX_JOBS`` name the compiler and limit its processes; ``CUDA_HOME``
and ``TORCH_CUDA_ARCH_LIST`` choose the toolkit for the CUDA kernels and the GPUs that they are compiled for.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import logging
import os
import shutil
import sys
import sysconfig
import tempfile
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import filelock
import torch

from dip_fast.errors import UsageError
from dip_fast.ops import building

MODULE = "dip_fast._C"
logger = logging.getLogger("dip_fast")


@dataclass(frozen=True)
class Extension:
    """The build that `load` loaded, or the reason why there is none.

    Attributes
    ----------
    module : module or None
        The compiled operators; None if the reference runs in their place.
    library : Path or None
        The file that was loaded.
    origin : {"shipped", "cached", "none"}
        Whether the build came with the package or was compiled on this machine.
    reason : str
        Why no build is loaded; empty if one is.
    record : dict
        What the build was made from and for: the entries of `building.target`, and the compiler.
    """

    module: ModuleType | None = None
    library: Path | None = None
    origin: str = "none"
    reason: str = ""
    record: dict[str, str] = field(default_factory=dict)


_loaded: Extension | None = None
_loading = threading.Lock()


def load() -> ModuleType | None:
    """Load the compiled operators, at most once in a process.

    Returns
    -------
    module or None
        The same module at every call; None if there is none, in which case the first call warns.

    Raises
    ------
    UsageError
        If ``DIP_FAST_BUILD`` is neither ``auto`` nor ``never``.
    ImportError
        If the extension refuses to initialise, or other code in this process has registered its operators.
    """
    global _loaded
    with _loading:  # threads that arrive meanwhile wait, and get the same module
        if _loaded is None:
            _loaded = _load()
            if _loaded.module is None:
                warnings.warn(
                    f"dip-fast runs its operators through plain PyTorch, which is slower: {_loaded.reason}",
                    RuntimeWarning,
                    stacklevel=2,
                )
    return _loaded.module


def info() -> Extension:
    """Return which build is loaded, or why none is; this loads it first."""
    load()
    assert _loaded is not None
    return _loaded


def shipped_library() -> Path:
    """Return the path of the build that comes in the wheel."""
    return Path(__file__).parents[1] / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


def cache_folder() -> Path:
    """Return the folder of the builds compiled on this machine."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "dip-fast"


def _load() -> Extension:
    policy = os.environ.get("DIP_FAST_BUILD", "auto")
    if policy not in ("auto", "never"):
        raise UsageError(f"DIP_FAST_BUILD must be auto or never, got {policy!r}")
    # A second registration of the same operators would end the process.
    if any(name.startswith("dip_fast::") for name in torch._C._dispatch_get_all_op_names()):
        raise ImportError("another library in this process has registered the operators of dip_fast already")

    wanted = building.target()
    shipped = _load_shipped(wanted)
    if shipped.module is not None:
        return shipped
    reason = shipped.reason

    key = hashlib.sha256(repr(sorted(wanted.items())).encode()).hexdigest()[:16]
    library = cache_folder() / key / "_C.so"
    try:
        if not building.read_record(library):
            library = _cached(wanted) or library
        if not building.read_record(library):
            if policy == "never":
                return Extension(reason=f"{reason}, and DIP_FAST_BUILD=never forbids making one")
            _build_once(library)
    except (building.BuildError, OSError, NotImplementedError) as error:  # the last one: a file system without locks
        return Extension(reason=f"{reason}, and making one here failed: {error}")
    return _import(library, "cached")


def _load_shipped(wanted: dict[str, str]) -> Extension:
    """Load the build that came with the package, if it is one for this Python, torch and these sources."""
    shipped = building.read_record(shipped_library())
    if not shipped:
        return Extension(reason="no build came with this package")
    differing = building.differences(shipped, wanted)
    if not differing:
        return _import(shipped_library(), "shipped")
    name = differing[0]
    reason = f"the build that came with this package was made for another {name}"
    if name in ("torch", "python"):
        reason += f", {shipped.get(name)} and not {wanted[name]}"
    return Extension(reason=reason)


def _cached(wanted: dict[str, str]) -> Path | None:
    """Find a build in the cache that can be used in place of the wanted one: one for more GPUs, for example."""
    for library in sorted(cache_folder().glob("*/_C.so")):
        record = building.read_record(library)
        if record and not building.differences(record, wanted):
            return library
    return None


def _build_once(library: Path) -> None:
    """Compile into the cache, unless another process does so first; an interrupted build leaves nothing to load."""
    folder = library.parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder.with_suffix(".lock"))  # the system releases it when its holder dies
    with _acquire(lock):
        if building.read_record(library):
            return
        for remains in [folder, *folder.parent.glob(f"{folder.name}.*.tmp")]:  # of builds that were interrupted
            shutil.rmtree(remains, ignore_errors=True)
        if building.missing() is None:
            logger.warning("dip-fast: compiling the operators for torch %s (a minute, once)", torch.__version__)
        scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))
        try:
            building.build(scratch / "build" / library.name, scratch)
            (scratch / "build").replace(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _acquire(lock: filelock.BaseFileLock) -> filelock.AcquireReturnProxy:
    try:
        return lock.acquire(blocking=False)
    except filelock.Timeout:
        logger.warning("dip-fast: waiting for another process that is compiling the operators")
        return lock.acquire()


def _import(library: Path, origin: str) -> Extension:
    loader = importlib.machinery.ExtensionFileLoader(MODULE, str(library))
    spec = importlib.util.spec_from_file_location(MODULE, library, loader=loader)
    assert spec is not None
    try:
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        if error.path is None:  # the extension itself raised it, for a wrong DIP_FAST_CPU for example
            raise
        return Extension(reason=f"{library} cannot be loaded: {error}")
    sys.modules[MODULE] = module
    return Extension(module, library, origin, record=building.read_record(library))
