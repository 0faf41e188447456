"""What the tests of batches share: pools without processes."""

from pathlib import Path

import numpy as np
from conftest import pixels
from PIL import Image

from dip_fast.errors import DipFastError
from dip_fast.runs.batch import control, messages, work
from dip_fast.runs.batch.interface import settings

OPTIONS = {"iterations": 4, "threads": 1, "snapshot_every": 0, "export": ()}


def picture(path, height=16, width=18, seed=0):
    """Write a small gray picture."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(height, width, seed=seed)).save(path)
    return path


def batch(sources="in", out="out", **options):
    """What is asked for, in four steps a picture."""
    names = ("recursive", "workers", "retries", "max_failures", "shard")
    own = {name: options.pop(name) for name in names if name in options}
    return control.Batch([sources], Path(out), settings(1, **{**OPTIONS, **options}), **own)


class Inline:
    """A pool of this process: a picture is restored when its events are asked for.

    With a script, the next words of it are what becomes of the pictures, and nothing is restored: statuses, or
    functions that are called instead.
    """

    def __init__(self, batch, script=None):
        self.batch, self.script = batch, script
        self.items, self.submitted, self.calls, self.refusal = [], [], [], None
        try:
            work.check(batch.settings)
        except DipFastError as error:
            self.refusal = {"event": "refused", "error": messages.packed(error)}

    def free(self):
        return self.batch.workers - len(self.items)

    def submit(self, item):
        self.items.append(item)
        self.submitted.append(item.name)

    def events(self, timeout):
        if self.refusal:
            return [self.refusal]
        if not self.items:
            return []
        item = self.items.pop(0)
        found = [{"event": "started", "picture": item.name, "host": "here", "pid": 0}]
        told = self.script.pop(0) if self.script else None
        if callable(told):
            told = told()
        if told is None:
            outcome = work.perform(
                self.batch.settings, item, lambda text: found.append({"event": "note", "text": text})
            )
            told, error = outcome.status, outcome.error
        else:
            error = f"as scripted: {told}"
        return [*found, {"event": "ended", "picture": item.name, "status": told, "error": error}]

    def stop(self):
        self.calls.append("stop")

    def kill(self):
        self.calls.append("kill")

    def close(self):
        self.calls.append("close")


def carried_out(asked, script=None):
    """Carry out a batch in this process: what it gave, its events, and its pool."""
    events, pools = [], []

    def make(batch):
        pools.append(Inline(batch, script))
        return pools[0]

    result = control.run(asked, events.append, make)
    return result, events, pools[0] if pools else None


def rows(result):
    return {row["path"]: row for row in result.rows}


def hashes(result):
    return {row["path"]: row["out_sha256"] for row in result.rows}


def changed(path, seed=9):
    """Change a picture a little."""
    with Image.open(path) as image:
        samples = np.array(image)
    samples[3, 3] ^= seed
    Image.fromarray(samples).save(path)
