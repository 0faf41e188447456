"""What a run writes while it works: snapshots of the iterates, and checkpoints."""

from __future__ import annotations

import time

from dip_fast.fitting import Fit
from dip_fast.runs import checkpoints, reporting
from dip_fast.runs.folder import SNAPSHOTS, Folder
from dip_fast.runs.record import Record

SECONDS_BETWEEN_CHECKPOINTS = 30.0


class Recorder:
    """Callback of a fit that writes snapshots when they are due, and a checkpoint now and then.

    Parameters
    ----------
    folder : Folder
    record : Record
    steps : int
        Steps done before.
    """

    def __init__(self, folder: Folder, record: Record, steps: int) -> None:
        self.folder = folder
        self.run = record.digest()
        self.every = record.settings.snapshot_every
        self.steps = steps
        self.written = time.monotonic()

    def __call__(self, fit: Fit) -> None:
        """Write what is due after a step."""
        # A fit that has fallen back, or is consolidating, shows no new iterate, and a large picture none in good time.
        due = fit.steps > self.steps and self.every and fit.steps % self.every == 0
        if due and not fit.objective.is_large:
            self.folder.write(
                f"{SNAPSHOTS}/iter_{fit.steps:06}.png",
                lambda: reporting.preview(fit.iterate[0].permute(1, 2, 0).cpu().numpy()),
            )
        self.steps = fit.steps
        if time.monotonic() - self.written > SECONDS_BETWEEN_CHECKPOINTS:
            self.checkpoint(fit)

    def checkpoint(self, fit: Fit) -> None:
        """Write the checkpoint, and the history for whoever watches the folder meanwhile."""
        self.folder.write(checkpoints.CHECKPOINT, lambda: checkpoints.dump(fit, self.run))
        self.folder.write("history.csv", lambda: reporting.history_csv(fit.history()))
        self.written = time.monotonic()
