"""Earlier states of a fit, from which `dip-fast pick` draws another answer: the averages of some of its steps.

They lie beside the snapshots, at most `MOST` of them: the spacing doubles as the fit goes on, and what is no multiple
of it is deleted.  Each takes 4 bytes for each weight and for each sample of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dip_fast.errors import UsageError
from dip_fast.fitting import Fit
from dip_fast.runs import checkpoints
from dip_fast.runs.folder import SNAPSHOTS, Folder
from dip_fast.runs.job import Job
from dip_fast.runs.record import Record

FORMAT = "dip-fast state 1"
MOST = 8  # states of a run
FIRST = 10  # steps between the first ones


def has_states(job: Job, fit: Fit) -> bool:
    """Whether a fit keeps states: where its steps draw the picture, and the user wants snapshots at all."""
    return job.snapshot_every > 0 and fit.objective.draws_iterates and fit.objective.pictures == 1


def spacing(step: int) -> int:
    """Choose how many steps lie between two states of a fit that has come to a step."""
    every = FIRST
    while step // every > MOST:
        every *= 2
    return every


class States:
    """Callback of a fit that keeps its averages now and then, evenly thinned.

    Parameters
    ----------
    folder : Folder
    record : Record
    fit : Fit
        The fit, before its first step or resumed.
    """

    def __init__(self, folder: Folder, record: Record, fit: Fit) -> None:
        self.folder = folder
        self.run = record.digest()
        self.step = fit.steps

    @property
    def every(self) -> int:
        """Steps until it has something to do."""
        return spacing(self.step)

    def __call__(self, fit: Fit) -> None:
        """Keep the averages of the step, and delete those that lie too near to others by now."""
        made, self.step = fit.steps != self.step, fit.steps
        every = spacing(fit.steps)
        if not made or fit.steps % every:  # consolidation makes no steps
            return
        name = f"{SNAPSHOTS}/state_{fit.steps:06}.safetensors"
        self.folder.write(name, lambda: dump(fit.newest_averages(), self.run))
        for step, path in self.folder.states().items():
            if step % every or step > fit.steps:  # later ones are of steps that are made once more
                self.folder.forget(path)


def dump(averages: Mapping[str, Tensor], run: str) -> bytes:
    """Serialise averages by name, for the run with this digest."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in averages.items()}
    sha256 = checkpoints.digest_of(tensors, {})
    return save(tensors, metadata={"format": FORMAT, "run": run, "sha256": sha256})


def load(path: Path, fit: Fit, run: str) -> dict[str, Tensor]:
    """Read the averages of a state of this run.

    Raises
    ------
    UsageError
        If the file is another one, or is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    except (OSError, SafetensorError) as error:
        raise UsageError("{} is gone or damaged; pick another step", path) from error
    known = {name: (value.dtype, value.shape) for name, value in fit.newest_averages().items()}
    if (
        (metadata.get("format"), metadata.get("run")) != (FORMAT, run)
        or metadata.get("sha256") != checkpoints.digest_of(tensors, {})
        or {name: (value.dtype, value.shape) for name, value in tensors.items()} != known
    ):
        raise UsageError("{} is damaged, or of another run; pick another step", path)
    return tensors
