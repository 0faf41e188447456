"""What runs on a node of a cluster for each picture at a time: a process of the local pool, and what it reports."""

from __future__ import annotations

import platform
import shutil
import tempfile
from pathlib import Path

import dip_fast
from dip_fast.errors import DipFastError
from dip_fast.pictures.files import is_there
from dip_fast.runs.batch import shipping
from dip_fast.runs.batch.local import LocalPool
from dip_fast.runs.batch.plan import Item
from dip_fast.runs.batch.pool import Event
from dip_fast.runs.batch.settings import Settings
from dip_fast.runs.batch.shipping import Parcel


class Slot:
    """Room for one picture on a node; Ray makes one an actor, whose process holds no torch.

    The fit is in a child of that, as on one machine: a crash of it is not one of the actor, and the end of the actor,
    whatever has brought it, is the end of the child's input, at which it writes its checkpoint.

    Parameters
    ----------
    settings : str
        As `Settings.to_json` writes them.
    threads : int
    token : str or None
        A file that is here if the disk is shared; None where nothing is to be looked for.
    """

    def __init__(self, settings: str, threads: int, token: str | None) -> None:
        self._pool = LocalPool(Settings.from_json(settings), 1, threads)
        self._is_near = token is not None and is_there(Path(token))
        self._place: Path | None = None  # of what was shipped
        self._paths: dict[str, str] = {}
        self._item: Item | None = None

    def hello(self) -> list[Event]:
        """Describe the node."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        return [{"event": "hello", "node": node, "host": platform.node(), "version": dip_fast.__version__}]

    def submit(self, item: Item, parcel: Parcel | None = None) -> list[Event]:
        """Begin with a picture, or ask for what it needs."""
        if parcel is None:
            if not self._is_near or not all(is_there(Path(path)) for path in shipping.named(item)):
                return [{"event": "absent", "picture": item.name}]
        else:
            self._place = Path(tempfile.mkdtemp(prefix="dip-fast-batch-"))
            item, self._paths = shipping.unpacked(item, parcel, self._place)
        self._item = item
        self._pool.submit(item)
        return []

    def events(self, timeout: float) -> list[Event]:
        """Wait for events; the last one of a picture that was shipped brings its run."""
        try:
            found = self._pool.events(timeout)
        except DipFastError as error:
            return [{"event": "broken", "error": str(error)}]
        for event in found:
            if event["event"] == "ended" and self._place is not None:
                assert self._item is not None
                event |= {"run": shipping.contents(Path(self._item.folder)), "paths": self._paths}
                self._clear()
        return found

    def stop(self) -> None:
        """Stop what is under way, as `LocalPool.stop`."""
        self._pool.stop()

    def kill(self) -> None:
        """End what is under way at once."""
        self._pool.kill()
        self._clear()

    def close(self) -> None:
        """Let the process go."""
        self._pool.close()
        self._clear()

    def _clear(self) -> None:
        if self._place is not None:
            shutil.rmtree(self._place, ignore_errors=True)
            self._place = None
