"""What a call passes to a forward: the parameters that its graph has as inputs, and those that are constants in it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# The parameters in order, each with its kind: the name of the type of an input, with the length of a sequence of
# numbers; its default; or a tuple of a constant.
Call = tuple[tuple[str, Any], ...]
TENSOR, DEFAULT = "Tensor", "default"
NUMBERS: dict[str, type] = {"int": int, "float": float}
SEQUENCES: dict[str, type] = {"tuple": tuple, "list": list, "Size": torch.Size}


def parameters(forward: Callable[..., Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the required parameters of a forward, and the others with their defaults, in order."""
    required = []
    defaults = {}
    for parameter in list(inspect.signature(forward).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.default is parameter.empty:
            required.append(parameter.name)
        else:
            defaults[parameter.name] = parameter.default
    return tuple(required), defaults


def simplest(forward: Callable[..., Any]) -> Call:
    """Return the call with the required arguments alone, all of them tensors."""
    return tuple((name, TENSOR) for name in parameters(forward)[0])


def arguments(forward: Callable[..., Any], call: Call, inputs: Callable[[str, str], Any]) -> list[Any]:
    """Return positional arguments of a call; `inputs` makes those that are not constants, of name and kind."""
    defaults = parameters(forward)[1]
    found = []
    for name, kind in call:
        if kind == DEFAULT:
            found.append(defaults[name])
        else:
            found.append(inputs(name, kind) if isinstance(kind, str) else kind[0])
    return found


def of(
    required: tuple[str, ...], defaults: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Call, list[Any]] | None:
    """Return the call that these arguments make, and its inputs; None for one that no graph is made for."""
    names = (*required, *defaults)
    given = dict(zip(names, args, strict=False)) | kwargs
    if len(given) != len(args) + len(kwargs):  # too many, or one twice: the plain forward raises the error
        return None
    call: list[tuple[str, Any]] = []
    inputs = []
    skipped: list[tuple[str, Any]] = []  # defaults, which matter only before a parameter that is given
    for name in names:
        if name not in given or (name in defaults and given[name] is defaults[name]):
            if name not in defaults:
                return None
            given.pop(name, None)
            skipped.append((name, DEFAULT))
            continue
        value = given.pop(name)
        kind = _kind(value)
        if kind is None:
            return None
        call += [*skipped, (name, kind)]
        skipped = []
        if isinstance(kind, str):
            inputs.append(value)
    return None if given else (tuple(call), inputs)


def type_of(kind: str) -> type:
    """Return the type of an input."""
    name = kind.partition(" ")[0]
    return {TENSOR: Tensor, **NUMBERS, **SEQUENCES}[name]


def length_of(kind: str | None) -> int | None:
    """Return how many numbers an input holds, if it is a sequence."""
    return int(kind.partition(" ")[2]) if kind and " " in kind else None


def _kind(value: Any) -> str | tuple[Any] | None:
    if isinstance(value, Tensor):
        return TENSOR
    if value is None or isinstance(value, bool | str):
        return (value,)
    if type(value) in SEQUENCES.values():
        numbers = all(isinstance(each, int | float | torch.SymInt) for each in value)
        return f"{type(value).__name__} {len(value)}" if numbers else None
    return "float" if isinstance(value, float) else "int" if isinstance(value, int | torch.SymInt) else None
