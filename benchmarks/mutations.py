"""Damaged files for `reliability.py`: small whole pictures and models, and the ways in which they are damaged.

Everything is drawn from a generator that is passed, so that the same seed gives the same files.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import onnx
import tifffile
from PIL import Image, ImageCms

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
EXTREMES = (0, 1, 2, 3, 7, 255, 256, 4095, 65535, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
CHUNKS = (b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"tRNS", b"bKGD", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"PLTE")
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1.5,
    10**400,
    float("nan"),
    float("-inf"),
    "",
    "x" * 64,
    "\ud800",
    "\0",
    [],
    [1],
    {},
    {"a": {}},
)
CODECS = ("zlib", "lzw", "packbits", "lzma", "zstd", "jpeg", "webp", "png", "jpeg2000", "jpegxl", "lerc")


def pictures(rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Draw damaged pictures without end, each with the name of what it was."""
    whole = whole_pictures()
    names = [*whole]
    while True:
        name = rng.choice(names)
        yield name, damaged_picture(name, whole[name], rng)


def models(rng: random.Random, whole: bytes) -> Iterator[tuple[str, bytes]]:
    """Draw damaged ONNX files without end: their bytes, their message or their metadata are damaged."""
    for name, damage in cycle({"bytes": damaged, "message": damaged_message, "metadata": damaged_metadata}.items()):
        yield name, damage(whole, rng)


def whole_pictures() -> dict[str, bytes]:
    """Make small pictures of each format, and each way to store one that its reader knows, by name."""
    rows, columns = np.mgrid[:24, :18]
    color = np.dstack([rows * 9, columns * 13, (rows + columns) * 5]).astype(np.uint8)
    gray, deep = color[..., 0].copy(), color.astype(np.uint16) * 257
    alpha = np.dstack([color, 255 - gray])
    exif = Image.Exif()
    exif[274], exif[271] = 6, "camera"
    exif[0x8769] = {0x829A: 0.004, 0x9003: "2020:01:02 03:04:05"}
    made = {
        "png": _pillow(color, "PNG", icc_profile=ICC, exif=exif),
        "png alpha": _pillow(alpha, "PNG"),
        "png palette": _pillow(Image.fromarray(color).convert("P"), "PNG", transparency=3),
        "png gray": _pillow(gray, "PNG"),
        "png 16": bytes(imagecodecs.png_encode(deep)),
        "png gray 16": bytes(imagecodecs.png_encode(deep[..., 0].copy())),
        "jpeg": _pillow(color, "JPEG", exif=exif, icc_profile=ICC),
        "jpeg progressive": _pillow(gray, "JPEG", progressive=True),
        "webp": _pillow(color, "WEBP", exif=exif, icc_profile=ICC),
        "webp lossless": _pillow(alpha, "WEBP", lossless=True),
        "bmp": _pillow(color, "BMP"),
        "bmp palette": _pillow(Image.fromarray(gray).convert("P"), "BMP"),
        "tiff": _tiff(color, iccprofile=ICC),
        "tiff big-endian": _tiff(deep, byteorder=">"),
        "tiff big": _tiff(gray, bigtiff=True, rowsperstrip=5, compression="zlib"),
        "tiff float": _tiff((gray / 255).astype(np.float32), compression="zlib", predictor=True),
        "tiff tiles": _tiff(alpha, tile=(16, 16), compression="zlib", extrasamples=["unassalpha"]),
        "tiff planes": _tiff(np.moveaxis(color, 2, 0).copy(), planarconfig="separate"),
    }
    return made | {f"tiff {codec}": _tiff(color, compression=codec, rowsperstrip=10) for codec in CODECS}


def _pillow(picture: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, kind, **options)
    return file.getvalue()


def _tiff(samples: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    photometric = "minisblack" if samples.ndim == 2 else "rgb"
    tifffile.imwrite(file, samples, photometric=photometric, metadata=None, **options)
    return file.getvalue()


def damaged_picture(name: str, data: bytes, rng: random.Random) -> bytes:
    """Damage a picture in one of many ways, half of which know its format."""
    if rng.random() < 0.5:
        if name.startswith("png"):
            return damaged_chunks(data, rng)
        if name.startswith("tiff"):
            return damaged_tags(data, rng)
    return damaged(data, rng)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Damage bytes in one of a few ways; half of the places lie among the first, where headers are."""
    held = bytearray(data)

    def place() -> int:
        return rng.randrange(min(len(held), 200) if rng.random() < 0.5 else len(held))

    kind, at, length = rng.randrange(7), place(), rng.randrange(1, 200)
    if kind == 0:
        for _ in range(rng.randrange(1, 9)):
            held[place()] = rng.randrange(256)
    elif kind == 1:
        held[at] ^= 1 << rng.randrange(8)
    elif kind == 2:
        del held[at : at + length]
    elif kind == 3:
        held[at:at] = rng.randbytes(length)
    elif kind == 4:
        other = place()
        held[at : at + length] = held[other : other + length]
    elif kind == 5:
        struct.pack_into(rng.choice("<>") + "I", held, min(at, len(held) - 4), rng.choice(EXTREMES))
    else:
        del held[at:]
    return bytes(held)


def damaged_chunks(data: bytes, rng: random.Random) -> bytes:
    """Damage chunks of a PNG and mend their checksums, without which nothing behind them is looked at."""
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    index = rng.randrange(len(chunks))
    kind, content = chunks[index]
    way = rng.randrange(4)
    if way == 0 and content:
        chunks[index] = kind, damaged(content, rng) if len(content) > 3 else rng.randbytes(len(content))
    elif way == 1:
        chunks.insert(rng.randrange(len(chunks) + 1), chunks[index])
    elif way == 2:
        chunks.insert(rng.randrange(1, len(chunks)), (rng.choice(CHUNKS), rng.randbytes(rng.randrange(40))))
    else:
        del chunks[index]
    return data[:8] + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def damaged_tags(data: bytes, rng: random.Random) -> bytes:
    """Damage entries of a TIFF's first directory, or the place of the next one."""
    held = bytearray(data)
    order, is_big = "<" if data[:2] == b"II" else ">", data[2:4] in (b"+\0", b"\0+")
    number, head, size = ("Q", "Q", 20) if is_big else ("I", "H", 12)
    (first,) = struct.unpack_from(order + number, data, 8 if is_big else 4)
    (tags,) = struct.unpack_from(order + head, data, first)
    entries = first + struct.calcsize("=" + head)
    if rng.random() < 0.1:
        places = [first, rng.randrange(len(data)), 2**31]
        struct.pack_into(order + number, held, entries + tags * size, rng.choice(places))
        return bytes(held)
    for _ in range(rng.randrange(1, 3)):
        at = entries + rng.randrange(tags) * size
        way = rng.randrange(4)
        if way == 0:
            struct.pack_into(order + "H", held, at + 2, rng.randrange(20))
        elif way == 1:
            struct.pack_into(order + number, held, at + 4, rng.choice(EXTREMES))
        elif way == 2:
            struct.pack_into(order + "H", held, at, rng.choice([254, 256, 257, 258, 259, 262, 277, 278, 317, 322, 330]))
        else:
            struct.pack_into(order + "I", held, at + (12 if is_big else 8), rng.choice(EXTREMES))
    return bytes(held)


def damaged_message(data: bytes, rng: random.Random) -> bytes:
    """Damage an ONNX message rather than its bytes, so that it still parses."""
    model = onnx.load_model_from_string(data)
    graph, kind = model.graph, rng.randrange(9)
    node, tensor = rng.choice(graph.node), rng.choice(graph.initializer)
    if kind == 0:
        node.op_type = rng.choice(["Conv", "Loop", "If", "Einsum", "Identity", "Tile", "ConstantOfShape", "Range"])
    elif kind == 1 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(graph.node).output[0]
    elif kind == 2 and node.attribute:
        attribute = rng.choice(node.attribute)
        attribute.i, attribute.f = rng.choice([-1, 0, 2**62]), 1e38
        attribute.ints[:] = [rng.choice([-1, 0, 1, 2**31, 2**62]) for _ in attribute.ints]
    elif kind == 3 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice([0, -1, 1, 2**31, 2**62])
    elif kind == 4:
        tensor.data_type = rng.randrange(24)
    elif kind == 5:
        tensor.raw_data = rng.randbytes(len(tensor.raw_data))
    elif kind == 6:
        graph.node.remove(node)
    elif kind == 7 and tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.raw_data) > 4:
        values = np.frombuffer(tensor.raw_data, np.float32).copy()
        values[rng.randrange(len(values))] = rng.choice([np.nan, np.inf, -1e38, 1e38, 1e-45])
        tensor.raw_data = values.tobytes()
    else:
        entry = rng.choice(model.metadata_props)
        at = rng.randrange(len(entry.value))
        new = rng.choice([*'{}[]",:-0123456789e', "NaN", "1e999", "null", "[" * 999])
        entry.value = entry.value[:at] + new + entry.value[at + rng.randrange(3) :]
    return model.SerializeToString()


def damaged_metadata(data: bytes, rng: random.Random) -> bytes:
    """Put another value into the JSON of an ONNX file, anywhere in it."""
    model = onnx.load_model_from_string(data)
    (entry,) = (entry for entry in model.metadata_props if entry.key == "dip_fast")
    held: Any = json.loads(entry.value)
    inner = held
    while True:
        key = rng.choice([*inner] if isinstance(inner, dict) else [*range(len(inner))])
        if isinstance(inner[key], dict | list) and inner[key] and rng.random() < 0.9:
            inner = inner[key]
            continue
        break
    if rng.random() < 0.1 and isinstance(inner, dict):
        del inner[key]
    else:
        inner[key] = rng.choice(VALUES)
    entry.value = json.dumps(held)
    return model.SerializeToString()


def whole_model() -> bytes:
    """Read the small ONNX file of the tests."""
    return (Path(__file__).parents[1] / "tests" / "data" / "model.onnx").read_bytes()
