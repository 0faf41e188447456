"""Large fields of ONNX files: arrays and texts that protobuf would copy several times over.

A file is a protobuf message: fields, one after another, each a *tag* ``8 number + kind`` and its content; that of kind
2 is its length and so many bytes, which may be a message in turn.  Lengths and tags are varints: seven bits a byte, the
lowest first.  The content of arrays (``graph.initializer.raw_data``) and texts (``metadata_props.value``) can be put in
behind the others, and taken out, without a look at anything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dip_fast import large
from dip_fast.models.packing import Buffer, Piece, joined, length

GRAPH, METADATA = 7, 14  # of a model
INITIALIZER = 5  # of a graph
NAME, RAW_DATA = 8, 9  # of a tensor
KEY, VALUE = 1, 2  # of an entry of the metadata
BYTES = 2  # the kind of a field with a length


@dataclass
class Fields:
    """The large fields of a file, each at its place among the others of its kind; None where one is not large.

    Attributes
    ----------
    arrays : list of memoryview or None
        Of the initializers.
    texts : list of memoryview or None
        Of the metadata.
    """

    arrays: list[Buffer | None] = field(default_factory=list)
    texts: list[Buffer | None] = field(default_factory=list)


def filled(model: bytes, arrays: Mapping[str, np.ndarray], texts: Mapping[str, Buffer]) -> Buffer:
    """Put arrays, by the names of their initializers, and texts, by their keys, into a file that lacks them."""
    pieces: list[Piece] = []
    for number, kind, content in _fields(memoryview(model)):
        if (number, kind) == (GRAPH, BYTES):
            pieces += _message(number, _graph_pieces(content, arrays))
        elif (number, kind) == (METADATA, BYTES):
            key = _found(content, KEY)
            pieces += _message(number, [content, *_message(VALUE, [texts[key]])] if key in texts else [content])
        else:
            pieces += _field(number, kind, content)
    return joined(pieces)


def _graph_pieces(graph: memoryview, arrays: Mapping[str, np.ndarray]) -> Iterator[Piece]:
    for number, kind, content in _fields(graph):
        if (number, kind) == (INITIALIZER, BYTES) and (name := _found(content, NAME)) in arrays:
            yield from _message(number, [content, *_message(RAW_DATA, [arrays[name]])])
        else:
            yield from _field(number, kind, content)


def split(data: Buffer) -> tuple[Buffer, Fields]:
    """Take the large fields out of a file.

    Returns
    -------
    model : bytes
        The file without them.  One that is not written as protobuf writes is returned as it is.
    fields : Fields
    """
    pieces: list[Piece] = []
    found = Fields()
    try:
        for number, kind, content in _fields(memoryview(data)):
            if (number, kind) == (GRAPH, BYTES):
                pieces += _message(number, [*_without_arrays(content, found)])
            elif (number, kind) == (METADATA, BYTES):
                pieces += _message(number, [*_without(content, VALUE, found.texts)])
            else:
                pieces += _field(number, kind, content)
    except ValueError:  # protobuf knows what to make of it
        return data, Fields()
    return joined(pieces), found


def _without_arrays(graph: memoryview, found: Fields) -> Iterator[Piece]:
    for number, kind, content in _fields(graph):
        if (number, kind) == (INITIALIZER, BYTES):
            yield from _message(number, [*_without(content, RAW_DATA, found.arrays)])
        else:
            yield from _field(number, kind, content)


def _without(message: memoryview, wanted: int, found: list[Buffer | None]) -> Iterator[Piece]:
    """Go through a message without a field that is large, and remember that."""
    taken: Buffer | None = None
    count = 0
    for number, kind, content in _fields(message):
        count += number == wanted
        if number == wanted and kind == BYTES and len(content) >= large.LEAST:
            taken = content
        else:
            yield from _field(number, kind, content)
    if taken is not None and count > 1:
        raise ValueError("a field is there twice")
    found.append(taken)


def _fields(message: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Go through the fields of a message: number, kind, and content, of other kinds than 2 as it stands there.

    Raises
    ------
    ValueError
        If it is none, or a field is of a kind that no ONNX file has.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == BYTES:
            length, at = _varint(message, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        elif kind == 0:
            length = _varint(message, at)[1] - at
        else:
            raise ValueError(f"a field of kind {kind}")
        if at + length > len(message):
            raise ValueError("it is cut short")
        yield number, kind, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Read a number, in the one way that protobuf writes it; return it, and where it ends."""
    value = 0
    for i in range(10):
        if at + i >= len(message):
            break
        byte = message[at + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            if i and not byte:
                break
            return value, at + i + 1
    raise ValueError("a number is none")


def _encoded(number: int) -> bytes:
    """Write a number as a varint."""
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*written, number])


def _field(number: int, kind: int, content: Piece) -> list[Piece]:
    return _message(number, [content]) if kind == BYTES else [_encoded(number << 3 | kind), content]


def _message(number: int, pieces: Iterator[Piece] | Sequence[Piece]) -> list[Piece]:
    """Make the field of a message of some pieces."""
    pieces = [*pieces]
    return [_encoded(number << 3 | BYTES), _encoded(sum(map(length, pieces))), *pieces]


def _found(message: memoryview, wanted: int) -> str:
    """Read a text of a message; an empty one where it has none."""
    return next((str(content, "utf-8") for number, _, content in _fields(message) if number == wanted), "")
