"""What a run writes while it works: snapshots of the iterates, and checkpoints."""

from __future__ import annotations

import time

from dip_fast.fitting import Fit
from dip_fast.runs import checkpoints, reporting
from dip_fast.runs.folder import SNAPSHOTS, Folder
from dip_fast.runs.record import Record

SECONDS_BETWEEN_CHECKPOINTS = 30.0


class Snapshots:
    """Callback of a fit that writes the iterate now and then.

    Parameters
    ----------
    folder : Folder
    record : Record
    fit : Fit
        The fit, before its first step or resumed.
    """

    def __init__(self, folder: Folder, record: Record, fit: Fit) -> None:
        self.folder = folder
        self.every = record.settings.snapshot_every
        self.steps, self.events = fit.steps, len(fit.events)

    def __call__(self, fit: Fit) -> None:
        """Write the iterate of the step."""
        if len(fit.events) > self.events:  # its steps are made once more
            self.steps, self.events = fit.events[-1]["back_to_step"], len(fit.events)
        # A fit that has fallen back, or is consolidating, shows no new iterate, and a large picture none in good time.
        due = self.every and fit.steps > self.steps and fit.steps % self.every == 0
        if due and not fit.objective.is_large:
            self.folder.write(
                f"{SNAPSHOTS}/iter_{fit.steps:06}.png",
                lambda: reporting.preview(fit.iterate[0].permute(1, 2, 0).cpu().numpy()),
            )
        self.steps = fit.steps


class Stop:
    """Callback that ends the program once the fit is interrupted, with a checkpoint: there is no answer in between.

    Parameters
    ----------
    kept : Checkpoints
    """

    every = 0

    def __init__(self, kept: Checkpoints) -> None:
        self.kept = kept

    def __call__(self, fit: Fit) -> None:
        """End the program if it is time."""
        if fit.interrupted:
            if fit.steps:
                self.kept.write(fit)
            raise KeyboardInterrupt("go on with the same command and --resume")


class Checkpoints:
    """Callback of a fit that writes a checkpoint every `SECONDS_BETWEEN_CHECKPOINTS`.

    Parameters
    ----------
    folder : Folder
    record : Record
    """

    every = 0  # at whatever step the fit is

    def __init__(self, folder: Folder, record: Record) -> None:
        self.folder = folder
        self.run = record.digest()
        self.written = time.monotonic()

    def __call__(self, fit: Fit) -> None:
        """Write a checkpoint if it is time."""
        if time.monotonic() - self.written > SECONDS_BETWEEN_CHECKPOINTS:
            self.write(fit)

    def write(self, fit: Fit) -> None:
        """Write the checkpoint, and the history for whoever watches the folder meanwhile."""
        self.folder.write(checkpoints.CHECKPOINT, lambda: checkpoints.dump(fit, self.run))
        self.folder.write("history.csv", lambda: reporting.history_csv(fit.history()))
        self.written = time.monotonic()
