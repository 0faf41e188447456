"""Samples that are no part of the scene: which they are, and what is said of them."""

from __future__ import annotations

import numpy as np

from dip_fast.pictures.decoded import Decoded
from dip_fast.pictures.ranges import Range


def hidden_by(alpha: np.ndarray | None, decoded: Decoded) -> np.ndarray | None:
    """Find the pixels that an alpha hides, whose colours anything may have left there; none where it hides all."""
    if alpha is None or decoded.alpha_kind == "unspecified":
        return None
    hidden = alpha == 0
    return hidden if hidden.any() and not hidden.all() else None


def set_aside(hidden: np.ndarray | None, found: Range, decoded: Decoded) -> np.ndarray | None:
    """Find the samples to set aside, bool ``(H, W, C)``, and say how many there are."""
    off = found.outliers
    if off is not None:
        low, high = found.whole
        decoded.notes.append(
            f"{_share(off)} of the samples lie far outside the range of the others, {low:.6g} to {high:.6g}, and are "
            "carried through untouched."
        )
    if hidden is not None:
        decoded.notes.append(f"The colours of {_share(hidden)} of the pixels are hidden under alpha 0 and left alone.")
        every = np.repeat(hidden[..., None], decoded.samples.shape[2], axis=2)
        off = every if off is None else off | every
    return off


def _share(chosen: np.ndarray) -> str:
    return f"{int(chosen.sum()):,} ({chosen.mean():.2g})" if chosen.mean() < 1e-4 else f"{chosen.mean():.2%}"
