"""A picture: a float32 image with the kind of its file, and what goes along with it untouched."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dip_fast.pictures.geometry import Geometry
from dip_fast.pictures.kind import Kind


@dataclass(frozen=True, eq=False)
class Extras:
    """What goes along with a picture, untouched, from its file into the file of the result.

    Attributes
    ----------
    alpha : ndarray, optional
        ``(H, W)`` in the samples' dtype, upright, its values as they were read.
    icc_profile : bytes, optional
        The colour profile as it stands in the file.
    exif : bytes, optional
        A TIFF-structured EXIF block, only where metadata are kept: orientation 1, no thumbnail.
    aside : tuple of ndarray, optional
        Samples that are no part of the scene (`read_picture` has which): where, bool ``(H, W, C)``, and the samples,
        ``(H, W, C)`` in their dtype, which count there alone.
    geometry : Geometry, optional
        The size and the place of the pixels.
    jpeg : dict, optional
        How a JPEG file was compressed, or is to be, as options of Pillow: ``quality``, or ``qtables`` and
        ``subsampling``.
    """

    alpha: np.ndarray | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    aside: tuple[np.ndarray, np.ndarray] | None = None

    def put_back(self, samples: np.ndarray) -> np.ndarray:
        """Return the samples of a picture of the same size with those that were set aside."""
        return samples if self.aside is None else np.where(*self.aside, samples)

    geometry: Geometry | None = None
    jpeg: dict[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Picture:
    """A file's content with what is needed to write a result of the same kind.

    Attributes
    ----------
    kind : Kind
        What the file is, apart from the pixels.
    image : ndarray
        float32, ``(H, W, C)``, upright, scaled so that ``kind.limits`` map to [0, 1]; with an estimate where
        samples were set aside.
    extras : Extras
        Alpha, colour profile and kept EXIF data.
    notes : tuple of str
        One sentence for each conversion that was made when the file was read.
    missing : ndarray, optional
        bool, ``(H, W)``: pixels with a sample that is NaN or infinite, which `image` has the mean of the others for;
        None where there is none.
    jpeg : bytes, optional
        The content of the file, where it is a JPEG file; `dip_fast.pictures.jpeg` finds in it how it was coded.
    """

    kind: Kind
    image: np.ndarray
    extras: Extras = field(default_factory=Extras)
    notes: tuple[str, ...] = ()
    missing: np.ndarray | None = None
    jpeg: bytes | None = None

    @property
    def name(self) -> str:
        """File name without its folder; ``"stdin"`` for bytes."""
        return self.kind.name

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.kind.size

    @property
    def channels(self) -> int:
        """1 for gray, 3 for RGB, any number for other data."""
        return self.kind.channels

    @property
    def samples(self) -> np.ndarray:
        """The samples as they stand in the file, upright."""
        return self.extras.put_back(self.kind.to_samples(self.image))

    def cropped(self, rows: slice, columns: slice) -> Picture:
        """Return a part as a picture of its own; it has no JPEG file, whose blocks are those of the whole."""
        part, extras = (rows, columns), self.extras
        geometry, aside = extras.geometry, extras.aside
        image = np.ascontiguousarray(self.image[part])
        return replace(
            self,
            kind=replace(self.kind, height=image.shape[0], width=image.shape[1]),
            image=image,
            extras=replace(
                extras,
                alpha=None if extras.alpha is None else np.ascontiguousarray(extras.alpha[part]),
                geometry=None if geometry is None else geometry.cropped(columns.start, rows.start),
                aside=None if aside is None else (aside[0][part], aside[1][part]),
            ),
            missing=None if self.missing is None else self.missing[part],
            jpeg=None,
        )

    def in_range(self, kind: Kind) -> np.ndarray:
        """Scale the image to the range of another picture's kind, where the samples of both are of one type."""
        return self.image if self.kind.dtype != kind.dtype else kind.to_unit(self.samples)
