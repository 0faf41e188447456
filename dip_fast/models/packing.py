"""Samples and metadata as text in a model file, and hashes of arrays.  Needs numpy alone."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import zlib
from typing import Any

import numpy as np


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
        found.update(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())
    return found.hexdigest()


def pack(array: np.ndarray) -> str:
    """Compress samples ``(H, W, ...)`` without loss: differences along the rows, byte by byte, zlib, base64."""
    whole = np.ascontiguousarray(array)
    numbers = whole.view(f"u{whole.dtype.itemsize}")
    differences = np.diff(numbers, axis=1, prepend=numbers[:, :1] * 0)  # wraps around, as does its inverse
    planes = differences.astype(differences.dtype.newbyteorder("<")).view(np.uint8).reshape(-1, whole.dtype.itemsize)
    return base64.b64encode(zlib.compress(planes.T.tobytes())).decode()


def unpack(text: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Undo `pack`; no more is ever decompressed than the shape says.

    Raises
    ------
    ValueError
        If the text holds anything else.
    """
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    try:
        stream = zlib.decompressobj()
        data = stream.decompress(base64.b64decode(text, validate=True), size)
        more = stream.decompress(stream.unconsumed_tail, 1)  # 0 would mean: all
    except (binascii.Error, zlib.error, UnicodeEncodeError) as error:
        raise ValueError("packed samples are damaged") from error
    if len(data) != size or more or not stream.eof:
        raise ValueError("packed samples are not as many as they should be")
    planes = np.frombuffer(data, np.uint8).reshape(kind.itemsize, -1)
    if kind.kind == "b" and any(
        byte > 1 for byte in set(np.cumsum(planes.reshape(shape), axis=1, dtype=np.uint8).flat)
    ):
        raise ValueError("packed truth values are others")
    numbers = np.ascontiguousarray(planes.T).view(f"<u{kind.itemsize}").astype(f"u{kind.itemsize}").reshape(shape)
    return np.cumsum(numbers, axis=1, dtype=numbers.dtype).view(kind)
