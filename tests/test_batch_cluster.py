"""A batch on a real Ray cluster of two nodes on this machine, parts of which are killed."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

pytest.importorskip("ray", reason='Ray is not installed: pip install "dip-fast[cluster]"')
pytestmark = pytest.mark.slow

PICTURES = 4
# Long enough to be killed within, and with pictures of several sizes.
FIT = (
    "--preset",
    "quick",
    "--seed",
    "0",
    "--iterations",
    "400",
    "--stop",
    "never",
    "--threads",
    "1",
    "--export",
    "none",
)


class Cluster:
    """Nodes with a CPU each, and commands that belong to them."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.environment = {**os.environ, **token, "RAY_USAGE_STATS_ENABLED": "0"}
        self.folder, self.nodes = folder, []

    def start_node(self):
        """Start a node, the first one the head; returns its process, whose children are all of it."""
        port = self.address.rpartition(":")[2]
        role = ["--address", self.address] if self.nodes else ["--head", "--port", port, "--include-dashboard", "false"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *role, "--num-cpus", "1", "--block"]
        with (self.folder / f"node{len(self.nodes)}.log").open("wb") as log:
            command += ["--object-store-memory", "100000000"]
            node = psutil.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
        self.nodes.append(node)
        for _ in range(600):
            if "To terminate the Ray runtime" in (self.folder / f"node{len(self.nodes) - 1}.log").read_text():
                return self.nodes[-1]
            time.sleep(0.1)
        raise AssertionError("the node did not start")

    def kill(self, node):
        """End a node as a power cut does."""
        for process in [*node.children(recursive=True), node]:
            with_signal(process, signal.SIGKILL)
        node.wait(30)

    def batch(self, pictures, out, *more):
        """Start a batch."""
        command = [sys.executable, "-m", "dip_fast", "batch", str(pictures), "--out", str(out), *FIT]
        command += ["--cluster", self.address, "--json-events", *more]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path)
    cluster.start_node()
    yield cluster
    for node in cluster.nodes:
        if node.is_running():
            cluster.kill(node)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        ramp = np.linspace(40, 200, 32 + 8 * number)[None, :, None] * np.ones((32, 1, 3))
        noisy = (ramp + rng.normal(0, 25, ramp.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def undisturbed(pictures, tmp_path_factory):
    """The results of the same batch on this machine, one after the other."""
    out = tmp_path_factory.mktemp("undisturbed")
    command = [sys.executable, "-m", "dip_fast", "batch", str(pictures), "--out", str(out), *FIT, "--quiet"]
    subprocess.run(command, check=True)
    return results(out)


def results(out):
    return {path.parent.name: path.read_bytes() for path in sorted(out.glob("*/result.png"))}


def with_signal(process, number):
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def until(driver, count):
    """Read events until so many pictures are in the middle of their fits; returns the first and its process."""
    fitting = {}
    for line in driver.stdout:
        event = json.loads(line)
        if event["event"] == "started":
            started = fitting.setdefault(event["picture"], event["pid"])
            assert started
        elif event["event"] == "picture":
            raise AssertionError(f"it is over: {event}")
        elif event["event"] == "progress" and len(fitting) == count and event.get("step", 0) > 10:
            return event["picture"], fitting[event["picture"]]
    raise AssertionError(driver.stderr.read())


def ended(driver):
    """Wait for the end; returns the exit code, the events and what was printed to standard error."""
    out, err = driver.communicate(timeout=280)
    return driver.returncode, [json.loads(line) for line in out.splitlines()], err


@pytest.mark.parametrize("killed", ["fit", "slot", "node"])
@pytest.mark.parametrize("more", [(), ("--ship",)], ids=["shared", "shipped"])
def test_a_batch_outlives_what_is_killed(cluster, pictures, undisturbed, tmp_path, killed, more):
    second = cluster.start_node()
    driver = cluster.batch(pictures, tmp_path / "out", *more)
    _, pid = until(driver, 2)
    if killed == "node":
        cluster.kill(second)
    else:
        process = psutil.Process(pid)
        with_signal(process if killed == "fit" else process.parent(), signal.SIGKILL)
    code, events, err = ended(driver)
    assert (code, err) == (0, "")
    assert [event["event"] for event in events].count("retry") == 1
    assert results(tmp_path / "out") == undisturbed
    record = json.loads((tmp_path / "out" / "0.png" / "run.json").read_text())
    assert record["files"]["picture"] == str(pictures / "0.png")
    assert Path(record["summary"]["result"]) == tmp_path / "out" / "0.png" / "result.png"


@pytest.mark.parametrize("more", [(), ("--ship",)], ids=["shared", "shipped"])
def test_a_batch_that_is_stopped_goes_on(cluster, pictures, undisturbed, tmp_path, more):
    driver = cluster.batch(pictures, tmp_path / "out", *more)
    name, _ = until(driver, 1)
    driver.send_signal(signal.SIGINT)
    assert ended(driver)[0] == 130
    assert json.loads((tmp_path / "out" / name / "run.json").read_text())["status"] == "interrupted"
    code, events, _ = ended(cluster.batch(pictures, tmp_path / "out", *more))
    assert code == 0
    assert any("resumed after step" in event.get("text", "") for event in events)
    assert results(tmp_path / "out") == undisturbed


def test_a_driver_that_is_killed_leaves_nothing_behind(cluster, pictures, undisturbed, tmp_path):
    driver = cluster.batch(pictures, tmp_path / "out")
    _, pid = until(driver, 1)
    fit = psutil.Process(pid)
    driver.kill()
    driver.communicate()
    fit.wait(60)
    assert ended(cluster.batch(pictures, tmp_path / "out"))[0] == 0
    assert results(tmp_path / "out") == undisturbed


def test_another_token_is_refused_in_one_line(cluster, pictures, tmp_path):
    cluster.environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    code, _, err = ended(cluster.batch(pictures, tmp_path / "out"))
    assert code == 1
    assert err.splitlines()[-1].startswith("dip-fast: --cluster")
