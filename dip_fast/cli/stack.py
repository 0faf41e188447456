"""``dip-fast stack``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from dip_fast.cli import run as one
from dip_fast.cli.output import greet
from dip_fast.cli.parameters import FolderPath, debug_option
from dip_fast.cli.restoring import Restoring
from dip_fast.cli.signals import importing
from dip_fast.errors import Argument, UsageError
from dip_fast.tasks import TASKS

_OWN_WORDS = {
    "reference": "Clean pictures, a stack as the first, to log PSNR and SSIM with.",
    "export": "Formats of model files, one for each picture, which then draw the results: onnx, torchscript, pt2, with "
    "commas between them.  [default: none]",
    "resume": "Go on with the run in --out, as if it had never stopped.",
}
_SHARED = (
    *("task", "reference", "preset", "network", "upsampling", "iterations", "fused", "device", "precision", "threads"),
    *("seed", "keep_metadata", "export", "resume", "overwrite", "quiet", "verbose", "as_json", "json_events"),
)


@click.command(cls=Restoring, short_help="Denoise frames or planes with one network.")
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", type=FolderPath(path_type=Path), required=True, help="Folder for the results.")
@click.option(
    "--chunk",
    type=click.IntRange(min=1),
    metavar="N",
    help="Pictures that one network is fitted to, at most.  [default: as many as memory allows]",
)
@one.shared(_SHARED, _OWN_WORDS)
@debug_option
def stack(
    sources: tuple[Path, ...],
    out: Path,
    chunk: int | None,
    reference: Path | None,
    fused: bool | None,
    export: tuple[str, ...] | None,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    verbose: bool,
    as_json: bool,
    json_events: bool,
    **options: Any,
) -> int:
    """Denoise the pictures of a stack with one network: frames of a film, planes of a volume, channels.

    SOURCES is a TIFF file of several pages, OME-TIFF and hyperstacks of ImageJ among them; a folder; a pattern such as
    frame_%04d.png; or files.  The results lie in the folder --out: a file of the same name, axes and pixel size, or a
    file of its name for each picture.  run.json, and a report and a contact sheet of some pictures, lie beside them.
    Where the histogram jumps from a picture to the next, another scene and another network begin.

    Exit codes: 0 done; 1 failed; 2 wrong usage or input; 130 stopped by the user, to go on with --resume.
    """
    if as_json and json_events:
        both = Argument("json_events", True), Argument("json", True)
        raise UsageError("{} prints the summary too; leave out {}", *both)
    if not quiet and not json_events:
        greet()
    from dip_fast.pictures.stacks import open_stack

    open_stack(sources).close()  # before torch is imported, which takes seconds
    with importing():
        from dip_fast.device.memory import keep_memory
        from dip_fast.runs.stack.run import StackRequest, restore

    keep_memory()
    names = {entry.name for task in TASKS.values() for entry in task.inputs}
    inputs = tuple(name for name in sorted(names) if options.pop(name, None) is not None)
    asked = {name: value for name, value in options.items() if value is not None}
    if fused is not None:
        asked["engine"] = "fused" if fused else "plain"
    going = {"resume": resume, "overwrite": overwrite, "quiet": quiet, "verbose": verbose}
    request = StackRequest(sources, asked, out, inputs, chunk, reference, export, **going)
    emit = one.emitted if json_events else None
    summary = restore(request, one.noter(emit) if emit else one.speaker(quiet), emit)
    facts = {"event": "done", **asdict(summary)} if json_events else asdict(summary) if as_json else None
    return one.reported(summary, facts, quiet=quiet or json_events, to_stdout=False, has_folder=True)
