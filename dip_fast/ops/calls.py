"""What a call passes to a forward: the parameters that its graph has as inputs, and those that are constants in it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# The parameters in order, each with its kind: a tensor, a number or several, its default, or a tuple of a constant.
Call = tuple[tuple[str, Any], ...]
TENSOR, NUMBERS, DEFAULT = "tensor", "numbers", "default"
INPUTS = (TENSOR, NUMBERS)


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
            found.append(inputs(name, kind) if kind in INPUTS else kind[0])
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
        if kind in INPUTS:
            inputs.append(value)
    return None if given else (tuple(call), inputs)


def _kind(value: Any) -> Any:
    if isinstance(value, Tensor):
        return TENSOR
    if value is None or isinstance(value, bool | str):
        return (value,)
    sizes = value if isinstance(value, tuple | list) else (value,)
    return NUMBERS if all(isinstance(size, int | float | torch.SymInt) for size in sizes) else None
