"""What Ray costs a batch, and what a batch costs that loses a node: two nodes on this machine.

    python benchmarks/batch_cluster.py                       # needs pip install "dip-fast[cluster]"

*Overhead.* Fits of two steps, one after the other on one warm slot of the cluster, and in one process of the local
pool: the difference is what Ray adds to a picture, given as a part of a fit of a minute.

*Kill.* A batch on both nodes, one of which is killed while both restore a picture.  Exits with 1 if it is not done, or
a result is another one than that of the local pool.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
from PIL import Image

import dip_fast

FIT_SECONDS = 60.0
OPTIONS: dict[str, Any] = {"preset": "quick", "seed": 0, "threads": 1, "export": ()}


def write_pictures(folder: Path, count: int) -> None:
    """Write small noisy pictures."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        noisy = rng.normal(128, 25, (32, 32, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number}.png")


def hashes(out: Path) -> dict[str, str]:
    """Hash the results of a batch."""
    return {path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("*/result.*"))}


def seconds_a_picture(pictures: Path, out: Path, **more: Any) -> float:
    """Time the pictures behind the first, which a worker starts with."""
    ends: list[float] = []

    def take(event: dict[str, Any]) -> None:
        if event["event"] == "ended":
            ends.append(time.perf_counter())

    dip_fast.batch(pictures, out, workers=1, iterations=2, on_event=take, **OPTIONS, **more)
    return (ends[-1] - ends[0]) / (len(ends) - 1)


class Killer:
    """Kills a node once pictures are under way on both, as ``on_event`` of a batch."""

    def __init__(self, nodes: Any, node: Any) -> None:
        self.nodes, self.node, self.fitting, self.retries = nodes, node, set[str](), 0
        self.is_done = False

    def __call__(self, event: dict[str, Any]) -> None:
        """Follow an event."""
        if event["event"] == "progress":
            self.fitting.add(event["picture"])
        elif event["event"] == "retry":
            self.retries += 1
        if len(self.fitting) >= 2 and not self.is_done:
            self.is_done = True
            self.nodes.remove_node(self.node, allow_graceful=False)


def measure(place: Path, count: int, iterations: int) -> dict[str, Any]:
    """Measure both in an empty folder."""
    from dip_fast.runs.batch.cluster import imported

    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # of this cluster alone
    imported()
    from ray.cluster_utils import Cluster

    pictures = place / "pictures"
    write_pictures(pictures, count)
    options = {"num_cpus": 1, "object_store_memory": 10**8, "include_dashboard": False}
    begin = time.perf_counter()
    nodes = Cluster(initialize_head=True, head_node_args=options)
    second = nodes.add_node(num_cpus=1, object_store_memory=10**8)
    started = time.perf_counter() - begin
    try:
        here = seconds_a_picture(pictures, place / "here")
        there = seconds_a_picture(pictures, place / "there", cluster=nodes.address)
        dip_fast.batch(pictures, place / "undisturbed", iterations=iterations, **OPTIONS)
        killer = Killer(nodes, second)
        begin = time.perf_counter()
        rows = dip_fast.batch(
            pictures, place / "killed", iterations=iterations, on_event=killer, cluster=nodes.address, **OPTIONS
        )
        seconds = time.perf_counter() - begin
    finally:
        nodes.shutdown()
    return {
        "start_seconds": started,
        "local_seconds": here,
        "cluster_seconds": there,
        "overhead": (there - here) / FIT_SECONDS,
        "killed": killer.is_done,
        "retries": killer.retries,
        "done": all(row["status"] == "done" for row in rows),
        "seconds": seconds,
        "same": hashes(place / "killed") == hashes(place / "undisturbed"),
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--iterations", type=int, default=150, help="of the batch that loses a node")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dip-fast-") as place:
        found = measure(Path(place), args.pictures, args.iterations)
    if args.json:
        common.print_json(found)
    else:
        print(f"two nodes started in {found['start_seconds']:.1f} s")
        print(f"a picture: {found['local_seconds']:.3f} s in the local pool, {found['cluster_seconds']:.3f} s on Ray")
        print(f"what Ray adds to a fit of {FIT_SECONDS:.0f} s: {found['overhead']:.2%}")
        killed, done, same = ("yes" if found[name] else "no" for name in ("killed", "done", "same"))
        print(f"a node killed: {killed}; tried again: {found['retries']}")
        print(f"all done: {done}, in {found['seconds']:.0f} s; the same bytes: {same}")
    sys.exit(not (found["killed"] and found["done"] and found["same"]))


if __name__ == "__main__":
    main()
