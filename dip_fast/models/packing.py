"""Samples and metadata as text in a model file, and hashes of arrays.  Needs numpy alone."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dip_fast import large

Buffer = bytes | memoryview
Piece = Buffer | np.ndarray
Text = str | memoryview  # the latter in ASCII, where it is large


def parse_metadata(text: str) -> Any:
    """Parse JSON that can be written again: without NaN and infinity, which Python's reader lets pass.

    Raises
    ------
    ValueError, RecursionError
        If it is no such JSON.
    """
    return json.loads(text, parse_constant=_finite, parse_float=_finite)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):  # 1e999 is read as infinity too
        raise ValueError(f"{text} is no number in JSON")
    return number


def digest(*arrays: np.ndarray) -> str:
    """Hash the arrays' bytes, one after the other, little-endian, last axis fastest, with SHA-256."""
    found = hashlib.sha256()
    for array in arrays:
        for part in large.parts(array):
            found.update(np.ascontiguousarray(part).astype(array.dtype.newbyteorder("<")).data)
    return found.hexdigest()


def joined(pieces: Sequence[Piece]) -> Buffer:
    """Join pieces of a file, arrays as bytes, little-endian, last axis fastest."""
    whole, at = large.empty((sum(map(length, pieces)),), np.uint8), 0
    for piece in pieces:
        array = piece if isinstance(piece, np.ndarray) else np.frombuffer(piece, np.uint8)
        for part in large.parts(array):
            stored = np.ascontiguousarray(part).astype(part.dtype.newbyteorder("<"), copy=False)
            whole[at : at + stored.nbytes] = stored.reshape(-1).view(np.uint8)
            at += stored.nbytes
    return whole.data if large.is_in_file(whole) else whole.tobytes()


def length(piece: Piece) -> int:
    """Count the bytes of a piece."""
    return piece.nbytes if isinstance(piece, np.ndarray) else len(piece)


def pack(array: np.ndarray) -> Text:
    """Compress samples ``(H, W, ...)`` without loss: differences along the rows, byte by byte, zlib, base64."""
    stream, width = zlib.compressobj(), array.dtype.itemsize
    pieces: list[Piece] = []
    packed = b""  # what is still to be encoded, three bytes at a time
    for byte in range(width):
        for rows in large.bands(array.shape):
            numbers = np.ascontiguousarray(array[rows]).view(f"u{width}")
            differences = np.diff(numbers, axis=1, prepend=numbers[:, :1] * 0)  # wraps around, as does its inverse
            planes = differences.astype(differences.dtype.newbyteorder("<")).view(np.uint8).reshape(-1, width)
            packed += stream.compress(np.ascontiguousarray(planes[:, byte]).data)
            whole = len(packed) // 3 * 3
            pieces.append(base64.b64encode(packed[:whole]))
            packed = packed[whole:]
    pieces.append(base64.b64encode(packed + stream.flush()))
    text = joined(pieces)
    return text.decode() if isinstance(text, bytes) else text


def as_text(text: Text) -> str:
    """Return a text as one that every library takes."""
    return text if isinstance(text, str) else str(text, "ascii")


def unpack(text: Text, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Undo `pack`; no more is ever decompressed than the shape says.

    Raises
    ------
    ValueError
        If the text holds anything else.
    """
    kind = np.dtype(dtype)
    width = kind.itemsize
    planes, done = large.empty((width, *shape), np.uint8), 0
    try:
        stream, flat, chunk = zlib.decompressobj(), planes.reshape(-1), large.BAND // 4 * 4
        for at in range(0, max(len(text), 1), chunk):
            packed = base64.b64decode(text[at : at + chunk], validate=True)
            if at + chunk < len(text) and len(packed) < chunk // 4 * 3:
                raise ValueError("packed samples have an end before the last one")
            data = stream.decompress(packed, planes.size - done + 1)  # 0 would mean: all
            flat[done : done + len(data)] = np.frombuffer(data, np.uint8)
            done += len(data)
            large.rest()
    except (binascii.Error, zlib.error, UnicodeEncodeError) as error:
        raise ValueError("packed samples are damaged") from error
    if done != planes.size or not stream.eof:
        raise ValueError("packed samples are not as many as they should be")
    array = large.empty(shape, kind)
    for rows in large.bands(shape):
        part = np.ascontiguousarray(np.moveaxis(planes[:, rows], 0, -1)).view(f"<u{width}")[..., 0]
        numbers = np.cumsum(part, axis=1, dtype=f"u{width}")
        if kind.kind == "b" and numbers.size and numbers.max() > 1:
            raise ValueError("packed truth values are others")
        array[rows] = numbers.view(kind)
    return array
