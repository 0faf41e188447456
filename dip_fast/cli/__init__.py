"""Verbs and options of ``dip-fast``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NoReturn

from dip_fast.cli import signals


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code; an error is one line on standard error.

    Nothing is imported before signals are handled.

    Parameters
    ----------
    arguments : sequence of str, optional
        Those of the process by default, which then does nothing else.
    """
    before = signals.handle(signals.end_at_once)
    try:
        from dip_fast.cli.verbs import main

        main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
        if arguments is None:  # all is printed; a signal has nothing to say while the interpreter takes itself down
            signals.handle(lambda *_: os._exit(code))
        raise
    finally:
        if arguments is not None:
            signals.restore(before)


__all__ = ["main"]
