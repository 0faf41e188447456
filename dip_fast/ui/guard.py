"""Who may ask, and how much: the token in the address, the Host header, the size and the pace of what is sent."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_UPLOAD = 2**29  # bytes of a picture
MAX_ORDER = 2**16  # bytes of JSON
SECONDS_A_PIECE = 20.0  # in which more of what is sent must come
SECONDS_IN_ALL = 600.0
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Passes on what comes from the page alone, and tells browsers to keep it to themselves.

    Another page in the same browser knows no token; one that has its own name point to this machine sends that name as
    the Host.

    Parameters
    ----------
    app : callable
        What is guarded; paths reach it without the token.
    token : str
        The first part of each path.
    hosts : tuple of str
        What the Host header may be, with the port.
    """

    def __init__(self, app: App, token: str, hosts: tuple[str, ...]) -> None:
        self.app, self.token, self.hosts = app, token, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        rest = scope["path"][len(self.token) + 1 :]

        async def send_guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                there = {name for name, _ in message["headers"]}
                added = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in there]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self.app({**scope, "path": rest, "raw_path": rest.encode()}, receive, send_guarded)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        """Check where a request comes from."""
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or hosts[0] not in self.hosts:
            return PlainTextResponse("this server answers to 127.0.0.1 alone\n", 403)
        origins = [value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"]
        if any(origin not in {f"http://{host}" for host in self.hosts} for origin in origins):
            return PlainTextResponse("another page asks\n", 403)
        start = f"/{self.token}/".encode()
        if not secrets.compare_digest(scope["path"].encode()[: len(start)], start):
            return PlainTextResponse("open the address that dip-fast ui has printed\n", 404)
        return None


async def body(request: Request, most: int) -> bytes:
    """Read what a request sends, of which there may be so many bytes, and which may not take for ever.

    Raises
    ------
    HTTPException
        413 for more bytes, 408 for a pace that leads nowhere.
    """
    told = request.headers.get("content-length", "0")
    if not told.isdecimal() or int(told) > most:
        raise HTTPException(413, f"at most {most / 1e6:.0f} MB can be sent")
    received, pieces = bytearray(), request.stream()
    try:
        async with asyncio.timeout(SECONDS_IN_ALL):
            while True:
                async with asyncio.timeout(SECONDS_A_PIECE):
                    try:
                        received += await anext(pieces)
                    except StopAsyncIteration:
                        return bytes(received)
                if len(received) > most:
                    raise HTTPException(413, f"at most {most / 1e6:.0f} MB can be sent")
    except TimeoutError as error:
        raise HTTPException(408, "it came too slowly") from error
