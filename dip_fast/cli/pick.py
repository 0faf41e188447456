"""``dip-fast pick``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dip_fast.cli.output import greet, say, show
from dip_fast.cli.parameters import debug_option, json_option
from dip_fast.cli.signals import importing
from dip_fast.errors import DipFastError

if TYPE_CHECKING:
    from dip_fast.runs.picking import Choices


@click.command(short_help="Pick another answer of a run that is over.")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--step", type=click.IntRange(min=1), metavar="N", help="Answer of an earlier step.  [default: as it is]")
@click.option(
    "--strength",
    type=click.FloatRange(0, 1),
    metavar="S",
    help="Blend with the input: from 0, the input, to 1, the answer of the fit.  [default: as it is]",
)
@click.option(
    "--inputs",
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder that holds the picture and the other files of the run by now.  [default: where they were]",
)
@click.option("--overwrite", is_flag=True, help="Replace files of the run that you have changed since.")
@json_option
@debug_option
def pick(
    run_dir: Path, step: int | None, strength: float | None, inputs: Path | None, overwrite: bool, as_json: bool
) -> int:
    """Pick another answer of RUN_DIR, a run's folder: that of an earlier step, or a blend with the input.

    Result, report and model files are written anew, and the model draws the new result byte for byte.  Without --step
    and --strength it lists what there is.  The first answer comes back with its step and --strength 1.  Exit codes: 0
    done; 1 it could not be written; 2 wrong usage or input.
    """
    greet(then_stdout=True)
    with importing():
        from dip_fast.runs import picking

    if step is None and strength is None:
        found = picking.choices(run_dir)
        show(json.dumps(asdict(found)) if as_json else _described(found))
        return 0
    summary = picking.pick(run_dir, say, step=step, strength=strength, inputs=inputs, overwrite=overwrite)
    if as_json:
        show(json.dumps(asdict(summary), allow_nan=False))
    else:
        blend = "" if summary.strength == 1 else f", strength {summary.strength:g}"
        show(f"answer from step {summary.best_step}{blend}\nresult: {summary.result}")
    if summary.problems:
        raise DipFastError(f"{summary.problems[0]}; the result is in {summary.result}")
    return 0


def _described(found: Choices) -> str:
    """List what there is to pick, in words."""
    steps = ", ".join(f"{step} (the first answer)" if step == found.first else str(step) for step in found.steps)
    strength = f"strength: 1 alone; {found.no_blend}" if found.no_blend else "strength: from 0 to 1"
    lines = [f"now: step {found.step}, strength {found.strength:g}", f"steps: {steps}"]
    return "\n".join([*lines, *([f"no others: {found.why}"] if found.why else []), strength])
