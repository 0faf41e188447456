"""``dip-fast compare``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from dip_fast.cli import run as one
from dip_fast.cli.output import greet, show
from dip_fast.cli.parameters import FolderPath, Named, debug_option
from dip_fast.cli.restoring import Restoring
from dip_fast.cli.signals import INTERRUPTED, importing
from dip_fast.errors import DipFastError
from dip_fast.names import counted
from dip_fast.presets import PRESETS
from dip_fast.tasks import TASKS

_SHARED = (
    *("task", "page", "reference", "upsampling", "iterations", "stop", "fused", "device", "precision", "threads"),
    *("snapshot_every", "keep_metadata", "preview", "max_size", "export", "overwrite", "quiet", "verbose", "as_json"),
)
_OWN_WORDS = {"overwrite": "Replace the runs that are there, in place of taking them as they are."}


class _List(click.ParamType[tuple[Any, ...]]):
    """Values of a kind with commas between them."""

    def __init__(self, kind: click.ParamType[Any]) -> None:
        self.kind = kind
        self.name = kind.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Convert each, once."""
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(dict.fromkeys(self.kind.convert(part.strip(), param, ctx) for part in parts))


@click.command(cls=Restoring, short_help="Restore a picture with several presets or seeds.")
@click.argument("picture", type=click.Path(path_type=Path))
@click.option(
    "--presets",
    type=_List(Named(lambda: PRESETS)),
    metavar="NAMES",
    help="Presets to compare, with commas between them; see dip-fast presets.",
)
@click.option(
    "--seeds",
    type=_List(click.IntRange(0, 2**63 - 1)),
    metavar="NUMBERS",
    help="Seeds to compare, with commas between them; with --presets, each of both.",
)
@click.option(
    "-o",
    "--out",
    type=FolderPath(path_type=Path),
    help="Folder for the comparison and for the folders of the runs.  [default: runs/<name of the picture>-compared]",
)
@one.shared(_SHARED, _OWN_WORDS)
@debug_option
def compare(
    picture: Path,
    presets: tuple[str, ...] | None,
    seeds: tuple[int, ...] | None,
    out: Path | None,
    preview: str | None,
    max_size: int | None,
    reference: Path | None,
    fused: bool | None,
    export: tuple[str, ...] | None,
    page: int | None,
    overwrite: bool,
    quiet: bool,
    verbose: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Restore PICTURE with several presets or seeds, and lay the results beside each other.

    Each goes to a folder of its own in --out, as dip-fast run writes it; one that is done already is taken as it is,
    and one that was stopped goes on.  comparison.csv and comparison.json hold the table that is printed,
    comparison.png crops of all of them, pixel for pixel.

    Exit codes: 0 done; 1 failed; 2 wrong usage or input; 130 stopped by the user: the same command goes on.
    """
    if not quiet:
        greet()
    content = one.content_of(str(picture))
    with importing():
        from dip_fast.device.memory import keep_memory
        from dip_fast.runs import compare as runs
        from dip_fast.runs.material import Request
        from dip_fast.runs.parts import Part

    keep_memory()
    names = {entry.name for task in TASKS.values() for entry in task.inputs}
    inputs = {name: path for name in names if (path := options.pop(name, None)) is not None}
    asked = {name: value for name, value in options.items() if value is not None}
    if fused is not None:
        asked["engine"] = "fused" if fused else "plain"
    ways = {}
    for preset in presets or (None,):
        for seed in seeds or (None,):
            name = "-".join([*([preset] if preset else []), *([] if seed is None else [f"seed-{seed}"])])
            own = {key: value for key, value in (("preset", preset), ("seed", seed)) if value is not None}
            ways[name] = Request(
                source=picture,
                content=content,
                asked=asked | own,
                inputs=inputs,
                part=Part(preview, max_size),
                reference=reference,
                overwrite=overwrite,
                quiet=quiet,
                verbose=verbose,
                export=export,
                page=page,
            )
    ways.pop("", None)  # there is nothing to compare
    say = one.speaker(quiet)
    found = runs.compare(ways, Path("runs", f"{picture.stem}-compared") if out is None else out, say)
    if as_json:
        show(json.dumps([asdict(row) for row in found.rows], allow_nan=False))
    elif not quiet:
        show("\n".join([*runs.table(found.rows), f"crops: {found.folder / runs.SHEET}"]))
    if found.problems:
        raise DipFastError(
            f"{found.problems[0]}; {counted(len(found.problems), 'file')} of the runs could not be written"
        )
    if found.interrupted:
        say("stopped; go on with the same command")
        return INTERRUPTED
    return 0
