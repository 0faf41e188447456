"""Batches on a cluster, without Ray: what is refused, what travels, and what the pool does; test_batch_cluster.py has Ray."""

import json
import os
import socket
import sys
from types import SimpleNamespace

import pytest

import dip_fast
from dip_fast.errors import DipFastError, UsageError
from dip_fast.runs.batch import cluster, ray_pool, shipping
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
    for path, content in ((there.picture, b"a.png"), (there.inputs["mask"], b"mask.png"), (there.reference, b"clean.png")):
        assert path.startswith(str(tmp_path / "there"))
        assert open(path, "rb").read() == content  # noqa: PTH123, SIM115
    assert shipping.contents(tmp_path / "out" / "a.png") == shipping.contents(tmp_path / "there" / "run" / "a.png")


def test_a_run_comes_back_with_the_paths_that_hold_here(item, tmp_path):
    parcel, there, paths = travelled(item, tmp_path / "there")
    folder = tmp_path / "out" / "a.png"
    record = {"files": {"picture": there.picture, "kernel": "gaussian:1.6"}, "summary": {"result": f"{there.folder}/result.png"}}
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
        slot = FakeSlot(places[0] if places else None)
        self.slots.append(slot)
        return slot

    def wait(self, calls, *, num_returns, timeout, fetch_local=True):
        return [call for call in calls if call.slot.is_ready(call)], []

    def get(self, call):
        return call.slot.answer(call)

    def kill(self, slot):
        self.killed.append(slot)


class FakeSlot:
    def __init__(self, node):
        self.node, self.item, self.events, self.error, self.version = node, None, [], None, dip_fast.__version__
        self.asked = []

    def __getattr__(self, name):
        if name not in ("hello", "submit", "events_", "stop", "kill", "close"):
            raise AttributeError(name)
        return SimpleNamespace(remote=lambda *arguments: self._call(name, arguments))

    def _call(self, name, arguments):
        self.asked.append((name, *arguments))
        if name == "submit":
            self.item = arguments[0]
        return SimpleNamespace(slot=self, name=name, __hash__=None)

    def is_ready(self, call):
        return self.node is not None and (call.name != "events" or bool(self.events) or self.error is not None)

    def answer(self, call):
        if self.error is not None and call.name != "hello":
            raise self.error
        if call.name == "hello":
            return [{"event": "hello", "node": self.node, "host": self.node, "version": self.version}]
        found, self.events = (self.events, []) if call.name == "events" else ([], self.events)
        return found
