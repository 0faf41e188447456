"""``dip-fast ui``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click

from dip_fast.cli.output import greet, show
from dip_fast.cli.parameters import debug_option
from dip_fast.cli.signals import importing
from dip_fast.errors import UsageError


@click.command(short_help="Open a page in the browser to restore pictures.")
@click.argument("place", metavar="[PICTURE|FOLDER]", type=click.Path(path_type=Path), default=".")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="runs",
    help="Folder for the folders of runs.  [default: runs]",
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, metavar="N", help="[default: one that is free]")
@click.option("--no-browser", is_flag=True, help="Print the address only.")
@debug_option
def ui(place: Path, out: Path, port: int, no_browser: bool) -> int:
    """Open a page in the browser to restore PICTURE, or pictures of FOLDER, and to steer runs.

    The page is for this machine alone, and its address holds a secret.  Pictures are those of the folder, and what you
    drop on the page.  A run is a process of its own: it goes on when the page is closed, or the server ends, and is
    there again when you start it in the same place.  Ctrl-C ends the server.
    """
    for name in ("starlette", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            raise UsageError(f'{name} is missing, which the page needs; pip install "dip-fast[ui]"')
    greet(then_stdout=True)
    with importing():
        from dip_fast.pictures.files import is_there
        from dip_fast.ui.desk import Desk
        from dip_fast.ui.server import serve

    if not is_there(place):
        raise UsageError("{} is not there; name a picture or a folder", place)
    whole = place.resolve()
    root, only = (whole, None) if whole.is_dir() else (whole.parent, whole.name)

    def ready(address: str) -> None:
        show(f"open {address}\nCtrl-C ends the server; runs go on")
        if not no_browser:
            _open(address, out)

    serve(Desk(root, out.absolute(), only), port, ready)
    return 0


def _open(address: str, out: Path) -> None:
    """Open the address in the browser, by way of a file: other users can read the arguments of a browser's process."""
    import os
    import webbrowser

    from dip_fast.ui.desk import Desk

    page = Desk(out, out.absolute()).own / "open.html"
    page.unlink(missing_ok=True)
    with os.fdopen(os.open(page, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f'<!DOCTYPE html><title>dip-fast</title><meta http-equiv="refresh" content="0; url={address}">')
    webbrowser.open(page.as_uri())
