"""Damaged files against dip-fast: each gives a picture, or one line and exit code 2.

    python benchmarks/reliability.py pictures --count 10000
    python benchmarks/reliability.py models --count 2000

A worker process takes one file after the other.  A fault is a worker that dies, one that takes more than ten seconds or
two gigabytes, an error that is not ours, an exit code that is not documented, and anything on standard error beside the
one line of an error.  Files with faults are kept.  The exit code is 1 if there were any.

Pictures are read and written again, and of every --fit-every-th that could be read a run is made, of one step, with a
tiny network.  Models are replayed and exported.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import common
import mutations

SECONDS = 10
MEGABYTES = 2000


# --- the worker: one file in, what came of it out -----------------------------------------------------------------


def read_and_write(path: Path, longer: bool) -> str:
    """Read a picture as a run does, write it as a result, and perhaps make a run of it."""
    from dip_fast.errors import UsageError
    from dip_fast.pictures import encode_image, read_picture

    try:
        picture = read_picture(path, keep_metadata=True)
    except UsageError as error:
        return "refused" if "\n" not in str(error) else f"fault: several lines: {error}"
    again = encode_image(picture.image, picture.kind, picture.extras)
    if read_picture(again).kind.size != picture.kind.size:
        return "fault: written in another size"
    if not longer or picture.image.size > 2**16:
        return "picture"
    options = ("--preset", "tiny", "--threads", "1", "--quiet")
    return f"picture, {command((0, 1), 'run', path, *options, '-o', path.with_name('run'))}"


def replay_and_export(path: Path, longer: bool) -> str:
    """Replay a model file, and write its network in another format; `longer` chooses the one that takes longer."""
    drawn = command((0, 2), "replay", path, "-o", path.with_name("drawn.tif"))
    format_ = "torchscript" if longer else "onnx"
    out = path.with_name("out.pt" if longer else "out.onnx")
    exported = command((0, 1, 2), "export", path, "--format", format_, "-o", out)
    return f"replay {drawn}, export {exported}"


def command(allowed: tuple[int, ...], *arguments: object) -> str:
    """Run the command line in this process, and describe its end; what it prints is checked by the parent."""
    from dip_fast.cli import main

    try:
        main([*map(str, arguments), "--overwrite"])
    except SystemExit as ended:
        code = ended.code
    sys.stderr.flush()
    return f"exit {code}" if code in allowed else f"fault: exit {code}"


WORK: dict[str, Callable[[Path, bool], str]] = {"pictures": read_and_write, "models": replay_and_export}


def serve(kind: str) -> None:
    """Take files from standard input, one a line, and answer with JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    import torch

    from dip_fast.presets import PRESETS

    torch.set_num_threads(1)
    recipe = PRESETS["fast"].recipe
    assert recipe.masking is not None
    recipe = replace(
        recipe,
        network_options=recipe.network_options | {"down": 8, "up": 8, "skip": 2, "scales": 2},
        options=replace(recipe.options, iterations=1, consolidation=4),
        masking=replace(recipe.masking, passes=1),
    )
    PRESETS.register("tiny", replace(PRESETS["fast"], recipe=recipe))
    for line in sys.stdin:
        task = json.loads(line)
        try:
            outcome = WORK[kind](Path(task["path"]), task["longer"])
        except Exception as error:
            outcome = f"fault: {type(error).__name__}: {error}"
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"outcome": outcome, "megabytes": kilobytes / 1000}), file=answers, flush=True)


# --- the parent ---------------------------------------------------------------------------------------------------


class Worker:
    """A process that takes files, and is replaced when it has died."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.printed = (folder / "stderr").open("a+b")  # so that each line is written at its end
        self.process: subprocess.Popen[str] | None = None

    def take(self, data: bytes, longer: bool) -> tuple[str, float]:
        """Hand it a file; return what came of it and its memory at the most so far, in megabytes."""
        path = self.folder / "file"
        path.write_bytes(data)
        self.printed.truncate(0)
        seconds = SECONDS
        if self.process is None:
            self.process = self._start()
            seconds += 60  # for what it imports
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"path": str(path), "longer": longer}) + "\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], seconds)[0]:
            self.close()
            return f"fault: more than {seconds} s", 0.0
        line = process.stdout.readline()
        if not line:
            self.close()
            return f"fault: it died with {process.returncode}", 0.0
        answer = json.loads(line)
        return self._judge(answer["outcome"]), answer["megabytes"]

    def _start(self) -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONWARNINGS": "always", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, self.kind, "--worker"]
        return subprocess.Popen(command, stdin=-1, stdout=-1, stderr=self.printed, text=True, env=environment)

    def _judge(self, outcome: str) -> str:
        """Look at what was printed: one line for each command that failed, and no other."""
        self.printed.seek(0)
        lines = self.printed.read().decode(errors="replace").splitlines()
        strange = [line for line in lines if not line.startswith("dip-fast: ") or "unexpected" in line]
        if "picture" in outcome:  # of a run that failed, the result is there all the same
            strange += [line for line in lines if "the result is in" not in line]
        failed = outcome.count("exit ") - outcome.count("exit 0")
        if strange or len(lines) != failed:
            return f"fault: {outcome}, and on standard error: {' | '.join(lines)}"
        return outcome

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.process = None


def main() -> int:
    """Parse the command line, and give one file after the other to the worker."""
    parser = common.parser(__doc__)
    parser.add_argument("kind", choices=[*WORK])
    parser.add_argument("--count", type=int, default=1000, help="files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fit-every", type=int, default=20, metavar="N", help="of which more is tried")
    parser.add_argument("--keep", type=Path, default=Path("faults"), help="folder for files with faults")
    parser.add_argument("--worker", action="store_true", help="what this program starts")
    options = parser.parse_args()
    if options.worker:
        serve(options.kind)
        return 0
    rng = random.Random(options.seed)
    files = mutations.pictures(rng) if options.kind == "pictures" else mutations.models(rng, mutations.whole_model())
    outcomes: Counter[str] = Counter()
    slowest = largest = 0.0
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Worker(options.kind, Path(folder))) as worker:
        for index, (name, data) in enumerate(islice(files, options.count)):
            started = time.perf_counter()
            outcome, megabytes = worker.take(data, index % options.fit_every == 0)
            slowest, largest = max(slowest, time.perf_counter() - started), max(largest, megabytes)
            if megabytes > MEGABYTES:
                outcome = f"fault: {outcome}, with {megabytes:.0f} MB"
                worker.close()
            if "fault" in outcome:
                options.keep.mkdir(exist_ok=True)
                kept = options.keep / f"{options.kind}-{options.seed}-{index}"
                kept.write_bytes(data)
                print(f"{kept} ({name}): {outcome}", flush=True)
                outcome = "fault"
            outcomes[outcome] += 1
    for outcome, number in outcomes.most_common():
        print(f"{number} {outcome}")
    print(
        f"{outcomes.total()} {options.kind}, seed {options.seed}: {outcomes['fault']} faults; the longest took "
        f"{slowest:.1f} s, the largest worker {largest:.0f} MB"
    )
    return 1 if outcomes["fault"] else 0


if __name__ == "__main__":
    sys.exit(main())
