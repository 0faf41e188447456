"""One run: a picture in, a folder with the restored picture and all that is needed to repeat it out."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import platform
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dip_fast import __version__, pictures
from dip_fast.device import devices, engines
from dip_fast.errors import DipFastError, UsageError
from dip_fast.fitting.degradations import Degradation, Identity, Mask
from dip_fast.fitting.loop import Fit, prepare
from dip_fast.fitting.results import Result
from dip_fast.models import fitted, writing
from dip_fast.models.formats import FORMATS, require
from dip_fast.pictures import Picture, metrics, write_atomically
from dip_fast.runs import checkpoints, reporting
from dip_fast.runs.contact_sheet import contact_sheet
from dip_fast.runs.progress import Progress
from dip_fast.runs.settings import Settings, complete, resumed

SECONDS_BETWEEN_CHECKPOINTS = 30.0
CHECKPOINT = "checkpoint.safetensors"
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
    export : tuple of str, optional
        Formats of the model files to write; ONNX by default.
    """

    source: Path | bytes
    said: dict[str, Any]
    out: Path | None = None
    mask: Path | None = None
    reference: Path | None = None
    resume: bool = False
    overwrite: bool = False
    quiet: bool = False
    export: tuple[str, ...] | None = None


class Folder:
    """The run's folder: what is in it, and how it is written."""

    OWN = (
        CHECKPOINT,
        "result.png",
        "result.tif",
        "contact_sheet.png",
        "history.csv",
        "history.png",
        *(f"model{format_.suffix}" for format_ in FORMATS.values()),
    )  # besides run.json and the snapshots

    def __init__(self, path: Path, say: Say) -> None:
        self.path = path
        self.say = say
        self.problems: list[str] = []
        self._lock: int | None = None

    def check_free(self, overwrite: bool) -> None:
        """Refuse a folder in which something would be lost."""
        try:
            if not self.path.exists():
                return
            if not self.path.is_dir():
                raise UsageError(f"{self.path} exists and is no folder; choose another --out")
            if not overwrite:
                raise UsageError(
                    f"{self.path} exists; go on with --resume, replace with --overwrite, or choose another --out"
                )
            if any(self.path.iterdir()) and not (self.path / "run.json").exists():
                raise UsageError(f"{self.path} holds files and is not a run's folder; choose another --out")
        except OSError as error:
            raise UsageError(f"cannot use {self.path}: {error.strerror}; choose another --out") from error

    def check_room(self, needed: int) -> None:
        """Refuse a disk that has not the bytes that the run is going to write."""
        place = self.path.absolute()
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        if free < needed:
            raise UsageError(
                f"the run may write {needed / 1e6:.0f} MB to {self.path} and {free / 1e6:.0f} MB are free there; "
                "make room or choose another --out"
            )

    def open(self, record: dict[str, Any], *, fresh: bool) -> None:
        """Create the folder, keep other runs out of it, and write the record, which tells whether it can be written.

        In a fresh folder nothing is left of an earlier run; files of the user's own stay.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path, os.O_RDONLY)
            _lock(self._lock)
            (self.path / "snapshots").mkdir(exist_ok=True)
            # What a killed process was writing aside.
            old = [*self.path.glob(".dip-fast-*.tmp"), *self.path.glob("snapshots/.dip-fast-*.tmp")]
            if fresh:
                old += [*(self.path / name for name in self.OWN), *self.snapshots().values()]
            for path in old:
                path.unlink(missing_ok=True)
            # Last, for no checkpoint of another run may lie beside the new record.
            write_atomically(self.path / "run.json", _json(record))
        except BlockingIOError as error:
            raise UsageError(f"another run is at work in {self.path}; wait for it, or choose another --out") from error
        except OSError as error:
            raise UsageError(f"cannot write to {self.path}: {error.strerror}; choose another --out") from error
        except DipFastError as error:
            raise UsageError(str(error)) from error

    def close(self) -> None:
        """Let other runs in."""
        if self._lock is not None:
            os.close(self._lock)

    def snapshots(self) -> dict[int, Path]:
        """Snapshots by their steps, in order."""
        paths = {path.stem.removeprefix("iter_"): path for path in self.path.glob("snapshots/iter_*.png")}
        return dict(sorted((int(step), path) for step, path in paths.items() if step.isdecimal()))

    def write(self, name: str, data: bytes) -> None:
        """Write a file beside the result; where that fails, say so once and go on: the fit is worth more."""
        try:
            write_atomically(self.path / name, data)
        except DipFastError as error:
            self.note(error)

    def note(self, error: DipFastError) -> None:
        """Remember what could not be written."""
        if not self.problems:
            self.say(f"{error}; going on without it")
        self.problems.append(str(error))

    def write_result(self, name: str, data: bytes) -> Path:
        """Write the result here or, where that fails, wherever it can be written."""
        try:
            write_atomically(self.path / name, data)
        except DipFastError as error:
            self.problems.append(str(error))
            return write_elsewhere(f"{self.path.name}-{name}", data)
        return self.path / name


def write_elsewhere(name: str, data: bytes) -> Path:
    """Save a result that could not be written where it belongs: here, at home, or among the temporary files."""
    for folder in (Path.cwd, Path.home, tempfile.gettempdir):
        try:
            path = Path(folder(), f"dip-fast-{os.getpid()}-{name}")
            write_atomically(path, data)
        except (DipFastError, OSError, RuntimeError) as error:  # no such folder, or no home
            problem = error
            continue
        return path
    raise DipFastError(f"{problem}; no other folder could be written either, and the result is lost")


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
    require("onnx", "onnxruntime")
    formats = ("onnx",) if request.export is None else request.export
    if request.resume and request.overwrite:
        raise UsageError("--resume and --overwrite exclude each other; give one of the two")
    path = request.out
    if path is None:
        path = Path("runs") / (request.source.stem if isinstance(request.source, Path) else "stdin")
    folder = Folder(path, say)
    stored = _stored(path) if request.resume else {}
    if request.resume:
        settings = resumed(request.said, stored)
    else:
        settings = complete(request.said, mask=request.mask is not None)

    picture = pictures.read_picture(request.source, keep_metadata=settings.keep_metadata)
    reference = None if request.reference is None else _reference(request.reference, picture)
    degradation, inputs = _degradation(request, picture, settings)
    if reference is not None and request.reference is not None:
        inputs["reference"] = {"name": request.reference.name, "sha256": _digest(reference)}
    if request.resume:
        _require_same(stored, settings, inputs)
        if summary := _done(stored, path, request.export or ()):
            say("this run is done; nothing is left to resume")
            return summary
    else:
        folder.check_free(request.overwrite)

    torch.set_num_threads(settings.threads)
    device = torch.device(settings.device)
    recipe = settings.recipe()
    devices.require_memory(recipe, picture.channels, picture.size, device, settings.engine)
    fit = prepare(
        degradation,
        recipe,
        seed=settings.seed,
        device=device,
        engine=settings.engine,
        precision=settings.precision,
        reference=_tensor(reference),
    )
    folder.check_room(_bytes_on_disk(fit, settings, len(formats)))

    checkpoint = path / CHECKPOINT
    fresh = not (request.resume and checkpoint.exists())
    if not fresh:
        checkpoints.load(checkpoint, fit)
    versions = {"dip_fast": __version__, "torch": torch.__version__, "numpy": np.__version__}
    record: dict[str, Any] = {
        "status": "running",
        "settings": asdict(settings),
        "recipe": asdict(recipe),
        "inputs": inputs,
        "versions": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "started": stored.get("started") or _now(),
    }
    with contextlib.closing(folder), _interruptible(fit, quiet=request.quiet):
        folder.open(record, fresh=fresh)
        for line in _first_lines(picture, settings, engines.describe(fit.network)):
            say(line)
        if request.resume:
            say("there is no checkpoint yet: starting again" if fresh else f"resumed after step {fit.steps}")
        if request.resume and stored.get("versions") != versions:
            say(f"the run was started with {stored.get('versions')}, which may make a difference")
        recorder = _Recorder(folder, settings.snapshot_every, fit.steps)
        try:
            with Progress(fit, say, quiet=request.quiet) as progress:
                fit.run([progress, recorder])
        except DipFastError as error:
            folder.write("run.json", _json(record | {"status": "failed", "error": str(error), "events": fit.events}))
            raise
        if not fit.steps:  # stopped before there was anything to write
            raise KeyboardInterrupt
        recorder.checkpoint(fit)
        return _finish(fit, folder, record, picture, reference, formats)


def _first_lines(picture: Picture, settings: Settings, fused_blocks: str) -> tuple[str, ...]:
    """Say what is restored, how, and where."""
    height, width = picture.size
    depth = f"{picture.kind.bits} bit{' float' if picture.kind.dtype == 'float32' else ''}"
    device = devices.describe(torch.device(settings.device))
    return (
        f"device {device}, engine {settings.engine}{_products(settings)} (torch {torch.__version__})"
        + (f", {fused_blocks}" if settings.engine == "fused" else ""),
        f"{picture.name}: {width}x{height}, {'gray' if picture.channels == 1 else 'RGB'}, {depth}; "
        f"{settings.task}, preset {settings.preset}, seed {settings.seed}",
        *picture.notes,
    )


def _products(settings: Settings) -> str:
    """Say in which precision products are computed, where there is a choice."""
    return f" in {settings.precision}" if settings.device == "cuda" else ""


class _Recorder:
    """Callback that writes snapshots when they are due, and a checkpoint now and then."""

    def __init__(self, folder: Folder, snapshot_every: int, steps: int) -> None:
        self.folder = folder
        self.every = snapshot_every
        self.steps = steps
        self.written = time.monotonic()

    def __call__(self, fit: Fit) -> None:
        # A fit that has fallen back, or is consolidating, shows no new iterate.
        if fit.steps > self.steps and self.every and fit.steps % self.every == 0:
            image = fit.iterate[0].permute(1, 2, 0).cpu().numpy()
            self.folder.write(f"snapshots/iter_{fit.steps:06}.png", reporting.preview(image))
        self.steps = fit.steps
        if time.monotonic() - self.written > SECONDS_BETWEEN_CHECKPOINTS:
            self.checkpoint(fit)

    def checkpoint(self, fit: Fit) -> None:
        """Write the checkpoint, and the history for who looks in while the fit works."""
        self.folder.write(CHECKPOINT, checkpoints.dump(fit))
        self.folder.write("history.csv", reporting.history_csv(fit.history()))
        self.written = time.monotonic()


def _finish(
    fit: Fit,
    folder: Folder,
    record: dict[str, Any],
    picture: Picture,
    reference: np.ndarray | None,
    formats: tuple[str, ...],
) -> dict[str, Any]:
    """Write the result first, as the exported network draws it, then what explains and redraws it."""
    settings = record["settings"]
    result = fit.result()
    drawing, samples = None, picture.kind.to_samples(result.image)
    try:
        drawing = fitted.from_result(
            result,
            picture.kind,
            picture.extras,
            options={**settings, "recipe": record["recipe"]},
            seed=settings["seed"],
            threads=settings["threads"],
        )
        samples = drawing.samples
        result = replace(result, image=picture.kind.to_unit(drawing.output))
    except Exception as error:  # whatever it is, the fit is worth more
        text = " ".join(str(error).split())
        folder.note(DipFastError(f"{text}; the result was drawn by PyTorch, and there is no model file"))
    written = folder.write_result(
        f"result{picture.kind.suffix}", pictures.encode_samples(samples, picture.kind, picture.extras)
    )
    models = []
    for format_ in formats:
        if drawing is None:
            break
        target = folder.path / f"model{FORMATS[format_].suffix}"
        try:
            models.append(writing.write(drawing, target, format_, threads=settings["threads"]))
        except DipFastError as error:
            folder.note(error)
    summary = {
        "result": str(written),
        "folder": str(folder.path),
        "steps": result.steps,
        "best_step": result.best_step,
        "stop_reason": result.stop_reason,
        "seconds": round(result.seconds, 3),
        "device": settings["device"],
        "engine": settings["engine"],
        "precision": settings["precision"],
        "seed": settings["seed"],
        "psnr": None if reference is None else metrics.psnr(result.image, reference),
        "ssim": None if reference is None else metrics.ssim(result.image, reference),
        "psnr_input": None if reference is None else metrics.psnr(picture.image, reference),
        "ssim_input": None if reference is None else metrics.ssim(picture.image, reference),
        "sha256": _digest(samples),
        "drawn_by": f"torch {torch.__version__}" if drawing is None else drawing.engine,
        "models": models,
        "problems": folder.problems,
    }
    folder.write("history.csv", reporting.history_csv(result.history))
    folder.write("history.png", reporting.history_plot(result.history, result.best_step))
    folder.write("contact_sheet.png", _contact_sheet(folder, picture, result, reference))
    record |= {
        "status": "interrupted" if result.stop_reason == "interrupted" else "done",
        "ended": _now(),
        "seconds_per_step": result.seconds / result.steps,
        "events": result.events,
        "summary": summary,
    }
    folder.write("run.json", _json(record))
    return summary


def _done(stored: dict[str, Any], path: Path, formats: tuple[str, ...]) -> dict[str, Any]:
    """Give the summary of a run that is done, with all that it should have left; nothing otherwise.

    Parameters
    ----------
    stored : dict
        The record.
    path : Path
        The run's folder, which may have been moved.
    formats : tuple of str
        Of the model files that are now asked for by name.
    """
    summary = stored.get("summary")
    if stored.get("status") != "done" or not isinstance(summary, dict) or summary.get("problems"):
        return {}
    result = path / Path(summary["result"]).name
    models = [model | {"path": str(path / Path(model["path"]).name)} for model in summary.get("models", ())]
    wanted = {*(model["path"] for model in models), *(str(path / f"model{FORMATS[name].suffix}") for name in formats)}
    if not result.is_file() or not all(Path(model).is_file() for model in wanted):
        return {}
    return summary | {"result": str(result), "folder": str(path), "models": models}


def _bytes_on_disk(fit: Fit, settings: Settings, models: int) -> int:
    """Estimate what the run writes at most: snapshots, result, models, the checkpoint beside the one it replaces."""
    weights = sum(parameter.nbytes for parameter in fit.network.parameters())
    image = 4 * fit.degradation.channels * math.prod(fit.degradation.size)
    state = 5 * weights + 3 * image  # weights, their average, the best ones, Adam's moments; three pictures
    snapshots = settings.iterations // settings.snapshot_every if settings.snapshot_every else 0
    model = 2 * weights + fit.z.codes.nbytes + 3 * image + 2**18
    # 2**20: sheet, plot and tables
    return 4 * state + snapshots * image // 4 + 2 * image + models * model + 2**20


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
        raise UsageError(
            "cannot resume: picture, mask and reference must be those that the run was started with; "
            "give the same ones, or start again with --overwrite"
        )
    if stored.get("recipe") != json.loads(_json(asdict(settings.recipe()))):
        raise UsageError(
            f"cannot resume: preset {settings.preset} differs between the versions; start again with --overwrite"
        )


def _degradation(request: Request, picture: Picture, settings: Settings) -> tuple[Degradation, dict[str, Any]]:
    """Say what happened to the picture, and identify what came in."""
    target = _tensor(picture.image)
    assert target is not None
    height, width = picture.size
    kind = {"width": width, "height": height, "channels": picture.channels, "dtype": picture.kind.dtype}
    alpha = () if picture.extras.alpha is None else (picture.extras.alpha,)
    inputs = {"picture": {"name": picture.name, **kind, "sha256": _digest(picture.image, *alpha)}}
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
    if reference.kind.dtype != picture.kind.dtype:
        return reference.image
    (low, high), (own_low, own_high) = picture.kind.value_range, reference.kind.value_range
    return ((own_low + reference.image * (own_high - own_low) - low) / (high - low)).astype(np.float32)


def _contact_sheet(folder: Folder, picture: Picture, result: Result, reference: np.ndarray | None) -> bytes:
    """Input, iterates, result and reference side by side."""
    shown = list(folder.snapshots().items())
    if len(shown) > MOST_TILES:
        shown = [shown[i] for i in np.linspace(0, len(shown) - 1, MOST_TILES).round().astype(int)]
    tiles = [("input", picture.image)]
    for step, path in shown:
        with contextlib.suppress(UsageError):  # the disk was full when it was written, or the user took it away
            tiles.append((f"step {step}", pictures.read_picture(path).image))
    tiles.append(("result", result.image))
    if reference is not None:
        tiles.append(("reference", reference))
    sheet = contact_sheet([image for _, image in tiles], [label for label, _ in tiles])
    return reporting.preview(sheet)


@contextlib.contextmanager
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


def _digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def _json(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=2, allow_nan=False) + "\n").encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _lock(folder: int) -> None:
    """Lock a folder for as long as its descriptor is open, whatever ends the process."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if isinstance(error, BlockingIOError):  # otherwise: some network file systems have no locks
            raise
