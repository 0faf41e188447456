"""The server of the page: what each address answers.  State is in the folders (`jobs`, `desk`), not here."""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from dip_fast.errors import DipFastError, UsageError
from dip_fast.models import onnx_engine
from dip_fast.models.model import open_model
from dip_fast.runs import report
from dip_fast.runs.record import Record, Summary, UnreadableError
from dip_fast.runs.reporting import preview
from dip_fast.runs.rewriting import part_of
from dip_fast.ui import desk, guard, orders
from dip_fast.ui.desk import Desk
from dip_fast.ui.jobs import Jobs

HOST = "127.0.0.1"
SCRIPTS = ("ui.js", "paint.js", "brush.js", "look.js", "more.js")
# A report that somebody else's folder brings may run its script, in an origin of its own, and ask for nothing.
REPORT = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; sandbox allow-scripts"
)


def application(place: Desk, token: str, hosts: tuple[str, ...]) -> guard.Guard:
    """Make the application of a desk, for those who know the token.

    Parameters
    ----------
    place : Desk
    token : str
    hosts : tuple of str
        What the Host header may be.
    """
    place.make()
    pages = Pages(place, Jobs(place))
    routes = [
        Route("/", pages.page),
        Route("/ui.css", pages.style),
        *(Route(f"/{name}", pages.script) for name in SCRIPTS),
        Route("/files", pages.files),
        Route("/picture", pages.picture),
        Route("/costs", pages.costs),
        Route("/dropped", pages.drop, methods=["POST"]),
        Route("/mask", pages.mask),
        Route("/mask", pages.paint, methods=["POST"]),
        Route("/mask-file", pages.load, methods=["POST"]),
        Route("/runs", pages.runs),
        Route("/runs", pages.start, methods=["POST"]),
        Route("/runs/{name}", pages.run),
        Route("/runs/{name}/stop", pages.stop, methods=["POST"]),
        Route("/runs/{name}/resume", pages.resume, methods=["POST"]),
        Route("/runs/{name}/pick", pages.pick, methods=["POST"]),
        Route("/runs/{name}/look/{what}", pages.look),
        Route("/runs/{name}/file/{what}", pages.file),
    ]
    handlers: dict[Any, Any] = {DipFastError: _refused, HTTPException: _failed, OSError: _gone}
    return guard.Guard(Starlette(routes=routes, exception_handlers=handlers), token, hosts)


def _refused(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 422)


def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, {"connection": "close"})


def _gone(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": getattr(error, "strerror", None) or "it cannot be read"}, 404)


class Pages:
    """The answers.

    Parameters
    ----------
    place : Desk
    jobs : Jobs
    """

    def __init__(self, place: Desk, jobs: Jobs) -> None:
        self.desk, self.jobs = place, jobs

    async def page(self, request: Request) -> Response:
        """Answer with the page."""
        first = "" if self.desk.only is None else f"{desk.HERE}/{self.desk.only}"
        text = report.filled("ui.html", tasks=json.dumps(orders.tasks()), folder=self.desk.root.name, first=first)
        return Response(text, media_type="text/html")

    async def style(self, request: Request) -> Response:
        """Answer with the style, which begins as that of the report does."""
        text = "".join((report.DATA / name).read_text() for name in ("report.css", "ui.css"))
        return Response(text, media_type="text/css")

    async def script(self, request: Request) -> Response:
        """Answer with a script."""
        name = request.url.path.rpartition("/")[2]
        return Response((report.DATA / name).read_text(), media_type="text/javascript")

    async def files(self, request: Request) -> Response:
        """List a folder."""
        folder = request.query_params.get("folder", "")
        return JSONResponse(await _aside(self.desk.files, folder))

    async def picture(self, request: Request) -> Response:
        """Show a picture of the desk."""
        path = self.desk.picture(request.query_params.get("of", ""))
        return _png(await _aside(desk.shown, path))

    async def costs(self, request: Request) -> Response:
        """List the presets, with what they take for a picture."""
        asked = request.query_params
        facts = await _aside(self.desk.facts, self.desk.picture(asked.get("of", "")))
        most = asked.get("max_size", "")
        order = {"preview": asked.get("preview"), "max_size": int(most) if most.isdecimal() else None}
        _, size = orders.part(order, facts.size)
        found = await _aside(orders.costs, asked.get("task", ""), size)
        height, width = facts.size
        lacks = {"has_alpha": facts.has_alpha, "has_missing": facts.has_missing}
        return JSONResponse({"width": width, "height": height, **lacks, "presets": found})

    async def drop(self, request: Request) -> Response:
        """Keep a picture that was dropped."""
        content = await guard.body(request, guard.MAX_UPLOAD)
        address = await _aside(self.desk.drop, request.query_params.get("name", ""), content)
        return JSONResponse({"picture": address})

    async def mask(self, request: Request) -> Response:
        """Show the mask that is being painted for a picture, or what it says itself; black is to be filled in."""
        path, by = self.desk.picture(request.query_params.get("of", "")), request.query_params.get("by")
        if by is not None:
            return _png(await _aside(self.desk.marked, path, by))
        draft = self.desk.draft(path)
        return _png(draft.read_bytes()) if draft.exists() else Response(status_code=204)

    async def load(self, request: Request) -> Response:
        """Show what a file means as the mask of a picture."""
        asked = request.query_params
        path = self.desk.picture(asked.get("of", ""))
        content = await guard.body(request, guard.MAX_UPLOAD)
        return _png(await _aside(self.desk.loaded, path, asked.get("name", ""), content))

    async def paint(self, request: Request) -> Response:
        """Keep the mask that is being painted."""
        asked = request.query_params
        path = self.desk.picture(asked.get("of", ""))
        bits = await guard.body(request, guard.MAX_UPLOAD)
        try:
            size = int(asked.get("height", "")), int(asked.get("width", ""))
        except ValueError as error:
            raise UsageError("width and height must be numbers") from error
        return JSONResponse({"mask": await _aside(self.desk.paint, path, size, bits)})

    async def runs(self, request: Request) -> Response:
        """List the runs."""
        return JSONResponse(await _aside(self.jobs.all))

    async def run(self, request: Request) -> Response:
        """Describe a run."""
        return JSONResponse(await _aside(self.jobs.state, request.path_params["name"]))

    async def start(self, request: Request) -> Response:
        """Start a run."""
        order = await _order(request)
        picture = self.desk.picture(str(order.get("picture", "")))
        part, _ = orders.part(order, (await _aside(self.desk.facts, picture)).size)
        words = orders.words(order, part, await self._file(order, picture))
        facts = {"name": picture.name, "task": order.get("task"), "preset": order.get("preset") or ""}
        return JSONResponse({"name": await _aside(self.jobs.start, picture, words, facts)})

    async def _file(self, order: dict[str, Any], picture: Path) -> Path | None:
        """Find what a task needs beside the picture."""
        needed = orders.FILES.get(str(order.get("task")))
        if needed == "mask":
            return Path(await _aside(self.desk.painted, picture, str(order.get("mask", ""))))
        if needed == "guide":
            if not order.get("guide"):
                raise UsageError("choose a guide: another picture of the same scene")
            return self.desk.picture(str(order["guide"]))
        return None

    async def stop(self, request: Request) -> Response:
        """Stop a run after its step."""
        await _aside(self.jobs.stop, request.path_params["name"])
        return JSONResponse({})

    async def resume(self, request: Request) -> Response:
        """Go on with a run."""
        await _aside(self.jobs.resume, request.path_params["name"])
        return JSONResponse({})

    async def pick(self, request: Request) -> Response:
        """Write another answer of a run."""
        order = await _order(request)
        step, strength = order.get("step"), order.get("strength")
        if not (step is None or type(step) is int) or not (strength is None or type(strength) in (int, float)):
            raise UsageError("step and strength must be numbers")
        await _aside(self.jobs.pick, request.path_params["name"], step, strength)
        return JSONResponse({})

    async def look(self, request: Request) -> Response:
        """Show a picture of a run: its input, the answer of its fit, its result, or a snapshot by its step."""
        folder, what = self.jobs.folder(request.path_params["name"]), request.path_params["what"]
        if what.isdecimal():
            return FileResponse(Desk.inside(folder, f"snapshots/iter_{int(what):06}.png"), media_type="image/png")
        makers: dict[str, Callable[[Path], bytes]] = {"input": self._input, "result": _result, "answer": _answer}
        if what not in makers:
            raise UsageError("there is no such picture")
        return _png(await _aside(makers[what], folder))

    def _input(self, folder: Path) -> bytes:
        """Show the picture that a run restores, if it lies in the folder, or was dropped."""
        record = _record(folder)
        return desk.shown(self.desk.input(record), *part_of(record))

    async def file(self, request: Request) -> Response:
        """Send a file of a run: its report, its result, its model."""
        folder, what = self.jobs.folder(request.path_params["name"]), request.path_params["what"]
        if what == "report":
            path = Desk.inside(folder, report.NAME)
            return FileResponse(path, media_type="text/html", headers={"content-security-policy": REPORT})
        if what not in ("result", "model"):
            raise UsageError("there is no such file")
        path = Desk.inside(folder, "model.onnx" if what == "model" else Path(_summary(folder).result).name)
        return FileResponse(path, media_type="application/octet-stream", filename=f"{folder.name}-{path.name}")


def _record(folder: Path) -> Record:
    try:
        return Record.load(folder)
    except (FileNotFoundError, UnreadableError) as error:
        raise UsageError("this run has no record that can be read") from error


def _summary(folder: Path) -> Summary:
    summary = _record(folder).summary
    if summary is None:
        raise UsageError("this run has no result yet")
    return summary


def _result(folder: Path) -> bytes:
    """Show the result."""
    return desk.shown(Desk.inside(folder, Path(_summary(folder).result).name))


def _answer(folder: Path) -> bytes:
    """Show what the fit has answered, before it is blended with the input."""
    if _summary(folder).strength == 1:
        return _result(folder)
    path = Desk.inside(folder, "model.onnx")
    return _unblended(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _unblended(path: Path, changed: int) -> bytes:
    model = open_model(path)
    assert model.program is not None
    drawn = onnx_engine.draw(replace(model.program, blend=None))
    return preview(model.kind.to_unit(model.kind.rounded(drawn)))


def _png(data: bytes) -> Response:
    return Response(data, media_type="image/png")


async def _order(request: Request) -> dict[str, Any]:
    """Read the JSON of a request."""
    try:
        order = json.loads(await guard.body(request, guard.MAX_ORDER))
    except (ValueError, RecursionError) as error:
        raise UsageError("this is no order") from error
    if not isinstance(order, dict):
        raise UsageError("this is no order")
    return order


async def _aside(work: Callable[..., Any], *arguments: Any) -> Any:
    """Do what takes long in a thread, so that other tabs are answered meanwhile."""
    return await anyio.to_thread.run_sync(work, *arguments)


def serve(place: Desk, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page until the user ends it; runs go on then.

    Parameters
    ----------
    place : Desk
    port : int
        0 for one that is free.
    ready : callable
        Takes the address, once it can be opened.

    Raises
    ------
    UsageError
        If the port is taken.
    """
    import uvicorn

    token = secrets.token_urlsafe(24)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()  # a browser that is faster than the server waits
    except OSError as error:
        raise UsageError("port {} cannot be used: {}; choose another one", port, error.strerror) from error
    port = listener.getsockname()[1]
    app = application(place, token, (f"{HOST}:{port}", f"localhost:{port}"))
    settings = uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
    ready(f"http://{HOST}:{port}/{token}/")
    with listener:
        uvicorn.Server(settings).run(sockets=[listener])
