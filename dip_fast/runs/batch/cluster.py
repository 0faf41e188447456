"""A Ray cluster: where it is, and how it is reached."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dip_fast.errors import Argument, DipFastError, UsageError
from dip_fast.pictures.files import one_line

THREADS = 2  # of a picture, where none are asked for: what docs/presets.md was measured with
SECONDS_TO_CONNECT = 10.0  # Ray itself waits for more than a minute


@dataclass(frozen=True)
class Cluster:
    """Where to restore pictures.

    Attributes
    ----------
    address : str
        ``auto`` for the cluster that this machine belongs to, or the host and port of its head.
    gpus : float or None
        GPUs of a picture; None for one where a node has any and the device is not the CPU.
    ship : bool
        Whether inputs and results travel even where a disk is shared.
    """

    address: str
    gpus: float | None = None
    ship: bool = False


def where(address: str | None, gpus: float | None, *, ship: bool) -> Cluster | None:
    """Sort out where the pictures are restored.

    Raises
    ------
    UsageError
        For what only a cluster has, where there is none, and for a cluster without Ray here.
    """
    if address is None:
        for argument, is_given in ((Argument("gpus", gpus), gpus is not None), (Argument("ship", True), ship)):
            if is_given:
                raise UsageError("{} is of a cluster; name one with {}", argument, Argument("cluster"))
        return None
    if gpus is not None and not (0 < gpus < 1 or (gpus >= 0 and gpus % 1 == 0)):
        raise UsageError("{} must be a part of one GPU, such as 0.5, or a whole number", Argument("gpus", gpus))
    imported()
    return Cluster(address, gpus, ship)


def workers_on(cluster: Cluster | None, asked: int | None) -> int | None:
    """Choose how many pictures are restored at a time; None for as many as a cluster has room for."""
    return 1 if asked is None and cluster is None else asked


def imported() -> Any:
    """Import Ray, with the settings that it reads then, where the user has none of his own.

    Raises
    ------
    UsageError
        If it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            '{} needs Ray, which is not installed; pip install "dip-fast[cluster]", or use {} on one machine',
            *(Argument("cluster"), Argument("workers")),
        ) from error
    return ray


def connect(ray: Any, address: str) -> None:
    """Connect to a cluster that runs.

    Raises
    ------
    DipFastError
        If it cannot be reached.
    """
    try:
        found = _own_address() if address == "auto" else address
        host, _, port = found.rpartition(":")
        socket.create_connection((host, int(port)), SECONDS_TO_CONNECT).close()
    except (OSError, ValueError, OverflowError) as error:  # Ray would wait for minutes
        raise DipFastError(
            "{}: nothing answers there ({}); start a cluster with ray start --head, and name it as host:port, or as "
            "auto on one of its nodes",
            *(Argument("cluster", address), why(error)),
        ) from error
    _set_printing(ray, False)
    with _signals_kept():
        try:
            ray.init(address=found, log_to_driver=False, logging_level="error", configure_logging=False)
        except (Exception, SystemExit) as error:
            raise DipFastError(
                "{}: {}; start Ray here, as with ray start --address=HOST:PORT, and keep the cluster's token in "
                "~/.ray/auth_token",
                *(Argument("cluster", address), why(error)),
            ) from error


def _own_address() -> str:
    """Find the cluster that this machine is part of, as Ray does; what it finds may have ended.

    Raises
    ------
    ConnectionError
        If there is none.
    """
    from ray._private import services

    return str(services.canonicalize_bootstrap_address("auto"))


def disconnect(ray: Any) -> None:
    """Leave the cluster."""
    ray.shutdown()
    _set_printing(ray, True)


def _set_printing(ray: Any, is_wanted: bool) -> None:
    """Choose whether Ray prints what it says of nodes and workers, whatever its log level, on standard output.

    It has no option for that; the switch is its debugger's.
    """
    ray._private.worker._worker_logs_enabled = is_wanted


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep the handlers of signals, of which Ray takes SIGTERM."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    with contextlib.suppress(ValueError):  # in another thread, where Ray takes none either
        for number, handler in before.items():
            signal.signal(number, handler)


def why(error: BaseException) -> str:
    """Describe in one line what Ray says in many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(f"{type(error).__name__}: {lines[0] if lines else ''}")[:300]
