"""The command line: its verbs, and how each of them ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from dip_fast import __version__
from dip_fast.cli import signals
from dip_fast.cli.batch import batch
from dip_fast.cli.bench import bench
from dip_fast.cli.compare import compare
from dip_fast.cli.lists import formats, info, presets, tasks
from dip_fast.cli.models import export, replay
from dip_fast.cli.output import complain
from dip_fast.cli.parameters import Verbs, spelling
from dip_fast.cli.pick import pick
from dip_fast.cli.report import report
from dip_fast.cli.run import run
from dip_fast.cli.stack import stack
from dip_fast.cli.ui import ui
from dip_fast.errors import in_words


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="dip-fast")
def cli() -> None:
    """Restore one damaged picture with no training data: a fast Deep Image Prior.

    \b
    dip-fast run photo.png                     denoise
    dip-fast run photo.png --mask mask.png     fill in what the mask leaves black
    dip-fast batch photos --out restored       restore each picture of a folder
    dip-fast replay runs/photo/model.onnx      draw the result again, from the fitted network
    """  # noqa: D301  (click looks for the control character in the first line, after which it keeps the lines)


for verb in (run, batch, stack, compare, report, pick, ui, export, replay, formats, presets, tasks, bench, info):
    cli.add_command(verb)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a verb and exit with its code; an error is one line on standard error."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if sys.stderr is None:  # closed by the caller; print would take standard output in its place
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  (it stays open)
    spell = spelling(cli.commands.get(arguments[0]) if arguments else None)
    try:
        with signals.handled(signals.interrupt), spell.in_use():
            code = cli.main(arguments, prog_name="dip-fast", standalone_mode=False)
    except click.exceptions.Exit as exit_request:
        code = exit_request.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        code = 2
    except click.ClickException as error:
        code = complain(error.format_message(), error.exit_code, arguments)
    except (KeyboardInterrupt, click.exceptions.Abort):
        code = complain("stopped by the user", signals.INTERRUPTED, arguments)
    except Exception as error:
        shown = in_words(error)
        code = complain(shown.spelled(spell), shown.exit_code, arguments)
    sys.exit(code)
