"""Simulate a batch on a cluster: how long, what it costs, what is the bottleneck, what breaks first.

    python benchmarks/batch_simulation.py                        # 10,000 pictures on 100 GPUs
    python benchmarks/batch_simulation.py --speed-up 30 --storage 200e6 --pixels 262144 --json

Events are what the code does: the driver reads the head of each picture and hands out the largest first; a worker
reads its picture, computes, writes a checkpoint every 30 s, and its run's folder at the end; a node that dies costs
what its fit has computed since the last checkpoint, and the time until that shows; the index of all runs comes last.
Disk, driver and its network are queues that all share.  What a picture costs was measured on two cores
(docs/notes/ray.md has the figures); how much faster a GPU is was not, and is an argument.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace

import common

MEGABYTE = 1e6
CHECKPOINT_SECONDS = 30.0  # dip_fast.runs.recorder.SECONDS_BETWEEN_CHECKPOINTS
# Measured; see the docstring.
FOLDER_BYTES, FOLDER_BYTES_A_PIXEL = 7.3e6, 3.0  # without the model file
CHECKPOINT_BYTES = 3.7e6
PICTURE_BYTES_A_PIXEL = 2.65
FOLDER_FILES, OPERATIONS_A_FILE = 9, 4  # made aside, written, flushed, renamed
# Seconds on two cores of a step that sees 512x512 pixels, and of a pixel beyond the steps (dip_fast.runs.estimate).
STEP_SECONDS, STEP_PIXELS, STEPS, SECONDS_A_PIXEL = 0.36, 512**2, 450, 36e-6
HEAD_BYTES, PLAN_SECONDS, INDEX_SECONDS = 2**20, 0.0004, 0.008  # of the driver, for a picture
START_SECONDS, START_BYTES = 8.0, 1.2e9  # a worker that imports torch, and what it reads for that


@dataclass(frozen=True)
class Cluster:
    """What the pictures run on.

    Attributes
    ----------
    gpus, gpus_a_node : int
    speed_up : float
        How many times as fast as two cores a GPU is.
    storage : float
        Bytes a second of the shared disk, for all together.
    operations : float
        File operations a second of the shared disk.
    event_seconds : float
        What the driver takes to hand out a picture, and again to take it back.
    mean_hours : float
        Between failures of a node.
    detect_seconds : float
        Until the driver knows of one.
    price : float
        Of a GPU for an hour.
    ship : bool
        Whether inputs and folders go through the driver's network instead of a shared disk, and checkpoints nowhere.
    network : float
        Bytes a second of the driver's network.
    image_on_nodes : bool
        Whether the nodes hold Python and torch themselves, or read them from the shared disk.
    model_bytes_a_pixel : float
        Of the model files of a run; 0 for ``--export none``.
    """

    gpus: int = 100
    gpus_a_node: int = 8
    speed_up: float = 100.0
    storage: float = 1e9
    operations: float = 2000.0
    event_seconds: float = 0.0026
    mean_hours: float = 6000.0
    detect_seconds: float = 30.0
    price: float = 2.5
    ship: bool = False
    network: float = 1.25e9
    image_on_nodes: bool = True
    model_bytes_a_pixel: float = 13.2


@dataclass
class Queue:
    """Something that serves one after the other, in the order of asking."""

    free_at: float = 0.0
    busy: float = 0.0

    def serve(self, now: float, seconds: float) -> float:
        """Return when it is done."""
        self.free_at = max(now, self.free_at) + seconds
        self.busy += seconds
        return self.free_at


@dataclass
class Job:
    """A picture that is to be done: its pixels, and the seconds of computing that its checkpoint holds."""

    pixels: int
    kept: float = 0.0
    since: float = 0.0  # when what is not kept was begun


@dataclass(frozen=True)
class Outcome:
    """What a simulated batch came to."""

    pictures: int
    seconds: float
    ideal_seconds: float
    cost: float
    lost_gpu_hours: float
    jobs_hit: int
    terabytes: float
    busy_seconds: dict[str, float]


Work = Generator[float, float, None]  # yields when its next part is over, and is sent that time


def compute_seconds(pixels: int, cluster: Cluster) -> float:
    """Return what a GPU takes for a picture."""
    steps = STEP_SECONDS * STEPS * min(pixels, STEP_PIXELS) / STEP_PIXELS
    return (steps + SECONDS_A_PIXEL * pixels) / cluster.speed_up


class Batch:
    """A batch that is simulated.

    Parameters
    ----------
    pixels : sequence of int
        Of each picture.
    cluster : Cluster
    seed : int
        Of the failures.
    """

    def __init__(self, pixels: Sequence[int], cluster: Cluster, seed: int = 1) -> None:
        self.cluster, self.pixels, self.chance = cluster, pixels, random.Random(seed)
        self.todo = [Job(size) for size in sorted(pixels)]  # the last one is next
        self.disk, self.driver, self.network = Queue(), Queue(), Queue()
        self.doing: dict[int, tuple[Job, Work]] = {}
        self.back_at: dict[int, float] = {}  # GPUs of nodes that are down
        self.events: list[tuple[float, int]] = []  # when something happens at a GPU: one entry each
        nodes = range(0, cluster.gpus, cluster.gpus_a_node)
        self.failures = [(self._until_failure(), first) for first in nodes]
        heapq.heapify(self.failures)
        self.lost, self.hit, self.end = 0.0, 0, 0.0

    def run(self) -> Outcome:
        """Simulate it to its end."""
        cluster = self.cluster
        heads = sum(min(HEAD_BYTES, PICTURE_BYTES_A_PIXEL * each) for each in self.pixels)
        planned = self.disk.serve(0.0, heads / cluster.storage) + PLAN_SECONDS * len(self.pixels)
        for gpu in range(cluster.gpus):
            if gpu % cluster.gpus_a_node == 0:
                read = 0.0 if cluster.image_on_nodes else START_BYTES / cluster.storage
                loaded = self.disk.serve(planned, read) + START_SECONDS
            heapq.heappush(self.events, (loaded, gpu))
        while self.events:
            now, gpu = heapq.heappop(self.events)
            self._fail_until(now)
            following = self.back_at.pop(gpu, None) or self._go_on(gpu, now)
            if following is not None:
                heapq.heappush(self.events, (max(now, following), gpu))
                self.end = max(self.end, following)
        hours = self.end * cluster.gpus / 3600
        moved = [self._folder_bytes(each) + 2 * PICTURE_BYTES_A_PIXEL * each for each in self.pixels]
        queues = {"disk": self.disk, "driver": self.driver, "network": self.network}
        return Outcome(
            pictures=len(self.pixels),
            seconds=self.end + INDEX_SECONDS * len(self.pixels),  # when the GPUs are free again
            ideal_seconds=sum(compute_seconds(each, cluster) for each in self.pixels) / cluster.gpus,
            cost=hours * cluster.price,
            lost_gpu_hours=self.lost / 3600,
            jobs_hit=self.hit,
            terabytes=sum(moved) / 1e12,
            busy_seconds={name: queue.busy for name, queue in queues.items() if queue.busy},
        )

    def _go_on(self, gpu: int, now: float) -> float | None:
        """Go on with a GPU's picture, or begin another; returns when that is over, or None if nothing is left."""
        while True:
            if gpu in self.doing:
                try:
                    return self.doing[gpu][1].send(now)
                except StopIteration:
                    del self.doing[gpu]
            if not self.todo:
                return None
            job = self.todo.pop()
            work = self._work(job)
            next(work)
            self.doing[gpu] = job, work

    def _work(self, job: Job) -> Work:
        """Do one picture, from what its checkpoint holds."""
        total = compute_seconds(job.pixels, self.cluster)
        job.since = now = yield 0.0
        now = yield self.driver.serve(now, self.cluster.event_seconds)
        now = yield self._move(now, PICTURE_BYTES_A_PIXEL * job.pixels, 1)
        done = job.kept
        while done < total:
            part = min(CHECKPOINT_SECONDS, total - done)
            now = yield now + part
            done += part
            if done < total and not self.cluster.ship:
                now = yield self._move(now, CHECKPOINT_BYTES, 2 * OPERATIONS_A_FILE)
                job.kept, job.since = done, now
        now = yield self._move(now, self._folder_bytes(job.pixels), FOLDER_FILES * OPERATIONS_A_FILE)
        yield self.driver.serve(now, self.cluster.event_seconds)

    def _folder_bytes(self, pixels: int) -> float:
        return FOLDER_BYTES + (FOLDER_BYTES_A_PIXEL + self.cluster.model_bytes_a_pixel) * pixels

    def _move(self, now: float, size: float, operations: float) -> float:
        """Move bytes between a worker and the place where they belong."""
        if self.cluster.ship:
            now = self.network.serve(now, size / self.cluster.network)
        return self.disk.serve(now, size / self.cluster.storage + operations / self.cluster.operations)

    def _fail_until(self, now: float) -> None:
        """Let the nodes fail that do so before a time: their pictures wait again."""
        while self.failures[0][0] < now:
            at, first = self.failures[0]
            heapq.heapreplace(self.failures, (at + self._until_failure(), first))
            for gpu in range(first, first + self.cluster.gpus_a_node):
                if gpu in self.doing:
                    job, _ = self.doing.pop(gpu)
                    self.lost += at - job.since
                    self.hit += 1
                    self.todo.append(job)
                    self.back_at[gpu] = at + self.cluster.detect_seconds + START_SECONDS

    def _until_failure(self) -> float:
        return self.chance.expovariate(1 / (3600 * self.cluster.mean_hours))


def breaking_points(outcome: Outcome, cluster: Cluster) -> dict[str, float]:
    """Return how many GPUs each thing that they share can serve: those whose computing takes as long as it is busy."""
    computing = outcome.ideal_seconds * cluster.gpus
    return {name: computing / seconds for name, seconds in outcome.busy_seconds.items()}


def _rows(pictures: int, cluster: Cluster, sizes: Sequence[int]) -> list[dict[str, object]]:
    """Simulate sizes of picture and ways to set the cluster up."""
    cases = {
        "as it is": cluster,
        "a third of the speed": replace(cluster, speed_up=cluster.speed_up / 3),
        "a tenth of the disk": replace(cluster, storage=cluster.storage / 10, operations=cluster.operations / 10),
        "without model files": replace(cluster, model_bytes_a_pixel=0.0),
        "no shared disk, the driver's own": replace(cluster, ship=True, storage=2e9, operations=20_000.0),
        "torch on the shared disk": replace(cluster, image_on_nodes=False),
        "each node fails once an hour": replace(cluster, mean_hours=1.0),
    }
    rows: list[dict[str, object]] = []
    for size in sizes:
        for name, case in cases.items():
            outcome = Batch([size] * pictures, case).run()
            rows.append({"pixels": size, "case": name, **asdict(outcome), "breaks": breaking_points(outcome, case)})
    return rows


def _table(rows: Sequence[dict[str, object]]) -> str:
    """Write the rows as a table; what can serve the fewest GPUs is the first to break."""
    lines = []
    for row in rows:
        breaks: dict[str, float] = row["breaks"]  # type: ignore[assignment]
        lines.append(
            [
                f"{row['pixels'] / 1e6:.2g}",  # type: ignore[operator]
                row["case"],
                f"{row['seconds'] / 60:.1f} min",  # type: ignore[operator]
                f"{row['ideal_seconds'] / row['seconds']:.0%}",  # type: ignore[operator]
                f"${row['cost']:.0f}",
                f"{row['terabytes']:.2f}",
                ", ".join(f"{name} {breaks[name]:.0f}" for name in sorted(breaks, key=lambda name: breaks[name])),
                f"{row['jobs_hit']} ({row['lost_gpu_hours']:.2f} GPU hours)",
            ]
        )
    head = ["megapixels", "cluster", "time", "computing", "cost", "TB", "GPUs that could be served", "pictures hit"]
    return common.markdown(head, lines)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--pixels", type=int, nargs="+", default=[2**18, 2**22, 15_000_000], help="of a picture")
    parser.add_argument("--gpus", type=int, default=Cluster.gpus)
    parser.add_argument("--speed-up", type=float, default=Cluster.speed_up, help="of a GPU against two cores")
    parser.add_argument("--storage", type=float, default=Cluster.storage, help="bytes a second of the shared disk")
    parser.add_argument("--event-seconds", type=float, default=Cluster.event_seconds, help="of the driver, a picture")
    parser.add_argument("--price", type=float, default=Cluster.price, help="of a GPU for an hour")
    parser.add_argument("--json", action="store_true")
    given = vars(parser.parse_args())
    pictures, pixels, as_json = (given.pop(name) for name in ("pictures", "pixels", "json"))
    rows = _rows(pictures, Cluster(**given), pixels)
    if as_json:
        common.print_json(rows)
        return
    print(_table(rows))


if __name__ == "__main__":
    main()
