"""The texts of ImageJ and OME in TIFF files: what they say of a whole stack becomes what holds for one page of it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from itertools import islice

import numpy as np

from dip_fast.errors import UsageError
from dip_fast.pictures.tiff_structure import MAX_STACK

_OME_TYPES = {"float32": "float", "float64": "double", "bool": "bit"}
_OME_TYPES |= {f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32)}
_TAG = re.compile(r"""<[^>"']*(?:(?:"[^"]*"|'[^']*')[^>"']*)*>""")  # a value may hold what ends others
_NUMBER = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_MOST = 2 * MAX_STACK  # elements of a kind that are looked at
_OF_STACKS = ("images", "slices", "frames", "channels", "hyperstack")


def of_page(text: str, index: int) -> str:
    """Reduce the text of a file to what holds for one page; nothing is left where it does not tell which part does.

    Parameters
    ----------
    text : str
        The description of the file's first page.
    index : int
        The place of the page's directory in the file, from 0.
    """
    if text.startswith("ImageJ="):
        return "".join(line for line in text.splitlines(True) if line.split("=")[0].strip() not in _OF_STACKS)
    images = [*islice(_elements(text, "Image", 0, len(text)), _MOST)]
    if len(images) == _MOST:
        return ""
    pixels = [next(_elements(text, "Pixels", *image), None) for image in images]
    parts = [
        (image, inner, _channels(text, inner, index)) for image, inner in zip(images, pixels, strict=True) if inner
    ]
    taken = parts if len(images) == 1 else [part for part in parts if part[2]]
    if len(taken) != 1:
        return ""
    image, inner, places = taken[0]
    channels = [text[start:end] for start, end in islice(_elements(text, "Channel", *inner), _MOST)]
    held = channels[0] if len(channels) == 1 else channels[places[0]] if channels and len(places) == 1 else ""
    opening = _opening(text, inner[0]).removesuffix(">").removesuffix("/")
    prefix = opening[1 : opening.index("Pixels")]
    alone = f'{opening}>{held}<{prefix}TiffData IFD="0" PlaneCount="1"/></{prefix}Pixels>'
    for name in ("SizeZ", "SizeT", "SizeC"):
        alone = _with(alone, name, "1")
    before, after = text[: images[0][0]], text[images[-1][1] :]
    return before + text[image[0] : inner[0]] + alone + text[inner[1] : image[1]] + after


def of_result(text: str, samples: np.ndarray, scale: tuple[float, float]) -> str | None:
    """Adapt the OME-XML of a page to a result of another size or type; None where OME has no such samples.

    Parameters
    ----------
    text : str
        As `of_page` returns it.
    samples : ndarray
        ``(H, W)`` or ``(H, W, C)``, as they are written.
    scale : tuple of float
        How many times more pixels the result has, across and down.
    """
    kind = _OME_TYPES.get(samples.dtype.name)
    found = next(_elements(text, "Pixels", 0, len(text)), None)
    if kind is None or found is None:
        return None
    start, end = found
    pixels = text[start:end]
    opening, channels = _opening(pixels, 0), samples.shape[2] if samples.ndim == 3 else 1
    changes = {"SizeX": samples.shape[1], "SizeY": samples.shape[0], "SizeC": channels, "Type": kind}
    for name, factor in zip(("PhysicalSizeX", "PhysicalSizeY"), scale, strict=True):
        size = _attribute(opening, name)
        if size is not None and factor != 1 and _NUMBER.fullmatch(size):
            changes[name] = repr(float(size) / factor)
    if _attribute(opening, "Type") != kind and _attribute(opening, "SignificantBits") is not None:
        changes["SignificantBits"] = 1 if kind == "bit" else 8 * samples.dtype.itemsize
    if _attribute(opening, "BigEndian") is not None:
        changes["BigEndian"] = "false"
    for name, value in changes.items():
        pixels = _with(pixels, name, str(value))
    channel = next(_elements(pixels, "Channel", 0, len(pixels)), None)
    if channel is not None:
        changed = _with(pixels[slice(*channel)], "SamplesPerPixel", str(channels))
        pixels = pixels[: channel[0]] + changed + pixels[channel[1] :]
    elif channels > 1:
        opening = _opening(pixels, 0)
        prefix = opening[1 : opening.index("Pixels")]
        held = f'<{prefix}Channel ID="Channel:0:0" SamplesPerPixel="{channels}"/>'
        pixels = opening + held + pixels[len(opening) :]
    return text[:start] + pixels + text[end:]


def of_stack(text: str, dtype: str, planes: int) -> str:
    """Adapt the OME-XML of a file to a result with the same axes, whose pages lie in the order of these.

    Parameters
    ----------
    text : str
        The description of the file's first page.
    dtype : str
        Of the result.
    planes : int
        Pages of the result.

    Raises
    ------
    UsageError
        If it describes not one image.
    """
    found = [*islice(_elements(text, "Pixels", 0, len(text)), 2)]
    root = next(_elements(text, "OME", 0, len(text)), None)
    if len(found) != 1 or root is None:
        raise UsageError("its OME-XML describes not one image; save that as a file of its own")
    (start, end), kind = found[0], _OME_TYPES[dtype]
    pixels = text[start:end]
    opening = _opening(pixels, 0)
    prefix = opening[1 : opening.index("Pixels")]
    if _attribute(opening, "BigEndian") is not None:
        pixels = _with(pixels, "BigEndian", "false")
    if _attribute(opening, "Type") != kind:
        pixels = _with(pixels, "Type", kind)
    places = [*islice(_elements(pixels, "TiffData", 0, len(pixels)), _MOST)]
    data = f'<{prefix}TiffData IFD="0" PlaneCount="{planes}"/>'
    for number, (first, last) in reversed([*enumerate(places)]):
        pixels = pixels[:first] + (data if number == 0 else "") + pixels[last:]
    if not places:  # it is found by the order alone
        raise UsageError("its OME-XML does not name its pages; save it once more as OME-TIFF")
    text = text[:start] + pixels + text[end:]
    # Another file has another identity.
    return text[: root[0]] + _with(text[root[0] :], "UUID", f"urn:uuid:{uuid.uuid4()}")


def _elements(text: str, name: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Find where elements of a name, which do not lie in each other, begin and end in a part of a text."""
    opens = re.compile(rf"<((?:\w+:)?){name}(?=[\s/>])")
    while (found := opens.search(text, start, end)) is not None:
        tag = _TAG.match(text, found.start(), end)
        if tag is None:
            return
        close = tag.end() - 1
        if text[close - 1] != "/":
            mark = f"</{found[1]}{name}>"
            place = text.find(mark, close, end)
            if place < 0:
                return
            close = place + len(mark) - 1
        start = close + 1
        yield found.start(), start


def _opening(text: str, start: int) -> str:
    tag = _TAG.match(text, start)
    return "" if tag is None else tag[0]


def _attribute(opening: str, name: str) -> str | None:
    found = re.search(rf"""\s{name}\s*=\s*(?:"([^"]*)"|'([^']*)')""", opening)
    return None if found is None else found[1] or found[2] or ""


def _with(element: str, name: str, value: str) -> str:
    """Return an element with an attribute of its own changed or added."""
    opening = _opening(element, 0)
    attribute = f' {name}="{value}"'
    changed, count = re.subn(rf"""\s{name}\s*=\s*(?:"[^"]*"|'[^']*')""", lambda _: attribute, opening)
    if not count:
        end = len(opening) - (2 if opening.endswith("/>") else 1)
        changed = opening[:end] + attribute + opening[end:]
    return changed + element[len(opening) :]


def _number(opening: str, name: str, default: int) -> int:
    value = _attribute(opening, name) or ""
    return int(value) if value.isascii() and value.isdigit() and len(value) < 10 else default


def _channels(text: str, inner: tuple[int, int], index: int) -> list[int]:
    """List the channels that a page may be, by the elements which say what the directories of a file are."""
    opening = _opening(text, inner[0])
    named = [_opening(text, start) for start, _ in islice(_elements(text, "Channel", *inner), _MOST)]
    sizes = {axis: max(1, _number(opening, f"Size{axis}", 1)) for axis in "ZCT"}
    sizes["C"] = len(named) or sizes["C"]  # several samples of a pixel are one channel here
    order = [axis for axis in (_attribute(opening, "DimensionOrder") or "XYCZT") if axis in sizes]
    found = []
    for start, _ in islice(_elements(text, "TiffData", *inner), _MOST):
        data = _opening(text, start)
        first = _number(data, "IFD", 0)
        whole = sizes["Z"] * sizes["C"] * sizes["T"] if _attribute(data, "IFD") is None else 1
        if not first <= index < first + _number(data, "PlaneCount", whole):
            continue
        carried = index - first
        for axis in order:
            carried += _number(data, f"First{axis}", 0)
            if axis == "C":
                found.append(carried % sizes["C"])
            carried //= sizes[axis]
    return found
