"""One run: a picture in, a folder with the restored picture and all that is needed to repeat it out."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dip_fast import __version__, checkpoints, devices, metrics, pictures, reporting
from dip_fast.contact_sheet import contact_sheet
from dip_fast.degradations import Degradation, Identity, Mask
from dip_fast.errors import DipFastError, UsageError
from dip_fast.fitting import Fit, Result, prepare
from dip_fast.pictures import Picture, write_atomically
from dip_fast.progress import Progress
from dip_fast.settings import Settings, complete, resumed

SECONDS_BETWEEN_CHECKPOINTS = 30.0
MOST_TILES = 14  # iterates on the contact sheet, chosen evenly

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes
    ----------
    source : Path or bytes
        The picture.
    out : Path, optional
        The run's folder; ``runs/<name of the picture>`` by default.
    said : dict
        What the user said of the fields of `Settings`, and nothing else.
    mask, reference : Path, optional
    resume, overwrite, quiet : bool
    """

    source: Path | bytes
    said: dict[str, Any]
    out: Path | None = None
    mask: Path | None = None
    reference: Path | None = None
    resume: bool = False
    overwrite: bool = False
    quiet: bool = False


class Folder:
    """The run's folder: what is in it, and how it is written."""

    RESULTS = ("result.png", "result.tif")
    OWN = (*RESULTS, "contact_sheet.png", "history.csv", "history.png", "run.json", "checkpoint.safetensors")

    def __init__(self, path: Path, say: Say) -> None:
        self.path = path
        self.say = say
        self.problems: list[str] = []

    def check_free(self, overwrite: bool) -> None:
        """Refuse a folder in which something would be lost."""
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise UsageError(f"{self.path} exists and is no folder; choose another --out")
        if not overwrite:
            raise UsageError(f"{self.path} exists; go on with --resume, replace with --overwrite, or choose an --out")
        if any(self.path.iterdir()) and not (self.path / "run.json").exists():
            raise UsageError(f"{self.path} holds files and is not a run's folder; choose another --out")

    def make(self) -> None:
        """Create the folder, and see that it can be written; files of an earlier run in it are removed."""
        try:
            (self.path / "snapshots").mkdir(parents=True, exist_ok=True)
            probe = self.path / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
            # run.json goes last: without it the folder would no longer count as a run's.
            for old in (*self.snapshots(), *(self.path / name for name in reversed(self.OWN))):
                old.unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(f"cannot write to {self.path}: {error.strerror}; choose another --out") from error

    def snapshots(self) -> list[Path]:
        """Snapshots in the order of their steps."""
        return sorted((self.path / "snapshots").glob("iter_*.png"))

    def write(self, name: str, data: bytes) -> None:
        """Write a file beside the result; where that fails, say so once and go on: the fit is worth more."""
        try:
            write_atomically(self.path / name, data)
        except DipFastError as error:
            if not self.problems:
                self.say(f"{error}; going on without it")
            self.problems.append(str(error))

    def write_result(self, name: str, data: bytes) -> Path:
        """Write the result here or, where that fails, wherever it can be written."""
        elsewhere = f"dip-fast-{self.path.name}-{os.getpid()}-{name}"
        for path in (self.path / name, Path.cwd() / elsewhere, Path.home() / elsewhere, _temporary() / elsewhere):
            try:
                write_atomically(path, data)
            except DipFastError as error:
                self.problems.append(str(error))
                continue
            if path.parent != self.path:
                self.say(f"{self.problems[-1]}; the result is in {path}")
            return path
        raise DipFastError(f"{self.problems[-1]}; no other folder could be written either, and the result is lost")


def run(request: Request, say: Say) -> dict[str, Any]:
    """Restore a picture.

    Parameters
    ----------
    request : Request
    say : callable
        Takes the lines that tell the user what goes on.

    Returns
    -------
    dict
        The summary that ``--json`` prints; its ``folder`` is the run's folder.

    Raises
    ------
    UsageError
        For a wrong picture, mask or reference, a folder in the way, a picture that will not fit in memory.
    DipFastError
        If the fit fails, or the result can be written nowhere.
    """
    if request.resume and request.overwrite:
        raise UsageError("--resume and --overwrite exclude each other; give one of the two")
    path = request.out or Path("runs") / (Path(request.source).stem if isinstance(request.source, Path) else "stdin")
    folder = Folder(path, say)
    stored = _stored(path) if request.resume else {}
    if not request.resume:
        folder.check_free(request.overwrite)
    settings = resumed(request.said, stored) if stored else complete(request.said, mask=request.mask is not None)
    torch.set_num_threads(settings.threads)

    picture = pictures.read_picture(request.source, keep_metadata=settings.keep_metadata)
    reference = None if request.reference is None else _reference(request.reference, picture)
    degradation, inputs = _degradation(request, picture, settings)
    if stored:
        _require_same(stored, settings, inputs)
    device = torch.device(settings.device)
    say(
        f"{picture.name}: {picture.size[1]}x{picture.size[0]}, {'gray' if picture.channels == 1 else 'RGB'}, "
        f"{8 * picture.dtype.itemsize} bit{' float' if picture.dtype.kind == 'f' else ''}; "
        f"{settings.task}, preset {settings.preset}, seed {settings.seed}"
    )
    say(f"device {devices.describe(device)}, engine {settings.engine} (torch {torch.__version__})")
    for note in picture.notes:
        say(note)
    recipe = settings.recipe()
    devices.require_memory(recipe, picture.channels, picture.size, device)

    if stored.get("status") == "done":
        say("this run is done; nothing is left to resume")
        return dict(stored["summary"])
    fit = prepare(degradation, recipe, seed=settings.seed, device=device, reference=_tensor(reference))
    checkpoint = path / "checkpoint.safetensors"
    if request.resume and checkpoint.exists():
        checkpoints.load(checkpoint, fit)
        say(f"resumed after step {fit.steps}")
    elif not request.resume:
        folder.make()
    record: dict[str, Any] = {
        "status": "running",
        "settings": asdict(settings),
        "recipe": asdict(recipe),
        "inputs": inputs,
        "reference": None if request.reference is None else str(request.reference),
        "versions": {"dip_fast": __version__, "torch": torch.__version__, "numpy": np.__version__},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "started": stored.get("started") or _now(),
    }
    folder.write("run.json", _json(record))

    total = recipe.options.iterations + recipe.options.consolidation
    with _interruptible(fit, quiet=request.quiet), Progress(total, fit.steps, quiet=request.quiet) as progress:
        folder.say = progress.say
        fit.run([progress, _Recorder(folder, settings.snapshot_every)])
    folder.say = say
    return _finish(fit, folder, request, record, picture, reference)


class _Recorder:
    """Callback that writes snapshots when they are due, and a checkpoint now and then and at the end."""

    def __init__(self, folder: Folder, snapshot_every: int) -> None:
        self.folder = folder
        self.snapshot_every = snapshot_every
        self.written = time.monotonic()

    def __call__(self, fit: Fit) -> None:
        if fit.consolidation_steps:
            return
        if self.snapshot_every and fit.steps % self.snapshot_every == 0:
            image = fit.iterate[0].permute(1, 2, 0).cpu().numpy()
            self.folder.write(f"snapshots/iter_{fit.steps:06}.png", reporting.preview(image))
        if fit.stop_reason or fit.interrupted or time.monotonic() - self.written > SECONDS_BETWEEN_CHECKPOINTS:
            self.folder.write("checkpoint.safetensors", checkpoints.dump(fit))
            self.folder.write("history.csv", reporting.history_csv(fit.history()))
            self.written = time.monotonic()


def _finish(
    fit: Fit, folder: Folder, request: Request, record: dict[str, Any], picture: Picture, reference: np.ndarray | None
) -> dict[str, Any]:
    """Write the result first, then what explains it."""
    result = fit.result()
    written = folder.write_result(f"result{picture.suffix}", pictures.encode_picture(result.image, picture))
    samples = pictures.to_samples(result.image, picture)
    summary = {
        "result": str(written),
        "folder": str(folder.path),
        "steps": result.steps,
        "best_step": result.best_step,
        "stop_reason": result.stop_reason,
        "seconds": round(result.seconds, 3),
        "device": record["settings"]["device"],
        "engine": record["settings"]["engine"],
        "seed": record["settings"]["seed"],
        "psnr": None if reference is None else metrics.psnr(result.image, reference),
        "ssim": None if reference is None else metrics.ssim(result.image, reference),
        "psnr_input": None if reference is None else metrics.psnr(picture.image, reference),
        "ssim_input": None if reference is None else metrics.ssim(picture.image, reference),
        "sha256": hashlib.sha256(samples.tobytes()).hexdigest(),
    }
    folder.write("history.csv", reporting.history_csv(result.history))
    folder.write("history.png", reporting.history_plot(result.history, result.best_step))
    folder.write("contact_sheet.png", _contact_sheet(folder, picture, result, reference))
    record |= {
        "status": "interrupted" if result.stop_reason == "interrupted" else "done",
        "ended": _now(),
        "seconds_per_step": result.seconds / max(result.steps, 1),
        "events": result.events,
        "problems": folder.problems,
        "summary": summary,
    }
    folder.write("run.json", _json(record))
    return summary


def _stored(path: Path) -> dict[str, Any]:
    """Read the record of the run to resume."""
    try:
        stored = json.loads((path / "run.json").read_text())
    except FileNotFoundError as error:
        raise UsageError(f"nothing to resume: {path} holds no run.json; leave out --resume") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot resume: {path / 'run.json'} is unreadable ({error}); --overwrite it") from error
    if not isinstance(stored, dict):
        raise UsageError(f"cannot resume: {path / 'run.json'} is not a run's record; --overwrite it")
    return stored


def _require_same(stored: dict[str, Any], settings: Settings, inputs: dict[str, Any]) -> None:
    """Refuse to go on with another picture, another mask or another meaning of the preset."""
    if stored.get("inputs") != inputs:
        raise UsageError("cannot resume: the picture or the mask is not the one that the run was started with")
    if stored.get("recipe") != json.loads(_json(asdict(settings.recipe()))):
        raise UsageError(
            f"cannot resume: preset {settings.preset} differs between the versions; start again with --overwrite"
        )


def _degradation(request: Request, picture: Picture, settings: Settings) -> tuple[Degradation, dict[str, Any]]:
    """Say what happened to the picture, and identify what came in."""
    target = _tensor(picture.image)
    assert target is not None
    inputs = {"picture": {"name": picture.name, "sha256": _digest(picture.image)}}
    if request.mask is None:
        return Identity(target), inputs
    known = pictures.read_mask(request.mask, picture.size)
    inputs["mask"] = {"name": request.mask.name, "sha256": _digest(known)}
    mask = Mask(target, torch.from_numpy(known)[None, None], composite=settings.composite)
    return mask, inputs


def _reference(path: Path, picture: Picture) -> np.ndarray:
    """Read the ground truth, in the picture's range."""
    reference = pictures.read_picture(path)
    if reference.size != picture.size:
        height, width = reference.size
        raise UsageError(
            f"the reference {reference.name} is {width}x{height} and the picture {picture.size[1]}x{picture.size[0]}; "
            "give one of the same size"
        )
    if reference.channels != picture.channels:
        raise UsageError(
            f"the reference {reference.name} has {reference.channels} channels and the picture {picture.channels}; "
            "give one of the same kind"
        )
    if reference.dtype != picture.dtype:
        return reference.image
    (low, high), (own_low, own_high) = picture.value_range, reference.value_range
    return ((own_low + reference.image * (own_high - own_low) - low) / (high - low)).astype(np.float32)


def _contact_sheet(folder: Folder, picture: Picture, result: Result, reference: np.ndarray | None) -> bytes:
    """Input, iterates, result and reference side by side."""
    shown = folder.snapshots()
    if len(shown) > MOST_TILES:
        shown = [shown[i] for i in np.linspace(0, len(shown) - 1, MOST_TILES).round().astype(int)]
    tiles = [("input", picture.image)]
    tiles += [(f"step {int(path.stem.removeprefix('iter_'))}", pictures.read_picture(path).image) for path in shown]
    tiles.append(("result", result.image))
    if reference is not None:
        tiles.append(("reference", reference))
    sheet = contact_sheet([image for _, image in tiles], [label for label, _ in tiles])
    return reporting.preview(sheet)


@contextmanager
def _interruptible(fit: Fit, *, quiet: bool) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the fit after its step; a second one ends the program."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _: object) -> None:
        signal.signal(number, before[signal.Signals(number)])
        fit.interrupt()
        if not quiet:  # os.write, since a handler must not enter a stream that may be in the middle of a line
            os.write(2, b"\nstopping after this step; once more to stop at once, without the result\n")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tensor(image: np.ndarray | None) -> torch.Tensor | None:
    """``(H, W, C)`` to ``(1, C, H, W)``."""
    return None if image is None else torch.from_numpy(image).permute(2, 0, 1)[None].contiguous()


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _json(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=2, allow_nan=False) + "\n").encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _temporary() -> Path:
    return Path(tempfile.gettempdir())
