"""What a drawn picture is blended with, as a part of its program.  Needs numpy alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Blend(NamedTuple):
    """A picture that the drawn one is blended with: ``samples + strength (drawn - samples)``.

    Attributes
    ----------
    samples : ndarray
        ``(H, W, C)``, uint8, uint16 or float32, in the picture's range.
    strength : float
        In [0, 1).
    """

    samples: np.ndarray
    strength: float

    def of(self, drawn: np.ndarray) -> np.ndarray:
        """Blend a drawn picture, float32, operation by operation as engines do."""
        samples = self.samples.astype(np.float32)
        return np.asarray(samples + np.float32(self.strength) * (drawn - samples))
