"""Finds or builds the compiled operators, and loads them.

A build shipped in the wheel is loaded if it was made from these sources for this version of torch.  Otherwise one is
compiled, once, into ``$XDG_CACHE_HOME/dip-fast`` (``~/.cache/dip-fast``), in a folder named by a digest of
everything that it depends on; processes that need the same build at the same time wait for the one that compiles it.
Where that fails, a warning names the reason and the operators run through `dip_fast.ops.reference`.

The environment variable ``DIP_FAST_BUILD`` decides whether to compile: ``auto`` (the default) or ``never``, which only
loads a build that exists already.  ``CXX`` and ``MAX_JOBS`` name the compiler and limit its processes; ``CUDA_HOME``
and ``TORCH_CUDA_ARCH_LIST`` choose the toolkit for the CUDA kernels and the GPUs that they are compiled for.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import filelock
import torch

from dip_fast.errors import UsageError
from dip_fast.ops import building
from dip_fast.ops.interface import Interface

logger = logging.getLogger("dip_fast")


@dataclass(frozen=True)
class Extension:
    """The build that `load` loaded, or the reason why there is none.

    Attributes
    ----------
    interface : Interface or None
        The functions of the compiled operators' library; None if the reference runs in their place.
    library : Path or None
        The file that was loaded.
    origin : {"shipped", "cached", "none"}
        Whether the build came with the package or was compiled on this machine.
    reason : str
        Why no build is loaded; empty if one is.
    record : dict
        What the build was made from and for: the entries of `building.target`, and the compiler.
    """

    interface: Interface | None = None
    library: Path | None = None
    origin: str = "none"
    reason: str = ""
    record: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Describe in one line which build is used."""
        if self.interface is None:
            return f"operators in plain PyTorch: {self.reason}"
        origin = {"shipped": "that came with the package", "cached": "compiled on this machine"}[self.origin]
        return f"operators {origin}, for torch {self.record['torch']}, kernels {self.interface.cpu_level()}"


_loaded: Extension | None = None
_loading = threading.Lock()


def load() -> Interface | None:
    """Load the compiled operators, at most once in a process.

    Returns
    -------
    Interface or None
        The same object at every call; None if there is no build, in which case the first call warns.

    Raises
    ------
    UsageError
        If ``DIP_FAST_BUILD`` is neither ``auto`` nor ``never``, or ``DIP_FAST_CPU`` names no kernels for this CPU.
    ImportError
        If other code in this process has registered the operators.
    """
    global _loaded
    with _loading:  # threads that arrive meanwhile wait, and get the same object
        if _loaded is None:
            _loaded = _load()
            logger.info("dip-fast: %s", _loaded)
            if _loaded.interface is None:
                warnings.warn(
                    f"dip-fast runs its operators through plain PyTorch, which is slower: {_loaded.reason}",
                    RuntimeWarning,
                    stacklevel=2,
                )
    return _loaded.interface


def info() -> Extension:
    """Return which build is loaded, or why none is; this loads it first."""
    load()
    assert _loaded is not None
    return _loaded


def shipped_library() -> Path:
    """Return the path of the build for this version of torch, if one comes with the package."""
    return Path(__file__).parents[1] / building.shipped_name(torch.__version__)


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
    if shipped.interface is not None:
        return shipped
    reason = shipped.reason

    key = hashlib.sha256(repr(sorted(wanted.items())).encode()).hexdigest()[:16]
    library = cache_folder() / key / "_C.so"
    failure = ""
    try:
        if not building.read_record(library):
            library = _cached(wanted) or library
        if not building.read_record(library):
            if policy == "never":
                failure = "DIP_FAST_BUILD=never forbids making one"
            else:
                _build_once(library)
    except (building.BuildError, OSError, NotImplementedError) as error:  # the last one: a file system without locks
        failure = f"making one here failed: {error}"
    if not failure:
        return _open(library, "cached", building.read_record(library))
    shipped = _load_shipped(wanted, without_cuda=failure)
    return Extension(reason=f"{reason}, and {failure}") if shipped.interface is None else shipped


def _load_shipped(wanted: dict[str, str], without_cuda: str = "") -> Extension:
    """Load the build that came with the package, if there is one for this torch and these sources.

    ``without_cuda`` is the reason why no other build can be made: a build for the CPU alone is then better than none.
    """
    library = shipped_library()
    record = building.read_record(library)
    if not record:
        versions = sorted(path.stem.partition("-")[2] for path in library.parent.glob(building.shipped_name("*")))
        if not versions:
            return Extension(reason="no build came with this package")
        made_for = ", ".join(versions)
        reason = f"the builds that came with this package are for torch {made_for}, not {wanted['torch']}"
        return Extension(reason=reason)
    differing = building.differences(record, wanted)
    if differing and not (without_cuda and differing == ["cuda"]):
        return Extension(reason=f"the build that came with this package was made for another {differing[0]}")
    lacking = without_cuda or building.lacks_cuda(wanted)
    if building.lacks_cuda(record) and lacking:  # what holds here, and not where the wheel was made
        record["cuda"] = f"none: {lacking}"
    return _open(library, "shipped", record)


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


def _open(library: Path, origin: str, record: dict[str, str]) -> Extension:
    try:
        interface = Interface(library)
    except OSError as error:
        return Extension(reason=f"{library} cannot be loaded: {error}")
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Extension(interface, library, origin, record=record)
