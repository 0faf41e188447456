"""What other methods make of noise: non-local means at its best strength, and BM3D, which has the true noise.

BM3D is that of the package ``bm3d``, whose licence forbids commercial use: a yardstick, and no dependency.  It runs in
a process of an interpreter that has the package.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of non-local means, in deviations of the noise
BM3D_PROCESS = """
import sys, time
import numpy as np
from bm3d import bm3d, bm3d_rgb
noisy, sigma = np.load(sys.argv[1]), float(sys.argv[2])
begin = time.perf_counter()
found = bm3d(noisy[..., 0], sigma)[..., None] if noisy.shape[2] == 1 else bm3d_rgb(noisy, sigma)
np.save(sys.argv[1], found)
print(time.perf_counter() - begin)
"""


@dataclass(frozen=True)
class Noise:
    """Gaussian noise, or Poisson noise, or both.

    Attributes
    ----------
    sigma : float
        Standard deviation of the Gaussian noise, in 1/255.
    peak : float or None
        Mean of the counts at the value 1; None without Poisson noise.
    """

    sigma: float
    peak: float | None = None

    def __str__(self) -> str:
        parts = [] if self.peak is None else [f"Poisson noise of peak {self.peak:g}"]
        parts += [f"sigma {self.sigma:g}"] if self.sigma else []
        return ", ".join(parts) or "no noise"

    def __bool__(self) -> bool:
        return bool(self.sigma or self.peak)

    @property
    def option(self) -> str:
        """The noise as an option of ``dip-fast run --noise``."""
        return f"{self.sigma}" if self.peak is None else f"{(self.sigma / 255) ** 2},{1 / self.peak}"

    def on(self, clean: np.ndarray) -> np.ndarray:
        """Add it to an image, from the seed 0, and clip."""
        rng = np.random.default_rng(0)
        values = clean if self.peak is None else rng.poisson(clean * self.peak) / self.peak
        noisy: np.ndarray = np.clip(values + rng.normal(0, self.sigma / 255, clean.shape), 0, 1).astype(np.float32)
        return noisy

    def deviation(self, image: np.ndarray) -> float:
        """Standard deviation at the mean of an image, in units of the range [0, 1]."""
        variance = (self.sigma / 255) ** 2
        return math.sqrt(variance if self.peak is None else variance + float(image.mean()) / self.peak)


@dataclass(frozen=True)
class CameraNoise(Noise):
    """The noise of a camera's picture, of which the deviation is known, and that neighbours have it in common."""

    def __str__(self) -> str:
        return "noise of a camera"


# --- non-local means ----------------------------------------------------------------------------------------------


def non_local_means(noisy: np.ndarray, clean: np.ndarray, noise: Noise) -> np.ndarray:
    """Filter by scikit-image's non-local means, at the strength that gives the least error."""
    from skimage.restoration import denoise_nl_means

    sigma, gray = noise.deviation(noisy), noisy.shape[2] == 1
    fixed = {"sigma": sigma, "patch_size": 5, "patch_distance": 6, "fast_mode": True}
    image = noisy[..., 0] if gray else noisy
    found = [
        denoise_nl_means(image, h=strength * sigma, channel_axis=None if gray else 2, **fixed).reshape(noisy.shape)
        for strength in STRENGTHS
    ]
    return min(found, key=lambda filtered: float(np.square(filtered - clean).mean()))


# --- BM3D ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BM3D:
    """BM3D, for colour CBM3D, with the noise as it is.

    Attributes
    ----------
    python : str
        An interpreter that has the package ``bm3d``.
    """

    python: str

    def __call__(self, noisy: np.ndarray, noise: Noise) -> tuple[np.ndarray, float]:
        """Denoise; return the image, and the seconds that it took without those of starting a process."""
        if noise.peak is None:
            return self._gaussian(noisy.astype(np.float64), noise.sigma / 255)
        # The transformed noise has the deviation 1; BM3D compares patches in the range [0, 1].
        sigma = noise.sigma / 255 * noise.peak
        counts = anscombe(noisy.astype(np.float64) * noise.peak, sigma)
        low, span = counts.min(), np.ptp(counts)
        smooth, seconds = self._gaussian((counts - low) / span, 1 / span)
        return from_anscombe(smooth * span + low, sigma) / noise.peak, seconds

    def _gaussian(self, noisy: np.ndarray, sigma: float) -> tuple[np.ndarray, float]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "image.npy"
            np.save(file, noisy)
            command = [self.python, "-c", BM3D_PROCESS, str(file), repr(float(sigma))]
            ended = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if ended.returncode:
                sys.exit(f"BM3D ended with exit code {ended.returncode}")
            return np.load(file), float(ended.stdout.splitlines()[-1])


def find_bm3d(python: str | None) -> BM3D | None:
    """Find an interpreter with the package ``bm3d``: the one that is named, else this one; None where it is missing."""
    tried = python or sys.executable
    if not subprocess.run([tried, "-c", "import bm3d"], capture_output=True).returncode:
        return BM3D(tried)
    if python is not None:
        sys.exit(f"{python} has no package bm3d")
    print(
        "BM3D is left out: this Python has no package bm3d, whose licence forbids commercial use; --bm3d-python names "
        "one that has it",
        file=sys.stderr,
    )
    return None


def anscombe(counts: np.ndarray, sigma: float) -> np.ndarray:
    """Transform counts with Gaussian noise of this deviation on them so that all noise has about the deviation 1.

    ``f(k) = 2 sqrt(k + 3/8 + sigma^2)``, the generalised Anscombe transform.
    """
    transformed: np.ndarray = 2 * np.sqrt(np.maximum(counts + 3 / 8 + sigma**2, 0))
    return transformed


def from_anscombe(transformed: np.ndarray, sigma: float) -> np.ndarray:
    """Invert the mean of `anscombe`, without the bias of its own inverse, in closed form.

    References
    ----------
    M. Makitalo, A. Foi, "Optimal inversion of the generalized Anscombe transformation for Poisson-Gaussian noise",
    IEEE Transactions on Image Processing 22 (2013), doi:10.1109/TIP.2012.2202675.
    """
    d = np.maximum(transformed, 2 * math.sqrt(3 / 8 + sigma**2))
    root = math.sqrt(3 / 2)
    counts: np.ndarray = d**2 / 4 + root / 4 / d - 11 / 8 / d**2 + 5 / 8 * root / d**3 - 1 / 8 - sigma**2
    return np.maximum(counts, 0)
