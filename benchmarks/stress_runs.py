"""What a run's folder lives through: processes killed at any moment, and folders in which files were changed.

    python benchmarks/stress_runs.py --kills 500 --mutations 1000

*Kills.* A run is killed by SIGKILL, in turn at one of its file operations (each opening for writing, renaming,
deleting, making of a folder) and at a random moment. It is a new run, one that is resumed, one that is extended, or
one that replaces another. Then the user goes on: `--resume`, or the same command where that has nothing to resume, or
`--overwrite` where the other run is still there. A run is *lost* where all of them are refused, *stuck* where one
takes a minute, and has *other bits* where result, history, model or weights are not those of a run that was never
killed.

*Changes.* One file of a folder is damaged, cut, removed, or replaced by a folder, a link or a pipe; or one value of
the record, or of the checkpoint with a hash that fits, is another one. The command then has to end with 0 or 2, in
one line where it refuses, and without a change to what lies outside of the folder; an interrupted run that is resumed
from what was changed has the bits of the whole one.

A process is a fork of this one, with a network of milliseconds a step.  Exits with 1 if anything failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import common
import damage
import numpy as np
import torch
from PIL import Image

from dip_fast import PRESETS
from dip_fast.cli import main as dip_fast
from dip_fast.runs import checkpoints, recorder

OPERATIONS = {"os.rename", "os.remove", "os.mkdir"}  # with the openings for writing
SECONDS = 60.0  # after which a process hangs
STEPS, FIRST_STEPS = 60, 20
STARTS = ("new", "resume", "extend", "overwrite")
COMMAND = ("run", "noisy.png", "--preset", "quick", "--threads", "1", "--quiet", "--snapshot-every", "7", "-o")
WHOLE = ("--seed", "0", "--iterations", str(STEPS))


class Ended(NamedTuple):
    """How a process ended: its exit code, or None where it was killed, and what it printed to standard error."""

    code: int | None
    err: str


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--mutations", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells have ignored in the background
    recorder.SECONDS_BETWEEN_CHECKPOINTS = 0.1  # a hundred file operations a run: 500 kills come to every other
    small()
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        prepare()
        killed = kills(options.kills, random.Random(options.seed))
        mutated = mutations(options.mutations, random.Random(options.seed + 1))
    print("| what was done | how often | outcome |\n|---|---|---|")
    print(f"| runs killed | {options.kills} | {outcome(killed, 'lost', 'stuck', 'with other bits')} |")
    print(f"| run folders changed | {options.mutations} | {outcome(mutated, 'failed', 'stuck', 'with other bits')} |")
    sys.exit(any(count for name, count in (killed + mutated).items() if name not in ("went on", "refused")))


def outcome(counts: Counter[str], *faults: str) -> str:
    """Describe counts, with those of faults that there were none of."""
    shown = {name: counts[name] for name in ("went on", "refused") if counts[name]} | {f: counts[f] for f in faults}
    return ", ".join(f"{count} {name}" for name, count in shown.items())


def small() -> None:
    """Make the network of the preset quick small."""
    recipe = PRESETS["quick"].recipe
    recipe = replace(
        recipe,
        network_options=recipe.network_options | {"down": 8, "up": 8, "skip": 2, "scales": 2},
        options=replace(recipe.options, consolidation=8),
        in_channels=4,
    )
    PRESETS._entries["quick"] = replace(PRESETS["quick"], recipe=recipe)


def prepare() -> None:
    """Make the picture and the folders that runs start from."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 18), np.uint8)).save("noisy.png")
    Path("album").mkdir()
    Path("album/iter_000007.png").write_text("mine")
    with contextlib.suppress(SystemExit):  # in this process, whose forks then have nothing left to import
        dip_fast([*COMMAND, "whole", *WHOLE])
    for folder, *options in (
        ("extend", "--iterations", str(FIRST_STEPS)),
        ("overwrite", *WHOLE, "--seed", "7"),
    ):
        assert process([*COMMAND, folder, *options]).code == 0
    ended = process([*COMMAND, "resume", *WHOLE], operation=40, signal_=signal.SIGINT)
    assert ended.code == 130, ended
    assert Path("resume", checkpoints.CHECKPOINT).exists()
    for folder in STARTS[1:]:
        Path(folder, "notes.txt").write_text("mine")


# --- processes ----------------------------------------------------------------------------------------------------


def process(
    arguments: Sequence[str],
    *,
    after: float | None = None,
    operation: int | None = None,
    signal_: int = signal.SIGKILL,
    count: bool = False,
) -> Ended:
    """Run the command line in a fork, and end it after some seconds or at one of its file operations.

    With ``count`` the code is the number of its file operations.
    """
    with tempfile.TemporaryFile() as err:
        if not (child := os.fork()):
            _child(arguments, err.fileno(), operation, signal_, count)
        started, hangs = time.monotonic(), False
        while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            passed = time.monotonic() - started
            if after is not None and passed >= after:
                os.kill(child, signal_)
                after = None
            if passed > SECONDS:
                os.kill(child, signal.SIGKILL)
                hangs = True
                break
            time.sleep(0.005)
        _, status = os.waitpid(child, 0)
        err.seek(0)
        text = err.read().decode(errors="replace")
    if hangs:
        return Ended(None, "stuck")
    if count:
        return Ended(int(text.splitlines()[-1]), "")
    return Ended(os.WEXITSTATUS(status) if os.WIFEXITED(status) else None, text)


def _child(arguments: Sequence[str], err: int, operation: int | None, signal_: int, count: bool) -> None:
    """Be the program, in a fork."""
    os.dup2(err, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    seen = 0

    def hook(event: str, details: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or event in OPERATIONS:
            seen += 1
            if seen == operation:
                os.kill(os.getpid(), signal_)

    sys.addaudithook(hook)
    code = 1
    try:
        dip_fast(list(arguments))
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stderr.flush()
        if count:
            os.write(2, f"\n{seen}\n".encode())
        os._exit(code)


# --- kills --------------------------------------------------------------------------------------------------------


def kills(number: int, rng: random.Random) -> Counter[str]:
    """Kill runs, go on with them, and count what became of them."""
    counts: Counter[str] = Counter()
    operations, seconds = {}, {}
    for start in STARTS if number else ():
        begin(start)
        started = time.monotonic()
        ended = process(command(start), count=True)
        assert ended.code, ended
        operations[start], seconds[start] = ended.code, time.monotonic() - started
    for i in range(number):
        start = STARTS[i // 2 % len(STARTS)]
        begin(start)
        if i % 2:
            process(command(start), after=rng.uniform(0, seconds[start]))
        else:
            nth = (i // (2 * len(STARTS))) * operations[start] // -(-number // (2 * len(STARTS)))  # spread over all
            process(command(start), operation=1 + nth)
        found = go_on(start)
        counts[found] += 1
        if found != "went on":
            print(f"kill {i}, {start}: {found}", file=sys.stderr)
    return counts


def begin(start: str) -> None:
    """Copy the folder that a run starts from."""
    shutil.rmtree("out", ignore_errors=True)
    if start != "new":
        shutil.copytree(start, "out", symlinks=True)


def command(start: str, option: str | None = None) -> list[str]:
    """Make the command line of a run."""
    if option is None:
        option = {"new": "", "overwrite": "--overwrite"}.get(start, "--resume")
    return [*COMMAND, "out", *WHOLE, *filter(None, [option])]


def go_on(start: str) -> str:
    """Go on with a run that was killed, as a user would, and say what became of it."""
    for option in ("--resume", "", "--overwrite"):
        ended = process(command(start, option))
        if ended.code != 2:
            break
    if ended.code != 0:
        return "stuck" if ended.err == "stuck" else "lost"
    if start != "new" and Path("out/notes.txt").read_text() != "mine":
        return "lost"
    if list(Path("out").rglob("*.tmp")):
        return "lost"
    return "went on" if same_bits() else "with other bits"


def same_bits() -> bool:
    """Compare the folder with that of the run that was never killed."""
    for name in ("result.png", "history.csv"):
        if Path("out", name).read_bytes() != Path("whole", name).read_bytes():
            return False
    one, other = (json.loads(Path(folder, "run.json").read_text())["summary"] for folder in ("out", "whole"))
    if [model["pixels"] for model in one["models"]] != [model["pixels"] for model in other["models"]]:
        return False
    (tensors, _), (others, _) = (damage.read_checkpoint(folder) for folder in ("out", "whole"))
    return tensors.keys() == others.keys() and all(
        tensors[name].numpy().tobytes() == others[name].numpy().tobytes() for name in tensors
    )


# --- mutations ----------------------------------------------------------------------------------------------------


def mutations(number: int, rng: random.Random) -> Counter[str]:
    """Change folders of runs, run the command line on them, and count how it ended."""
    counts: Counter[str] = Counter()
    for i in range(number):
        start, option = rng.choice(["resume", "whole"]), rng.choice(["--resume", "--resume", "--overwrite", ""])
        begin(start)
        what = damage.change(rng)
        found = survived(start, option, process(command(start, option)))
        counts[found] += 1
        if found not in ("went on", "refused"):
            print(f"change {i}, {start} {option}, {what}: {found}", file=sys.stderr)
    return counts


def survived(start: str, option: str, ended: Ended) -> str:
    """Describe how the command line ended on a folder that was changed."""
    if ended.err == "stuck":
        return "stuck"
    if {path.name: path.read_text() for path in Path("album").iterdir()} != {"iter_000007.png": "mine"}:
        return "failed"
    if ended.code == 2:
        return "refused" if len(ended.err.splitlines()) == 1 else f"failed: {ended.err}"
    if ended.code != 0:
        return f"failed: {ended}"
    goes_on = (start, option) == ("resume", "--resume") or option == "--overwrite"
    return "with other bits" if goes_on and not same_bits() else "went on"


if __name__ == "__main__":
    main()
