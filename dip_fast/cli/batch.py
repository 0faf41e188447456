"""``dip-fast batch``."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dip_fast.cli.output import say, show
from dip_fast.cli.parameters import FolderPath, debug_option, json_option
from dip_fast.cli.restoring import Restoring, how_options, what_options
from dip_fast.cli.signals import INTERRUPTED, importing
from dip_fast.errors import Argument, DipFastError, UsageError
from dip_fast.names import counted

if TYPE_CHECKING:
    from dip_fast.runs.batch.control import Batch, Result
    from dip_fast.runs.batch.manifest import Row

SOME_FAILED = 3  # exit code
SECONDS_BETWEEN_LINES = 30.0
SHOWN = 20  # pictures that are listed by name at the end


class Shard(click.ParamType[tuple[int, int]]):
    """A part of so many, as 3/100."""

    name = "shard"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Parse the two numbers."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", value) if isinstance(value, str) else None
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            self.fail(f"{value!r} must be a part and the number of parts, such as from 1/100 to 100/100", param, ctx)
        return int(found[1]), int(found[2])


@click.command(cls=Restoring, short_help="Restore many pictures, and go on where it was stopped.")
@click.argument("sources", nargs=-1, type=click.Path())
@click.option("-o", "--out", type=FolderPath(path_type=Path, file_okay=False), help="Folder for all results.")
@click.option("--recursive", is_flag=True, help="Look into the folders of a folder too.")
@what_options
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of clean pictures of the same names, to log PSNR and SSIM with.",
)
@click.option(
    "--mask-suffix",
    metavar="TEXT",
    help="Masks lie beside their pictures, and have this more in their names: with _mask, a_mask.png is that of a.png.",
)
@how_options
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Pictures at a time.  [default: 1, or as many as a cluster has room for]",
)
@click.option(
    "--cluster",
    metavar="ADDRESS",
    help="Restore them on a Ray cluster: auto for the one that this machine is part of, or HOST:PORT of its head.",
)
@click.option("--gpus", type=float, metavar="N", help="GPUs of a picture on a cluster, such as 0.5.")
@click.option("--ship", is_flag=True, help="Send pictures and runs to the nodes and back, even where a disk is shared.")
@click.option(
    "--shard", type=Shard(), metavar="I/N", help="Restore the I-th of N parts only, as a job of an array does."
)
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    default=2,
    metavar="N",
    help="How often a picture is tried again whose process was killed or whose fit failed.  [default: 2]",
)
@click.option(
    "--max-failures",
    type=click.IntRange(min=1),
    default=20,
    metavar="N",
    help="Begin nothing new after so many failures in a row.  [default: 20]",
)
@click.option("--overwrite", is_flag=True, help="Replace runs of other pictures or settings.")
@click.option("--dry-run", is_flag=True, help="List what would be done, and do nothing.")
@click.option(
    "--status",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write manifest.csv of a batch's folder again from the runs in it, and print how far they are.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("-v", "--verbose", is_flag=True, help="Print each picture, and each file that is left out.")
@json_option
@click.option("--json-events", is_flag=True, help="Print what happens as JSON on standard output, a line each.")
@debug_option
def batch(
    sources: tuple[str, ...],
    out: Path | None,
    dry_run: bool,
    status: Path | None,
    quiet: bool,
    verbose: bool,
    as_json: bool,
    json_events: bool,
    **options: Any,
) -> int:
    """Restore many pictures: SOURCES are folders, files, and patterns in quotes.

    The run of sub/a.png goes to the folder sub/a.png in --out, as dip-fast run would write it; beside them are
    manifest.csv, a row for each picture, and index.html.  The same command goes on where it was stopped or killed, and
    skips what is done.
    Ctrl-C lets the pictures under way end with a checkpoint; a second one ends them at once.

    Exit codes: 0 all are done; 1 failed, as where no process can start; 2 wrong usage; 3 some pictures failed, for
    reasons that the manifest has; 130 stopped by the user.
    """
    if status is not None:
        if sources or out is not None:
            raise UsageError("{} looks at a batch and starts none; leave out the rest", Argument("status"))
        return _status(status, as_json=as_json or json_events)
    if not sources:
        raise UsageError("name pictures, folders or patterns, as in dip-fast batch photos --out restored")
    if out is None:
        raise UsageError("{} is missing; name the folder for all results", Argument("out"))
    if as_json and json_events:
        both = Argument("json_events", True), Argument("json", True)
        raise UsageError("{} prints the summary too; leave out {}", *both)
    with importing():
        from dip_fast.runs.batch import control

    asked = _asked(sources, out, **options)
    if dry_run:
        return _list(asked, verbose=verbose, as_json=as_json or json_events)
    shower = Shower(quiet=quiet, verbose=verbose, json_events=json_events)
    try:
        result = control.run(asked, shower)
    finally:
        shower.close()
    return _report(result, quiet=quiet, as_json=as_json, json_events=json_events)


def _asked(
    sources: tuple[str, ...],
    out: Path,
    *,
    fused: bool | None,
    cluster: str | None,
    gpus: float | None,
    ship: bool,
    **options: Any,
) -> Batch:
    """Sort the options into what is asked of the batch and what of each picture."""
    from dip_fast.runs.batch.cluster import where, workers_on
    from dip_fast.runs.batch.control import Batch
    from dip_fast.runs.batch.interface import settings

    names = ("recursive", "workers", "retries", "max_failures", "shard")
    of_batch = {name: options.pop(name) for name in names}
    if fused is not None:
        options["engine"] = "fused" if fused else "plain"
    on = where(cluster, gpus, ship=ship)
    of_batch["workers"] = workers_on(on, of_batch["workers"])
    return Batch(sources, out, settings(of_batch["workers"], on, **options), cluster=on, **of_batch)


def _list(asked: Batch, *, verbose: bool, as_json: bool) -> int:
    """Print what would be done."""
    from dip_fast.runs.batch import control

    found = control.planned(asked)
    if asked.cluster is None:  # whose nodes may have other devices
        with importing():
            from dip_fast.runs.batch import work
        work.check(asked.settings)
    if as_json:
        rows = [found.rows[name] for name in sorted(found.rows)]
        show(json.dumps({"waiting": [item.name for item in found.items], "rows": rows, "ignored": found.ignored}))
        return 0
    for item in found.items:
        show(f"{item.picture} -> {item.folder}" + "".join(f", {name} {path}" for name, path in item.files.items()))
    for row in found.rows.values():
        if row["status"] in control.FAULTS:
            show(f"{row['status']}: {row['path']}: {row['error']}")
    _name_ignored(found.ignored, verbose=verbose)
    show(f"{len(found.items)} to restore, {found.skipped} done, {counted(len(found.ignored), 'other file')} ignored")
    return 0


def _name_ignored(ignored: list[str], *, verbose: bool) -> None:
    for path in ignored if verbose else ():
        say(f"ignored, not a picture: {path}")


def _status(folder: Path, *, as_json: bool) -> int:
    """Print how far the runs of a folder are, and write its manifest again."""
    from dip_fast.runs.batch import control

    result = control.status(folder)
    show(json.dumps(_facts(result)) if as_json else _words(result.counts))
    if not as_json:
        _name_faults(result.rows)
        show(f"manifest: {result.manifest}")
    return 0


def _report(result: Result, *, quiet: bool, as_json: bool, json_events: bool) -> int:
    """Print what a batch gave, and choose the exit code."""
    if json_events:
        show(json.dumps({"event": "done", **_facts(result)}))
    elif as_json:
        show(json.dumps(_facts(result)))
    elif not quiet:
        show(_words(result.counts, result.skipped))
        show(f"manifest: {result.manifest}" + ("" if result.index is None else f"\nindex: {result.index}"))
    if result.is_stopped:
        say("dip-fast: stopped by the user; the same command goes on")
        return INTERRUPTED
    if result.gave_up:
        say("dip-fast: too many pictures failed in a row, and nothing more was begun; see --max-failures")
    elif result.faults:
        say(f"dip-fast: {result.faults} of {counted(len(result.rows), 'picture')} failed; {result.manifest} says why")
    return SOME_FAILED if result.faults or result.gave_up else 0


def _facts(result: Result) -> dict[str, Any]:
    """Describe a batch for another program."""
    return {
        "counts": result.counts,
        "skipped": result.skipped,
        "manifest": str(result.manifest),
        "index": None if result.index is None else str(result.index),
        "rows": result.rows,
    }


def _words(counts: dict[str, int], before: int = 0) -> str:
    """Write how many pictures there are of each status, and how many of them were done before."""
    words = {status: f"{count} {status}" for status, count in counts.items()}
    if before:
        words["done"] += f" ({before} before)"
    return ", ".join(words.values()) or "no pictures"


def _name_faults(rows: list[Row], put: Callable[[str], None] = show) -> None:
    """Name some of the pictures that failed."""
    failed = [row for row in rows if row["error"] is not None]
    for row in failed[:SHOWN]:
        put(f"{row['status']}: {row['path']}: {row['error']}")
    if len(failed) > SHOWN:
        put(f"... and {len(failed) - SHOWN} more")


class Shower:
    """Shows what happens in a batch: a bar on a terminal, a line now and then anywhere else, or events.

    Parameters
    ----------
    quiet, verbose : bool
        Whether to show nothing, or each picture.
    json_events : bool
        Whether to print events in place of anything else.
    """

    def __init__(self, *, quiet: bool, verbose: bool, json_events: bool) -> None:
        self.quiet, self.verbose, self.json_events = quiet, verbose, json_events
        self.total = self.done = self.failed = 0
        self.left: float | None = None
        self.printed = time.monotonic()
        self.bar: Any = None

    def __call__(self, event: dict[str, Any]) -> None:
        """Show an event."""
        if self.json_events:
            with contextlib.suppress(DipFastError):  # a program that takes them no more is no reason to stop
                show(json.dumps(event, allow_nan=False))
        elif not self.quiet:
            kind = event["event"]
            if kind == "batch":
                self._begin(event)
            elif kind == "picture":
                self._picture(event)
            elif kind == "retry":
                self._say(f"again: {event['picture']}: {event['error']}")
            elif kind == "stopping" and event["signals"] == 1:
                self._say("stopping: what is under way ends with a checkpoint; once more to end it at once")
            elif kind == "note" and (self.verbose or "picture" not in event):
                self._say(f"{event['picture']}: {event['text']}" if "picture" in event else event["text"])
            self._line_by_line()

    def close(self) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()

    def _begin(self, event: dict[str, Any]) -> None:
        self.total = event["waiting"]
        done = f", {counted(event['done'], 'is done', 'are done')}" if event["done"] else ""
        faults = f", {len(event['faults'])} cannot be restored" if event["faults"] else ""
        ignored = f", {counted(len(event['ignored']), 'other file')} ignored" if event["ignored"] else ""
        self._say(f"{counted(event['waiting'], 'picture')} to restore{done}{faults}{ignored}")
        _name_faults([{"path": fault["picture"], **fault} for fault in event["faults"]], self._say)
        _name_ignored(event["ignored"], verbose=self.verbose)
        if self.total and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=self.total,
                file=sys.stderr,
                bar_format="{n_fmt} of {total_fmt} |{bar}|{postfix}",
                ncols=80,
                nrows=2,  # as of a run's bar
            )

    def _picture(self, event: dict[str, Any]) -> None:
        status = event["status"]
        self.done, self.left = event["done"], event["seconds_left"]
        is_fault = status not in ("done", "interrupted")
        self.failed += is_fault
        if is_fault or self.verbose:
            self._say(f"{status}: {event['picture']}" + (f": {event['error']}" if event["error"] else ""))
        if self.bar is not None:
            self.bar.set_postfix_str(self._remaining(), refresh=False)
            self.bar.update()

    def _line_by_line(self) -> None:
        """Print how far it is, now and then, where there is no bar."""
        if self.bar is None and self.total and time.monotonic() - self.printed > SECONDS_BETWEEN_LINES:
            self.printed = time.monotonic()
            failed = f"{self.failed} failed" if self.failed else ""
            self._say(", ".join(filter(None, [f"{self.done} of {self.total}", failed, self._remaining()])))

    def _remaining(self) -> str:
        from tqdm import tqdm

        return "" if self.left is None else f"{tqdm.format_interval(self.left)} left"

    def _say(self, line: str) -> None:
        """Print a line without disturbing the bar."""
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        else:
            say(line)
