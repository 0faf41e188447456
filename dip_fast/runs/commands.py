"""The commands that repeat, resume and replay a run, quoted for a shell.  Importing this loads no numpy."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dip_fast.presets import PRESETS
from dip_fast.tasks import TASKS

if TYPE_CHECKING:
    from dip_fast.runs.record import Record

STDIN = "-"


def replay(model: Mapping[str, Any]) -> str:
    """Write the command that draws a model's picture again."""
    from dip_fast.models.formats import FORMATS  # here, since it imports numpy

    trust = ["--trust"] if FORMATS[model["format"]].runs_code else []
    return _line(["dip-fast", "replay", as_path(model["path"]), *trust])


def repeat(record: Record, folder: str, chunk: int | None = None) -> str:
    """Write the command that makes the same run once more, beside the first; of a stack, with chunks of this size."""
    size = [] if chunk is None else _option("chunk", chunk)
    return _line([*_start(record), *_settings(record), *size, "--out", f"{folder.rstrip('/')}-again"])


def resume(record: Record, folder: str) -> str:
    """Write the command that goes on with the run."""
    return _line([*_start(record), "--out", folder, "--resume"])


def report(folder: str) -> str:
    """Write the command that writes the report again."""
    return _line(["dip-fast", "report", as_path(folder)])


def pick(folder: str) -> str:
    """Write the command that lists what there is to pick."""
    return _line(["dip-fast", "pick", as_path(folder)])


def as_path(path: str) -> str:
    """Write a path so that no command takes it for an option."""
    return f"./{path}" if path.startswith("-") and path != STDIN else path


def _start(record: Record) -> list[str]:
    """Name the picture and the other files."""
    files = {name: record.files.get(name, facts["name"]) for name, facts in record.inputs.items()}
    picture = files.pop("picture")
    words = ["dip-fast", *(["stack", *map(as_path, record.sources)] if record.sources else ["run", as_path(picture)])]
    for name, path in files.items():
        words += _option(name, path)
    facts = record.inputs["picture"]
    for name, fact in (("page", "page"), ("preview", "region"), ("max_size", "max_size")):
        if fact in facts:
            words += _option(name, facts[fact])
    return words


def _settings(record: Record) -> list[str]:
    """Spell the settings as options; each is given, since defaults may be others elsewhere."""
    job = record.settings
    words = [*_option("task", job.task), *_option("preset", job.preset)]
    if job.upsampling is not None:
        words += _option("upsampling", job.upsampling)
    if job.iterations is not None:
        words += _option("iterations", job.iterations)
    if PRESETS[job.preset].recipe.masking is None:  # steps of others have no such choice
        words += [*_option("stop", job.stop), *_option("tile", job.tile)]
    words += ["--fused" if job.engine == "fused" else "--no-fused", *_option("device", job.device)]
    if job.device == "cuda":
        words += _option("precision", job.precision)
    words += [*_option("threads", job.threads), *_option("seed", job.seed)]
    own = {option.name: option.type for option in TASKS[job.task].options}
    for name, value in job.options.items():
        words += _option(name, value, flag=own.get(name) is bool)
    if job.keep_metadata:
        words.append("--keep-metadata")
    models = [] if record.summary is None else record.summary.models
    formats = [*dict.fromkeys(model["format"] for model in models)]
    if record.sources:
        return [*words, *(_option("export", ",".join(formats)) if formats else [])]
    words += _option("snapshot_every", job.snapshot_every)
    return [*words, *_option("export", ",".join(formats) or "none")]


def _option(name: str, value: object, *, flag: bool = False) -> list[str]:
    """Spell an option: with its value, or as a flag; a value that starts with a dash is joined to its name."""
    dashed = name.replace("_", "-")
    if flag:
        return [f"--{dashed}" if value else f"--no-{dashed}"]
    return [f"--{dashed}={value}"] if str(value).startswith("-") else [f"--{dashed}", str(value)]


def _line(words: Sequence[str]) -> str:
    return shlex.join(words)
