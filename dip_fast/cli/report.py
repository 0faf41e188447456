"""``dip-fast report``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from dip_fast.cli.output import greet, say, show
from dip_fast.cli.parameters import debug_option, json_option
from dip_fast.cli.signals import importing


@click.command(short_help="Write the report of a run, or of many.")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option(
    "--inputs",
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder that holds the picture and the other files of the run by now.  [default: where they were]",
)
@click.option("--overwrite", is_flag=True, help="Replace an index.html that is not of this program.")
@json_option
@debug_option
def report(run_dir: Path, inputs: Path | None, overwrite: bool, as_json: bool) -> int:
    """Write the report.html of RUN_DIR again, the folder of a run or a stack; or the index.html of one that holds such.

    The picture is read once more, and has to be the one that was restored.  The index has a row for each run
    below the folder, with its result and a link to its report.  Exit codes: 0 done; 1 it could not be written; 2 wrong
    usage or input.
    """
    greet(then_stdout=True)
    with importing():
        from dip_fast.runs import rewriting

    written = rewriting.rewrite(run_dir, say, inputs=inputs, overwrite=overwrite)
    show(json.dumps({"report": str(written)}) if as_json else f"report: {written}")
    return 0
