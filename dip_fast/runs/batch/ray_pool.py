"""A pool of processes on the nodes of a Ray cluster.

Ray finds room, starts a process there and says when it is gone.  It retries nothing: the driver of a batch does, since
it knows what a picture's checkpoint holds.  What was tried of Ray first stands in ``docs/notes/ray.md``.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dip_fast
from dip_fast.errors import Argument, DipFastError
from dip_fast.pictures import write_atomically
from dip_fast.runs.batch import shipping
from dip_fast.runs.batch.cluster import THREADS, Cluster, connect, disconnect, imported, why
from dip_fast.runs.batch.node import Slot
from dip_fast.runs.batch.plan import Item
from dip_fast.runs.batch.pool import Event
from dip_fast.runs.batch.settings import Settings
from dip_fast.runs.batch.shipping import Parcel

SECONDS_OF_A_CALL = 1.0  # that waits for events: what a picture may wait for, and the calls of an idle cluster
SECONDS_BETWEEN_LOOKS = 2.0  # at the nodes
SECONDS_TO_END = 15.0
PATIENCE = 300.0  # seconds without any node that has room, until the batch ends
MAX_STARTS = 5  # in a row that fail


@dataclass
class _Host:
    """A slot on some node, from here."""

    actor: Any
    node: str | None = None  # None until it has started
    item: Item | None = None
    parcel: Parcel | None = None
    has_started: bool = False  # with the picture
    calls: set[Any] = field(default_factory=set)  # whose answers are events


class RayPool:
    """A `Pool` on a cluster.

    Parameters
    ----------
    settings : Settings
    cluster : Cluster
    out : Path
        The folder of the batch.
    workers : int or None
        Pictures at a time at most; None for as many as there is room for.

    Raises
    ------
    UsageError
        If Ray is not installed.
    DipFastError
        If the cluster cannot be reached, or has no node with room for a picture.
    """

    def __init__(self, settings: Settings, cluster: Cluster, out: Path, workers: int | None = None) -> None:
        self._ray = imported()
        self._is_ours = not self._ray.is_initialized()
        if self._is_ours:
            connect(self._ray, cluster.address)
        self._settings, self._most = settings, workers
        self._threads: int = settings.asked.get("threads", THREADS)
        self._hosts: list[_Host] = []
        self._waiting: list[Item] = []
        self._lost_on: dict[str, str | None] = {}  # the node that a picture was lost on
        self._failed_starts, self._looked, self._room, self._had_room = 0, 0.0, 0, time.monotonic()
        self._stopping, self._token = False, None if cluster.ship else out.absolute() / f".batch-{secrets.token_hex(8)}"
        self._gpus = self._gpus_of_a_picture(cluster.gpus)
        if self.free() == 0:
            self.close()
            gpus = f" and {self._gpus:g} GPUs" if self._gpus else ""
            raise DipFastError(
                f"no node of the cluster has {self._threads} CPUs{gpus} for a picture; ask for less, as with {{}}",
                Argument("threads", 1),
            )
        if self._token is not None:
            write_atomically(self._token, b"nodes that see this file share the disk\n")

    def free(self) -> int:
        """Return how many pictures it takes now."""
        in_hand = len(self._waiting) + sum(host.item is not None for host in self._hosts)
        room = self._look()
        return max(0, (room if self._most is None else min(room, self._most)) - in_hand)

    def submit(self, item: Item) -> None:
        """Keep a picture for the first slot that has started and is free."""
        self._waiting.append(item)
        if len(self._waiting) > sum(host.item is None for host in self._hosts):
            self._start()
        self._deal()

    def events(self, timeout: float) -> list[Event]:
        """Wait for events."""
        deadline, found = time.monotonic() + timeout, []
        if self._stopping:  # what has not begun
            found = [{"event": "ended", "picture": item.name, "status": "interrupted"} for item in self._waiting]
            self._waiting.clear()
        while not found and (left := deadline - time.monotonic()) > 0:
            self._deal()
            calls = {call: host for host in self._hosts for call in host.calls}
            if not calls:
                self._look()
                time.sleep(left)
                break
            self._ray.wait([*calls], num_returns=1, timeout=left, fetch_local=False)
            ready, _ = self._ray.wait([*calls], num_returns=len(calls), timeout=0, fetch_local=False)
            for call in ready:
                if calls[call] in self._hosts:
                    found += self._answer(calls[call], call)
        return found

    def stop(self) -> None:
        """Stop what is under way, each picture with a checkpoint."""
        if not self._stopping:
            self._stopping = True
            for host in self._hosts:
                host.actor.stop.remote()

    def kill(self) -> None:
        """End what is under way at once."""
        self._dismiss("kill")

    def close(self) -> None:
        """Let the slots go, and the cluster."""
        self._dismiss("close")
        if self._token is not None:
            with contextlib.suppress(OSError):
                self._token.unlink()
        if self._is_ours:
            disconnect(self._ray)

    def _dismiss(self, how: str) -> None:
        calls = [getattr(host.actor, how).remote() for host in self._hosts if host.node is not None]
        if calls:
            self._ray.wait(calls, num_returns=len(calls), timeout=SECONDS_TO_END)
        for host in [*self._hosts]:
            self._forget(host)

    def _start(self) -> None:
        """Ask for another slot; where there is no room it waits for some."""
        actor = (
            self._ray.remote(Slot)
            .options(num_cpus=self._threads, num_gpus=self._gpus, max_restarts=0, max_task_retries=0)
            .remote(self._settings.to_json(), self._threads, None if self._token is None else str(self._token))
        )
        self._hosts.append(_Host(actor, calls={actor.hello.remote()}))

    def _forget(self, host: _Host) -> None:
        self._hosts.remove(host)
        self._ray.kill(host.actor)

    def _deal(self) -> None:
        """Hand out what waits: a picture that was lost on a node, to another one if one is free."""
        for host in self._hosts:
            if self._waiting and host.node is not None and host.item is None:
                elsewhere = (item for item in self._waiting if self._lost_on.get(item.name) != host.node)
                item = next(elsewhere, self._waiting[0])
                self._waiting.remove(item)
                host.item, host.parcel, host.has_started = item, None, False
                self._ask(host, host.actor.submit.remote(item), self._next(host))

    def _next(self, host: _Host) -> Any:
        """Ask for the next events of a slot."""
        return host.actor.events.remote(SECONDS_OF_A_CALL)

    def _ask(self, host: _Host, *calls: Any) -> None:
        host.calls.update(calls)

    def _answer(self, host: _Host, call: Any) -> list[Event]:
        """Take the events that a call has brought, or what it says of the slot's end."""
        host.calls.discard(call)
        try:
            events = self._ray.get(call)
        except Exception as error:  # the slot, its node, or what it needs is gone
            return self._lose(host, why(error))
        found = [reported for event in events for reported in self._took(host, event)]
        if host in self._hosts and host.item is not None and not host.calls:
            self._ask(host, self._next(host))
        return found

    def _took(self, host: _Host, event: Event) -> list[Event]:
        """Act on an event of a slot; returns what is for the driver."""
        kind = event["event"]
        if kind == "hello":
            if event["version"] != dip_fast.__version__:
                raise DipFastError(
                    f"{event['host']} has dip-fast {event['version']}, and this machine {dip_fast.__version__}; "
                    "install the same on all nodes"
                )
            host.node = event["node"]
            return []
        if kind == "broken":
            return self._lose(host, event["error"])
        if kind == "absent":
            return self._ship(host)
        if kind == "started":
            host.has_started, self._failed_starts = True, 0
        elif kind == "ended":
            event = self._end(host, event)
        return [event]

    def _ship(self, host: _Host) -> list[Event]:
        """Send a picture to a node that does not see its files."""
        assert host.item is not None
        name = host.item.name
        try:
            host.parcel = shipping.packed(host.item)
        except OSError as error:
            host.item = None
            return [
                {"event": "ended", "picture": name, "status": "bad", "error": f"{error.filename}: {error.strerror}"}
            ]
        self._ask(host, host.actor.submit.remote(host.item, host.parcel), self._next(host))
        return [{"event": "note", "picture": name, "text": "no shared disk: its files travel, and its run comes back"}]

    def _end(self, host: _Host, event: Event) -> Event:
        """Let a slot go on to another picture, and keep the run that came with the event."""
        item, host.item = host.item, None
        run, paths = event.pop("run", None), event.pop("paths", None)
        assert item is not None
        if event["status"] == "lost":
            self._lost_on[item.name] = host.node
        if run and host.parcel is not None:
            try:
                shipping.landed(item, host.parcel, run, paths)
            except DipFastError as error:
                event |= {"status": "failed", "error": str(error)}
        host.parcel = None
        return event

    def _lose(self, host: _Host, error: str) -> list[Event]:
        """Report that a slot is gone, and with it what it had in hand."""
        self._forget(host)
        self._looked = 0.0
        if not host.has_started and not self._stopping:
            self._failed_starts += 1
            if self._failed_starts >= MAX_STARTS:
                raise DipFastError(f"no worker of the batch could start on the cluster: {error}")
        if len(self._waiting) > sum(each.item is None for each in self._hosts):
            self._start()
        if host.item is None:
            return []
        self._lost_on[host.item.name] = host.node
        status = "lost" if host.has_started else "unstarted"
        return [{"event": "ended", "picture": host.item.name, "status": status, "error": error}]

    def _look(self) -> int:
        """Count the pictures that the nodes have room for at a time.

        Raises
        ------
        DipFastError
            If the cluster is gone, or has had no room for long.
        """
        now = time.monotonic()
        if now - self._looked > SECONDS_BETWEEN_LOOKS:
            try:
                nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            except Exception as error:
                raise DipFastError(
                    f"the cluster is gone ({why(error)}); start it, and the same command goes on"
                ) from error
            self._room = sum(self._room_of(node) for node in nodes)
            self._looked = now
            if self._room:
                self._had_room = now
            elif now - self._had_room > PATIENCE:
                raise DipFastError("the cluster has no nodes left; start some, and the same command goes on")
        return self._room

    def _room_of(self, resources: dict[str, float]) -> int:
        """Count the pictures for which a node has room at a time."""
        room = int(resources.get("CPU", 0) // self._threads)
        if self._gpus:
            gpus = resources.get("GPU", 0.0)
            # A fraction is of one GPU, which Ray does not put together from two.
            room = min(room, int(gpus) * int(1 / self._gpus) if self._gpus < 1 else int(gpus // self._gpus))
        return room

    def _gpus_of_a_picture(self, asked: float | None) -> float:
        """Choose how much of a GPU a picture takes."""
        if asked is not None:
            return asked
        device = self._settings.asked.get("device", "auto")
        has_any = any(node["Resources"].get("GPU", 0) for node in self._ray.nodes() if node["Alive"])
        return 1.0 if device == "cuda" or (device == "auto" and has_any) else 0.0
