"""Batches on a cluster, without Ray, which test_batch_cluster.py has: refusals, what travels, the pool."""

import json
import os
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import dip_fast
from dip_fast.errors import DipFastError, UsageError
from dip_fast.runs.batch import cluster, ray_pool, shipping, worker
from dip_fast.runs.batch.cluster import Cluster
from dip_fast.runs.batch.plan import Item
from dip_fast.runs.batch.ray_pool import RayPool
from dip_fast.runs.batch.settings import Settings


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "as it was")


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_missing_ray_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r'cluster needs Ray, .*; pip install "dip-fast\[cluster\]", or use workers'):
        cluster.where("auto", None, ship=False)


def test_ray_reports_nothing_and_wants_a_token_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster.imported()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"address": None, "gpus": 0.5, "ship": False}, "gpus=0.5 is of a cluster; name one with cluster"),
        ({"address": None, "gpus": None, "ship": True}, "ship=True is of a cluster"),
        ({"address": "auto", "gpus": 1.5, "ship": False}, "gpus=1.5 must be a part of one GPU"),
        ({"address": "auto", "gpus": -1.0, "ship": False}, "gpus=-1.0 must be a part of one GPU"),
        ({"address": "auto", "gpus": float("nan"), "ship": False}, "gpus=nan must be a part of one GPU"),
        ({"address": "auto", "gpus": float("inf"), "ship": False}, "gpus=inf must be a part of one GPU"),
    ],
)
def test_what_no_cluster_can_do_is_refused(given, message):
    with pytest.raises(UsageError, match=message):
        cluster.where(**given)


def test_an_address_where_nothing_answers_is_refused_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for address in (f"127.0.0.1:{port}", "127.0.0.1", "host:port", "127.0.0.1:99999999"):
        with pytest.raises(DipFastError, match="nothing answers there") as error:
            cluster.connect(None, address)
        assert error.value.exit_code == 1


def test_a_cluster_that_has_ended_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(cluster, "_own_address", lambda: "127.0.0.1:1")
    with pytest.raises(DipFastError, match=r"cluster='auto': nothing answers there \(ConnectionRefusedError"):
        cluster.connect(None, "auto")


def test_a_worker_hears_signals_that_ray_has_blocked():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        worker.Stop()
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)


# --- what travels -----------------------------------------------------------------------------------------------------


@pytest.fixture
def item(tmp_path):
    (tmp_path / "here").mkdir()
    for name in ("a.png", "mask.png", "clean.png"):
        (tmp_path / "here" / name).write_bytes(name.encode())
    folder = tmp_path / "out" / "a.png"
    (folder / "snapshots").mkdir(parents=True)
    record = {"files": {"picture": str(tmp_path / "here" / "a.png")}, "summary": {"folder": str(folder)}}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "checkpoint.safetensors").write_bytes(b"old")
    (folder / "snapshots" / "iter_000100.png").write_bytes(b"snapshot")
    inputs = {"mask": str(tmp_path / "here" / "mask.png"), "kernel": "gaussian:1.6"}
    reference = str(tmp_path / "here" / "clean.png")
    return Item("a.png", str(tmp_path / "here" / "a.png"), str(folder), inputs, reference, 9)


def travelled(item, place):
    """Send a picture and its run somewhere, as a node has them."""
    place.mkdir()
    parcel = shipping.packed(item)
    there, paths = shipping.unpacked(item, parcel, place)
    return parcel, there, paths


def test_a_picture_arrives_with_all_that_belongs_to_it(item, tmp_path):
    _, there, _ = travelled(item, tmp_path / "there")
    assert there.name == item.name
    assert there.inputs["kernel"] == "gaussian:1.6"
    arrived = {"a.png": there.picture, "mask.png": there.inputs["mask"], "clean.png": there.reference}
    for name, path in arrived.items():
        assert path.startswith(str(tmp_path / "there"))
        assert Path(path).read_text() == name
    assert shipping.contents(tmp_path / "out" / "a.png") == shipping.contents(tmp_path / "there" / "run" / "a.png")


def test_a_run_comes_back_with_the_paths_that_hold_here(item, tmp_path):
    parcel, there, paths = travelled(item, tmp_path / "there")
    folder = tmp_path / "out" / "a.png"
    record = {
        "files": {"picture": there.picture, "kernel": "gaussian:1.6"},
        "summary": {"result": f"{there.folder}/result.png"},
    }
    back = {"run.json": json.dumps(record).encode(), "report.html": there.picture.encode(), "result.png": b"new"}
    (folder / "notes.txt").write_text("the user's")
    del parcel.run["snapshots/iter_000100.png"]
    shipping.landed(item, parcel, back, paths)
    assert json.loads((folder / "run.json").read_text()) == {
        "files": {"picture": item.picture, "kernel": "gaussian:1.6"},
        "summary": {"result": str(folder / "result.png")},
    }
    assert (folder / "report.html").read_text() == item.picture
    assert not (folder / "checkpoint.safetensors").exists()  # the run has removed it there
    assert (folder / "notes.txt").exists()


def test_a_run_comes_back_into_a_folder_that_was_not_there(item, tmp_path):
    parcel, _, paths = travelled(item, tmp_path / "there")
    new = Item("b.png", item.picture, str(tmp_path / "out" / "sub" / "b.png"), {})
    shipping.landed(new, shipping.Parcel({}, {}), {"run.json": b"{}", "snapshots/iter_1.png": b"1"}, paths)
    assert (tmp_path / "out" / "sub" / "b.png" / "snapshots" / "iter_1.png").read_bytes() == b"1"
    assert parcel.run


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "snapshots/../../x"])
def test_no_file_lands_beside_the_folder(item, name):
    with pytest.raises(DipFastError, match="belongs into no folder of a run"):
        shipping.landed(item, shipping.Parcel({}, {}), {name: b""}, {})


def test_no_file_lands_through_a_link(item, tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"the user's")
    (tmp_path / "out" / "a.png" / "result.png").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is no file as a run writes it"):
        shipping.landed(item, shipping.Parcel({}, {}), {"result.png": b"new"}, {})
    assert (tmp_path / "elsewhere").read_bytes() == b"the user's"


# --- the pool ---------------------------------------------------------------------------------------------------------


class Ray:
    """As much of Ray as the pool uses: a slot for each CPU of its nodes, and answers that a test prepares."""

    def __init__(self, **cpus):
        self.cpus, self.slots, self.killed = cpus, [], []

    def is_initialized(self):
        return True

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": float(count)}} for count in self.cpus.values()]

    def remote(self, kind):
        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=self._slot))

    def _slot(self, *arguments):
        places = [node for node, count in self.cpus.items() for _ in range(count)]
        taken = [slot.node for slot in self.slots if slot not in self.killed]
        for node in taken:
            if node in places:
                places.remove(node)
        slot = Slot(places[0] if places else None)
        self.slots.append(slot)
        return slot

    def wait(self, calls, *, num_returns, timeout, fetch_local=True):
        return [call for call in calls if call.slot.is_ready(call)], []

    def get(self, call):
        return call.slot.answer(call)

    def kill(self, slot):
        self.killed.append(slot)


class Call:
    def __init__(self, slot, name):
        self.slot, self.name = slot, name


class Slot:
    """A slot on a node, or on none yet; its events and the error that ends it are a test's to set."""

    def __init__(self, node):
        self.node, self.item, self.pending, self.error, self.version = node, None, [], None, dip_fast.__version__
        self.asked = []
        for name in ("hello", "submit", "events", "stop", "kill", "close"):
            setattr(self, name, SimpleNamespace(remote=lambda *given, name=name: self.call(name, given)))

    def call(self, name, given):
        self.asked.append(name)
        if name == "submit":
            self.item = given[0]
        return Call(self, name)

    def is_ready(self, call):
        return self.node is not None and (call.name != "events" or bool(self.pending) or self.error is not None)

    def answer(self, call):
        if self.error is not None:
            raise self.error
        if call.name == "hello":
            return [{"event": "hello", "node": self.node, "host": self.node, "version": self.version}]
        if call.name != "events":
            return []
        found, self.pending = self.pending, []
        return found

    def does(self, kind, **more):
        self.pending.append({"event": kind, "picture": self.item.name, **more})


def pool_on(monkeypatch, tmp_path, ray, **more):
    monkeypatch.setattr(ray_pool, "imported", lambda: ray)
    settings = Settings(asked={"threads": 1, "device": "cpu"})
    return RayPool(settings, Cluster("auto", ship=True), tmp_path, **more)


def items(count):
    return [Item(str(number), f"/in/{number}", f"/out/{number}", {}) for number in range(count)]


def test_pictures_are_handed_out_as_far_as_there_is_room(monkeypatch, tmp_path):
    ray = Ray(one=2, two=1)
    assert pool_on(monkeypatch, tmp_path, ray).free() == 3
    pool = pool_on(monkeypatch, tmp_path, ray, workers=2)
    for item in items(2):
        pool.submit(item)
    assert pool.free() == 0
    assert pool.events(0.01) == []
    assert [slot.item.name for slot in ray.slots] == ["0", "1"]


def test_a_picture_waits_for_a_slot_that_has_started(monkeypatch, tmp_path):
    ray = Ray(one=2)
    pool = pool_on(monkeypatch, tmp_path, ray)
    ray.cpus = {"one": 1}  # somebody else has taken the room since
    for item in items(2):
        pool.submit(item)
    pool.events(0.01)
    first, second = ray.slots
    assert (first.item.name, second.item) == ("0", None)
    first.does("ended", status="done", error=None)
    assert [event["status"] for event in pool.events(0.01)] == ["done"]
    pool.events(0.01)
    assert (first.item.name, second.item) == ("1", None)


@pytest.mark.parametrize(("has_started", "status"), [(True, "lost"), (False, "unstarted")])
def test_a_lost_node_costs_its_picture_a_try_if_that_had_begun(monkeypatch, tmp_path, has_started, status):
    ray = Ray(one=1, two=1)
    pool = pool_on(monkeypatch, tmp_path, ray)
    for item in items(2):
        pool.submit(item)
    pool.events(0.01)
    if has_started:
        ray.slots[0].does("started", host="one", pid=1)
        assert [event["event"] for event in pool.events(0.01)] == ["started"]
    ray.slots[0].error = ConnectionError("the node is gone\nand more")
    error = "ConnectionError: the node is gone"
    assert pool.events(0.01) == [{"event": "ended", "picture": "0", "status": status, "error": error}]
    assert ray.killed == ray.slots[:1]


def test_a_lost_picture_goes_to_another_node_where_there_is_one(monkeypatch, tmp_path):
    ray = Ray(one=1, two=1)
    pool = pool_on(monkeypatch, tmp_path, ray)
    lost, other = items(2)
    pool._lost_on[lost.name] = "one"
    pool.submit(lost)
    pool.submit(other)
    pool.events(0.01)
    assert {slot.node: slot.item.name for slot in ray.slots} == {"one": "1", "two": "0"}


def test_slots_that_never_start_end_the_batch(monkeypatch, tmp_path):
    ray = Ray(one=1)
    pool = pool_on(monkeypatch, tmp_path, ray)
    pool.submit(items(1)[0])

    def fail(call):
        raise ImportError("No module named 'dip_fast'")

    ray.get = fail
    with pytest.raises(DipFastError, match="could start on the cluster: ImportError: No module named 'dip_fast'"):
        pool.events(1)


def test_another_version_on_a_node_ends_the_batch(monkeypatch, tmp_path):
    ray = Ray(one=1)
    pool = pool_on(monkeypatch, tmp_path, ray)
    pool.submit(items(1)[0])
    ray.slots[0].version = "0.0.1"
    with pytest.raises(DipFastError, match=r"one has dip-fast 0\.0\.1, and this machine"):
        pool.events(0.01)


def test_a_cluster_without_room_for_a_picture_is_refused(monkeypatch, tmp_path):
    with pytest.raises(DipFastError, match="no node of the cluster has 1 CPUs for a picture; ask for less"):
        pool_on(monkeypatch, tmp_path, Ray(one=0))


def test_pictures_that_no_slot_has_begun_end_as_interrupted_when_the_pool_stops(monkeypatch, tmp_path):
    ray = Ray(one=1)
    pool = pool_on(monkeypatch, tmp_path, ray)
    ray.cpus = {}
    pool.submit(items(1)[0])
    pool.stop()
    assert pool.events(0.01) == [{"event": "ended", "picture": "0", "status": "interrupted"}]


@pytest.mark.parametrize(
    ("resources", "gpus", "room"),
    [
        ({"CPU": 8.0}, 0.0, 4),
        ({"CPU": 8.0}, 1.0, 0),
        ({"CPU": 8.0, "GPU": 3.0}, 1.0, 3),
        ({"CPU": 64.0, "GPU": 3.0}, 0.5, 6),
        ({"CPU": 64.0, "GPU": 3.0}, 0.4, 6),
        ({"CPU": 64.0, "GPU": 3.0}, 2.0, 1),
    ],
)
def test_a_node_has_room_for_as_many_pictures_as_cpus_and_gpus_allow(monkeypatch, tmp_path, resources, gpus, room):
    pool = pool_on(monkeypatch, tmp_path, Ray(one=1))
    pool._threads, pool._gpus = 2, gpus
    assert pool._room_of(resources) == room
