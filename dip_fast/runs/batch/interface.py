"""A batch from its arguments, for the command line and for Python alike."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from dip_fast.errors import Argument, UsageError
from dip_fast.runs.batch import control
from dip_fast.runs.batch.cluster import THREADS, Cluster, where, workers_on
from dip_fast.runs.batch.driver import Emit
from dip_fast.runs.batch.local import threads_each
from dip_fast.runs.batch.manifest import Row
from dip_fast.runs.batch.settings import Settings
from dip_fast.tasks import TASKS

# Arguments that are fields of `Settings`.
OWN = tuple(entry.name for entry in fields(Settings) if entry.name not in ("asked", "inputs", "options"))


def settings(workers: int | None, on: Cluster | None = None, **options: Any) -> Settings:
    """Sort options into those of the fit, files, and what a batch has for itself.

    Parameters
    ----------
    workers : int or None
        The cores are shared by so many, where no number of threads is among the options.
    on : Cluster, optional
        Where; its nodes may have other cores than this machine.
    **options
        As of `batch`; what is None is left open.

    Raises
    ------
    UsageError
    """
    given = {name: value for name, value in options.items() if value is not None}
    if not isinstance(given.get("preset", ""), str):
        raise UsageError("{} must be a name, which the batch's processes and records know", Argument("preset"))
    names = {entry.name for task in TASKS.values() for entry in task.inputs}
    inputs = {name: os.fspath(given.pop(name)) for name in names & given.keys()}
    if "mask" in inputs and "mask_suffix" in given:
        both = Argument("mask"), Argument("mask_suffix")
        raise UsageError("{} is of all pictures and {} of each; leave out one of the two", *both)
    if given.get("mask_suffix") == "":
        raise UsageError("{} is empty; give what the names of masks have more, as _mask", Argument("mask_suffix"))
    default = threads_each(workers or 1) if on is None else THREADS
    if (threads := given.pop("threads", None) or default) is not None:
        given["threads"] = threads
    if "reference" in given:
        given["reference"] = os.fspath(given["reference"])
    own = {name: given.pop(name) for name in OWN if name in given}
    return Settings(asked=given, inputs=inputs, **own)


def batch(
    paths: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    recursive: bool = False,
    mask_suffix: str | None = None,
    reference: str | Path | None = None,
    workers: int | None = None,
    threads: int | None = None,
    cluster: str | None = None,
    gpus: float | None = None,
    ship: bool = False,
    retries: int = 2,
    max_failures: int = 20,
    shard: tuple[int, int] | None = None,
    overwrite: bool = False,
    on_event: Emit | None = None,
    **options: Any,
) -> list[Row]:
    """Restore many pictures, each into a folder of its own, and go on where an earlier call has stopped.

    Parameters
    ----------
    paths : str or Path, or a sequence of them
        Folders, files, and patterns such as ``"scans/*.tif"``.
    out : str or Path
        The folder for all of them.  The run of ``sub/a.png`` goes to ``out/sub/a.png``.
    recursive : bool
        Whether to look into the folders of the folders too.
    mask_suffix : str, optional
        ``"_mask"`` takes ``a_mask.png`` for the mask of ``a.png``.
    reference : str or Path, optional
        A folder of clean pictures of the same names, to measure PSNR and SSIM with.
    workers : int, optional
        How many pictures are restored at a time, in a process each: by default one, or as many as a cluster has room
        for.
    threads : int, optional
        Of each worker; by default the cores are shared, and on a cluster it is two.
    cluster : str, optional
        ``"auto"`` restores them on the Ray cluster that this machine is part of, ``"host:port"`` on that whose head is
        there.
    gpus : float, optional
        GPUs of each worker on a cluster, such as 0.5.
    ship : bool
        Whether the pictures and their runs travel to and from the nodes, also where these share the disk.
    retries : int
        How often a picture is tried again whose process was killed or crashed, or whose fit failed; it goes on from its
        checkpoint.
    max_failures : int
        How many pictures in a row may fail before nothing new is begun.
    shard : tuple of int, optional
        ``(3, 100)`` restores the third of a hundred parts.
    overwrite : bool
        Whether to replace runs of other pictures or settings.
    on_event : callable, optional
        Takes what happens, a dictionary each.
    **options
        As the options of ``dip-fast run``: ``task``, ``preset``, ``seed``, ``export``, ``mask`` and others.

    Returns
    -------
    list of dict
        A row for each picture, as in ``manifest.csv``: its ``path``, ``status`` and figures, and why where it is not
        done.

    Raises
    ------
    UsageError
        For wrong arguments, no pictures, or a folder with a batch of other settings.
    DipFastError
        If no worker can start.
    KeyboardInterrupt
        After Ctrl-C, once the pictures under way have written their checkpoints; the same call goes on.
    """
    on = where(cluster, gpus, ship=ship)
    workers = workers_on(on, workers)
    of_pictures = settings(
        workers, on, threads=threads, mask_suffix=mask_suffix, reference=reference, overwrite=overwrite, **options
    )
    sources = [paths] if isinstance(paths, str | Path) else list(paths)
    asked = control.Batch(sources, Path(out), of_pictures, recursive, workers, retries, max_failures, shard, on)
    result = control.run(asked, on_event or (lambda event: None))
    if result.is_stopped:
        raise KeyboardInterrupt("the same call goes on")
    return result.rows
