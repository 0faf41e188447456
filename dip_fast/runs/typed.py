"""JSON that somebody else may have changed: numbers that are finite, and values of the types that were written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints, is_typeddict

# What reading and using a damaged document may raise.  A number can be too long for a float, a text too deep to parse.
DAMAGE = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, RuntimeError)


def parse(text: str | bytes) -> Any:
    """Parse JSON as the standard has it: without NaN and infinity, also those of numbers that are too large.

    Raises
    ------
    ValueError, RecursionError
    """
    return json.loads(text, parse_float=_finite, parse_constant=_refuse)


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def conforms(value: Any, annotation: Any) -> bool:
    """Check that a value of JSON is of the type that an annotation names.

    Parameters
    ----------
    value : object
    annotation : type
        Of bool, int, float, str, list, dict, Any, their unions, literals and typed dictionaries.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return True
    if origin in (Union, UnionType):
        return any(conforms(value, argument) for argument in arguments)
    if origin is Literal:
        return any(type(value) is type(argument) and value == argument for argument in arguments)
    if origin is list:
        return isinstance(value, list) and all(conforms(entry, arguments[0]) for entry in value)
    if origin is dict:
        return isinstance(value, dict) and all(conforms(entry, arguments[1]) for entry in value.values())
    if is_typeddict(annotation):
        keys = get_type_hints(annotation)
        return (
            isinstance(value, dict)
            and annotation.__required_keys__ <= value.keys()
            and all(conforms(value[name], keys[name]) for name in keys.keys() & value.keys())
        )
    return type(value) in ((int, float) if annotation is float else (annotation,))


def require(values: Mapping[str, Any], owner: type) -> None:
    """Check values by name against the annotations of a class.

    Raises
    ------
    TypeError
        Naming the first that is of another type.
    """
    hints = get_type_hints(owner)
    for name, value in values.items():
        if not conforms(value, hints[name]):
            raise TypeError(f"{name} is {str(value)[:40]!r}")
