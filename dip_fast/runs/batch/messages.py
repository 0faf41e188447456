"""Messages between a driver and its workers: a line of JSON each."""

from __future__ import annotations

import json
from typing import Any

from dip_fast.errors import Argument, DipFastError


def line(message: dict[str, Any]) -> bytes:
    """Write a message."""
    return (json.dumps(message) + "\n").encode()


def parsed(text: bytes) -> dict[str, Any]:
    """Read a message."""
    message: dict[str, Any] = json.loads(text)
    return message


def packed(error: DipFastError) -> list[Any]:
    """Take an error apart, so that whoever prints it can spell its arguments."""
    return [error.template, *(_packed(part) for part in error.parts)]


def unpacked(parts: list[Any], kind: type[DipFastError]) -> DipFastError:
    """Make the error again."""
    template, *rest = parts
    return kind(template, *(_unpacked(part) for part in rest))


def _packed(part: object) -> object:
    if isinstance(part, Argument):
        return {"name": part.name} if part.value is Argument.UNSET else {"name": part.name, "value": part.value}
    return part if isinstance(part, int | float | str) else str(part)


def _unpacked(part: object) -> object:
    return Argument(**part) if isinstance(part, dict) else part
