"""What a batch lives through, and what warm processes save.

    python benchmarks/batch.py kills --count 200 --kills 20 --workers 4
    python benchmarks/batch.py warm --count 20

*kills*: small synthetic pictures, one in ten of them damaged, are restored twice: by one worker that nobody disturbs,
and by several that are killed by SIGKILL at random moments, the driver as well as its workers; a driver that was killed
is started again by the same command. A picture is *lost* where it is not done in the end, done *twice* where two
drivers or workers report it as done, and has *other bits* where the samples of the result are not those of the
undisturbed batch. The damaged ones must be named with the reason, and the exit code be 3.

*warm*: small pictures by one warm worker, against a process for each (`dip-fast run`), of which a few are timed.

Exits with 1 if anything is not as it should be.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

MIN_RATIO = 3.0
BARS = {
    "kills": "nothing is lost or done twice, the bits are the same, what is bad is named, exit code 3",
    "warm": f"a batch is {MIN_RATIO:g} times as fast as a run for each picture",
}
PROGRAM = [sys.executable, "-m", "dip_fast"]


def synthesise(folder: Path, count: int, *, damaged: bool) -> list[str]:
    """Write small pictures; returns the names of the damaged ones."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    bad = []
    for index in range(count):
        height, width = generator.integers(32, 65, 2)
        rows, columns = np.mgrid[:height, :width] / 64
        image = 0.5 + 0.3 * np.sin(5 * rows + index) * np.cos(6 * columns) + generator.normal(0, 0.05, rows.shape)
        path = folder / f"{index % 7}" / f"{index:03}.png"  # folders of folders
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((image.clip(0, 1) * 255).astype(np.uint8)).save(path)
        if damaged and index % 10 == 3:
            path.write_bytes(path.read_bytes()[:60])
            bad.append(path.relative_to(folder).as_posix())
    return bad


def command(arguments: argparse.Namespace, pictures: Path, out: Path, workers: int) -> list[str]:
    """Write the command of a batch."""
    options = ["--recursive", "--workers", str(workers), "--threads", "1", "--retries", "9", "--json-events"]
    settings = ["--preset", arguments.preset, "--iterations", str(arguments.iterations), "--snapshot-every", "0"]
    return [*PROGRAM, "batch", str(pictures), "--out", str(out), *options, *settings]


class Drivers:
    """Starts a driver, and again where it is gone.

    Parameters
    ----------
    line : list of str
        The command.
    log : Path
        Where its events go.
    """

    def __init__(self, line: list[str], log: Path) -> None:
        self.line, self.log = line, log
        self.starts = 0
        self.done: Counter[str] = Counter()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the command."""
        self.starts += 1
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self.line, stdout=log, stderr=subprocess.DEVNULL)

    def end(self) -> int:
        """Wait for its end, and read what it has reported."""
        assert self.process is not None
        code = self.process.wait()
        for line in self.log.read_bytes().splitlines(keepends=True):
            event = json.loads(line) if line.endswith(b"\n") else {}
            if event.get("event") == "ended" and event["status"] == "done":
                self.done[event["picture"]] += 1
        return code


def killed(drivers: Drivers, kills: int, seconds: float, generator: random.Random) -> int:
    """Kill at random moments, spread over about so many seconds; returns the last exit code."""
    drivers.start()
    made: Counter[str] = Counter()
    while sum(made.values()) < kills:
        assert drivers.process is not None
        try:
            drivers.process.wait(generator.uniform(0, 1.5 * seconds / kills))
            break  # all was done sooner than it took without kills
        except subprocess.TimeoutExpired:
            pass
        children = psutil.Process(drivers.process.pid).children()
        is_driver = generator.random() < 0.3 or not children
        victim = drivers.process.pid if is_driver else generator.choice(children).pid
        os.kill(victim, signal.SIGKILL)
        made["driver" if is_driver else "worker"] += 1
        if is_driver:
            drivers.end()
            drivers.start()
    print(f"kills: {dict(made)}", flush=True)
    return drivers.end()


def rows(out: Path) -> dict[str, dict[str, str]]:
    """Read a manifest."""
    with (out / "manifest.csv").open(newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def kills(arguments: argparse.Namespace, folder: Path) -> bool:
    """Compare a batch that was killed often with one that was not."""
    bad = synthesise(folder / "in", arguments.count, damaged=True)
    quiet = Drivers(command(arguments, folder / "in", folder / "whole", 1), folder / "whole.jsonl")
    started = time.monotonic()
    quiet.start()
    code = quiet.end()
    seconds = time.monotonic() - started
    print(f"undisturbed: {seconds:.0f} s, exit code {code}", flush=True)
    drivers = Drivers(command(arguments, folder / "in", folder / "killed", arguments.workers), folder / "killed.jsonl")
    last = killed(drivers, arguments.kills, seconds, random.Random(arguments.seed))
    expected, found = rows(folder / "whole"), rows(folder / "killed")
    good = [name for name in expected if name not in bad]
    lost = [name for name in good if found.get(name, {}).get("status") != "done"]
    twice = [name for name, count in drivers.done.items() if count > 1]
    other = [name for name in good if found[name].get("out_sha256") != expected[name]["out_sha256"]]
    unnamed = [name for name in bad if found[name]["status"] != "bad" or not found[name]["error"]]
    tried_again = [name for name in bad if found[name]["attempts"] != "1"]
    print(
        f"{arguments.count} pictures, {drivers.starts} drivers, exit code {last}: {len(lost)} lost, {len(twice)} done "
        f"twice, {len(other)} with other bits; {len(bad)} damaged, {len(unnamed)} of them without a reason, "
        f"{len(tried_again)} tried again",
        flush=True,
    )
    for names in (lost, twice, other, unnamed, tried_again):
        for name in names:
            print(f"  {name}: {found.get(name)}")
    return (code, last) == (3, 3) and not (lost or twice or other or unnamed or tried_again)


def warm(arguments: argparse.Namespace, folder: Path) -> bool:
    """Compare one warm worker with a process for each picture."""
    synthesise(folder / "in", arguments.count, damaged=False)
    pictures = sorted((folder / "in").rglob("*.png"))
    settings = ["--preset", arguments.preset, "--iterations", str(arguments.iterations)]
    each = []
    work = processor()
    for index, picture in enumerate(pictures[: arguments.runs]):
        started = time.monotonic()
        subprocess.run(
            [*PROGRAM, "run", str(picture), *settings, "--quiet", "--out", str(folder / f"run{index}")], check=True
        )
        each.append(time.monotonic() - started)
    work_each = (processor() - work) / len(each)
    started, work = time.monotonic(), processor()
    line = [*PROGRAM, "batch", str(folder / "in"), "--recursive", *settings, "--quiet", "--out", str(folder / "out")]
    subprocess.run(line, check=True)
    together = time.monotonic() - started
    alone = float(np.mean(each)) * len(pictures)
    ratio = alone / together
    of_work = work_each * len(pictures) / (processor() - work)
    print(
        f"{len(pictures)} pictures, preset {arguments.preset}, {arguments.iterations} iterations: {together:.1f} s in "
        f"a batch, {alone:.1f} s by run ({len(each)} timed); ratio {ratio:.2f}, of the "
        f"processor's time {of_work:.2f}",
        flush=True,
    )
    return ratio >= MIN_RATIO


def processor() -> float:
    """Return the seconds that processes have computed which have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Run one of the two, or list them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", choices=BARS)
    parser.add_argument("--list", action="store_true", help="what there is to do, and what has to come of it")
    parser.add_argument("--count", type=int, default=20, help="pictures")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5, help="how many runs are timed for warm")
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(f"{name}: {bar}" for name, bar in BARS.items()))
        return
    if arguments.what is None:
        parser.error("name one of " + ", ".join(BARS))
    with tempfile.TemporaryDirectory(prefix="dip-fast-") as folder:
        is_good = {"kills": kills, "warm": warm}[arguments.what](arguments, Path(folder))
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
