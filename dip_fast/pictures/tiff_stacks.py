"""TIFF files of many pages as stacks: plain ones, OME and the hyperstacks of ImageJ.

Axes are named by letters: T time, Z depth, C channels, Y rows, X columns, S samples of a pixel; others, such as Q of
pages without a name, count as time.  Channels and samples belong to one picture; all other axes number the pictures.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import tifffile

from dip_fast.errors import UsageError
from dip_fast.names import counted
from dip_fast.pictures import tiff_geometry, tiff_texts
from dip_fast.pictures.decoded import Decoded
from dip_fast.pictures.formats import MAX_CHANNELS
from dip_fast.pictures.reading import naming
from dip_fast.pictures.stacks import Stack, kind_of
from dip_fast.pictures.tiff import ALPHA_KINDS, ICC_TAG, check_page
from dip_fast.pictures.tiff_structure import MAX_STACK, check_directories

_KINDS = tifffile.PHOTOMETRIC
_IN_A_PICTURE = "CSYX"
# What tifffile counts itself when it writes a hyperstack.
_COUNTED = ("ImageJ", "images", "channels", "slices", "frames", "hyperstack", "axes")
_CLASSIC = 2**32 - 2**25  # bytes that a file holds whose places are of 32 bits


class TiffStack(Stack):
    """The pages of a TIFF file; the result is one file of its name, axes and sort.

    Parameters
    ----------
    path : Path
    keep_metadata : bool
        Without a meaning: what the file says of the whole stack is kept in any case, and nothing of its pages.
    """

    def __init__(self, path: Path, keep_metadata: bool = False) -> None:
        self.path, self.name = path, path.name
        self.notes = []
        self._open = contextlib.ExitStack()
        try:
            with naming(str(path)):
                file = self._open.enter_context(path.open("rb"))
                self._data = self._open.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                data = cast(bytes, self._data)  # it is sliced and measured as such
                if not check_directories(data, MAX_STACK):
                    raise UsageError("it is cut short, and pages of it are missing; get an intact copy")
                options: dict[str, Any] = {"is_lsm": False, "is_ndpi": False, "is_scanimage": False}
                self._file = self._open.enter_context(tifffile.TiffFile(file, _multifile=False, **options))
                self._series = self._only_series()
                self._arrange()
            self.kind = kind_of(self.name, self._decode(0), ".tif")
            if self.kind.channels > MAX_CHANNELS:
                raise UsageError(f"{self.name} has {self.kind.channels} channels, more than {MAX_CHANNELS}")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._open.close()

    @property
    def results(self) -> list[str]:
        """One file, of the same name."""
        return [self.name if self.path.suffix.lower() in (".tif", ".tiff") else f"{self.path.stem}.tif"]

    def label(self, number: int) -> str:
        """Name the place along the axes."""
        places = np.unravel_index(number, self._shape)
        return f"{self.name} " + " ".join(f"{axis}{place}" for axis, place in zip(self._axes, places, strict=True))

    def _only_series(self) -> tifffile.TiffPageSeries:
        """Find the pages, which must be of one size and sort; thumbnails and smaller copies do not count."""
        series = [each for each in self._file.series if not each.keyframe.is_reduced]
        if len(series) != 1:
            raise UsageError(f"it holds pictures of {len(series)} kinds; save those of one kind as a file of its own")
        if series[0].is_pyramidal:
            self.notes.append("The smaller copies of the pages are left out.")
        return series[0]

    def _arrange(self) -> None:
        """Find which axes number the pages, and which pages make a picture."""
        page, axes, shape = self._series.keyframe, self._series.axes, self._series.shape
        if self._file.is_stk or self._file.is_lsm or self._file.is_svs:
            self.notes.append("Of what its maker adds to TIFF, the resolution alone is kept.")
        inner = len(page.shape)
        if shape[len(shape) - inner :] != page.shape or set(axes[len(axes) - inner :]) - set(_IN_A_PICTURE):
            raise UsageError(f"its pages are volumes ({axes}); save it as pages of one layer")
        self._leading = dict(zip(axes[: len(axes) - inner], shape, strict=False))
        self._inner = axes[len(axes) - inner :]
        self._planes = math.prod(self._leading.values())
        numbering = [axis for axis in self._leading if axis not in _IN_A_PICTURE]
        numbering.sort(key=lambda axis: axis != "T")  # pictures of one moment follow each other
        self._axes, self._shape = numbering, [self._leading[axis] for axis in numbering]
        self.count = math.prod(self._shape)
        if self._planes < 2:  # one picture whose channels are pages is restored here, as `run` reads one page
            raise UsageError("it holds one picture; restore it with dip-fast run")
        self.moments = 1 if numbering[:1] in ([], ["Z"]) else self._shape[0]
        named = [*numbering, *(axis for axis in self._leading if axis in _IN_A_PICTURE)]
        places = [[*self._leading].index(axis) for axis in named]
        grid = np.arange(self._planes).reshape([*self._leading.values()])
        self._pages_of = grid.transpose(places).reshape(self.count, -1)
        sizes = ", ".join(f"{axis} {size}" for axis, size in zip(axes, shape, strict=True))
        self.described = f"{counted(self.count, 'picture')} ({sizes})"

    def _page(self, number: int) -> tifffile.TiffPage:
        page = self._series[number]
        if page is None:
            raise UsageError("parts of it lie in other files, or are missing; save it as one file")
        return page.aspage()

    def _plane(self, number: int) -> tuple[np.ndarray, tifffile.TiffPage]:
        """Decode a page: ``(H, W, samples)``, in the machine's byte order."""
        series, keyframe = self._series, self._series.keyframe
        if series.dataoffset is None:
            page = self._page(number)
            check_page(cast(bytes, self._data), self._file, page)
            samples = page.asarray(squeeze=False)[:, 0]
        else:  # ImageJ may have a single directory for all of them
            page = keyframe.aspage()
            check_page(cast(bytes, self._data), self._file, page)
            start = series.dataoffset + number * keyframe.nbytes
            if start + keyframe.nbytes > len(self._data):
                raise UsageError("it is cut short; get an intact copy")
            dtype = np.dtype(keyframe.dtype).newbyteorder(self._file.byteorder)
            samples = np.frombuffer(self._data[start : start + keyframe.nbytes], dtype)
            samples = samples.reshape(keyframe.shaped)[:, 0]
        samples = np.moveaxis(samples, 0, 3).reshape(*samples.shape[1:3], -1)
        return samples.astype(samples.dtype.newbyteorder("="), copy=False), page

    def _decode(self, number: int) -> Decoded:
        with naming(self.label(number)):
            planes = [self._plane(int(plane)) for plane in self._pages_of[number]]
            page = planes[0][1]
            colours = self._colours(page)
            extra = [ALPHA_KINDS.get(int(code), "unspecified") for code in page.extrasamples]
            alpha = next((i for i, kind in enumerate(extra) if kind != "unspecified"), None)
            if alpha is not None and len(planes) > 1:
                raise UsageError("its channels have an alpha each; save them without")
            samples = np.concatenate([plane for plane, _ in planes], axis=2)
            if samples.dtype == np.float16:
                samples = samples.astype(np.float32)
            if not np.isfinite(samples).all():
                raise UsageError("it holds samples that are NaN or infinite; replace them with numbers")
            found = Decoded(samples)
            if alpha is not None:
                found.alpha_kind, found.alpha = extra[alpha], np.ascontiguousarray(samples[..., colours + alpha])
                found.samples = np.delete(samples, colours + alpha, axis=2)
            if len(planes) > 1 or (found.samples.shape[2] > 1 and (colours == 3) != (found.samples.shape[2] == 3)):
                found.colours = colours if len(planes) == 1 else 1
            return found

    def _colours(self, page: tifffile.TiffPage) -> int:
        """Count the samples that are colours; the colours of a palette are how ImageJ shows what it calls gray."""
        bits, kind = page.bitspersample, page.photometric
        if kind == _KINDS.PALETTE and not self._file.is_imagej:
            raise UsageError("its colours are those of a palette; convert it to gray or RGB")
        if kind not in (_KINDS.MINISBLACK, _KINDS.MINISWHITE, _KINDS.PALETTE, _KINDS.RGB) or (1 < bits < 8):
            raise UsageError("its samples are of a kind that no stack is written with; convert it to gray or RGB")
        return 3 if kind == _KINDS.RGB else 1

    def write(self, name: str, file: BinaryIO, samples_of: Callable[[int], np.ndarray]) -> None:
        """Write all pictures as pages in the order of the file, with its axes and what it says of them."""
        shape, colours = self._result_shape(), self._colours(self._series.keyframe)
        held = math.prod(shape[len(self._leading) :]) // math.prod(self.kind.size)
        alpha = [] if self.kind.alpha is None else [self.kind.alpha]
        dtype = np.dtype(self.kind.dtype)
        is_imagej, page = self._file.is_imagej, self._series.keyframe
        is_big = math.prod(shape) * dtype.itemsize > _CLASSIC or (self._file.is_bigtiff and not is_imagej)
        options: dict[str, Any] = {
            "photometric": _KINDS(page.photometric).name.lower(),
            "planarconfig": None if held == 1 else "contig" if self._inner[-1] in "CS" else "separate",
            "extrasamples": ["unspecified"] * (held - colours - len(alpha)) + alpha or None,
            "iccprofile": bytes(page.tags.valueof(ICC_TAG, b"")) or None,
            "colormap": page.colormap if page.photometric == _KINDS.PALETTE else None,
            "software": False,
        }
        if is_imagej and is_big:  # one directory for all pages, as ImageJ has it then: no other has a place of 32 bits
            options["truncate"] = True
        elif not is_imagej:  # which knows no compression
            options |= {"compression": "zlib", "predictor": dtype.kind != "b"}
        options |= self._said()
        with tifffile.TiffWriter(file, bigtiff=is_big and not is_imagej, imagej=is_imagej) as writer:
            writer.write(self._pages(samples_of, shape[len(self._leading) :]), shape=shape, dtype=dtype, **options)

    def _result_shape(self) -> tuple[int, ...]:
        """Shape of the result: that of the file."""
        held = self.kind.channels // self._pages_of.shape[1] + (self.kind.alpha is not None)
        sizes = {"Y": self.kind.height, "X": self.kind.width}
        return (*self._leading.values(), *(sizes.get(axis, held) for axis in self._inner))

    def _pages(self, samples_of: Callable[[int], np.ndarray], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        """Cut the pages out of the pictures, in the order of the file."""
        picture_of = {int(page): (n, c) for (n, c), page in np.ndenumerate(self._pages_of)}
        each = self.kind.channels // self._pages_of.shape[1]
        for page in range(self._planes):
            number, channel = picture_of[page]
            samples = samples_of(number)[..., channel * each : (channel + 1) * each]
            if self.kind.alpha is not None:
                alpha = self.read(number).alpha
                assert alpha is not None, "its kind says so"
                samples = np.dstack([samples, alpha])
            if self._inner[0] not in "YX":
                samples = np.moveaxis(samples, 2, 0)
            yield np.ascontiguousarray(samples.reshape(shape))

    def _said(self) -> dict[str, Any]:
        """Collect what the file says of the whole stack, as arguments of `TiffWriter.write`."""
        page = self._file.pages.first.aspage()
        axes = "".join(self._leading) + self._inner
        geometry = tiff_geometry.of(page, page)
        sample = np.empty(0)  # for texts, which are left out here
        options = tiff_geometry.options(None if geometry is None else replace(geometry, text=""), sample)
        if self._file.is_ome:
            text = tiff_texts.of_stack(page.description, self.kind.dtype, self._planes)
            return options | {"description": text.encode(), "metadata": None}
        if self._file.is_imagej:
            told = {name: value for name, value in (self._file.imagej_metadata or {}).items() if name not in _COUNTED}
            return options | {"metadata": {"axes": axes, **told}}
        if self._series.kind == "shaped":
            told = {**(self._file.shaped_metadata or ({},))[0]}
            told.pop("shape", None)
            return options | {"metadata": told | {"axes": axes}}
        return options | {"metadata": None}
