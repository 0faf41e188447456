"""What fills large holes: copies of patches that are known elsewhere, from coarse to fine.

A network fitted to what is known draws in a large hole what goes on from its edges, shelves and beams, and no detail.
At a size at which the hole is small, such an outline looks like the rest of the picture, so its patches are like some
that are known.  There each pixel of the hole becomes the mean of what the patches around it are most like, and the next
larger size begins with copies from the same places: sharp ones, since they are of the larger picture.

References
----------
Y. Wexler, E. Shechtman, M. Irani, "Space-Time Completion of Video", IEEE TPAMI 29 (2007), doi:10.1109/TPAMI.2007.60:
patches and means in turns, from coarse to fine.
C. Barnes et al., "PatchMatch", ACM Transactions on Graphics 28 (2009), doi:10.1145/1531326.1531330: the search.
"""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d, pad

from dip_fast.fitting.degradations import Degradation
from dip_fast.fitting.objectives import Passes

LARGE = 8  # pixels from the edge of a hole to its middle, from which on it is large
LEAST_SIDE = 16  # of a picture that is made smaller, in pixels
SIDE = 5  # of a patch, in pixels
REACH = SIDE // 2
COMPONENTS = 24  # principal components of patches, by which they are compared
SAMPLES = 4000  # patches that these are taken from
PLACE = (
    2.0  # what a distance of the picture's shorter side counts for, in ranges of all samples along a side of a patch
)
FEWEST = 500  # known patches that are worth searching
ROUNDS = 2  # of searches and means at each size: with more, details are washed out
SWEEPS = 4  # of a search
PART = 2**14  # patches at a time


def halvings(known: Tensor) -> int:
    """Count how often a picture is to be halved until none of its holes is large.

    Parameters
    ----------
    known : Tensor
        bool, ``(1, 1, H, W)``.
    """
    count = 0
    while min(known.shape[2:]) >= 2 * LEAST_SIDE and _dilated(known, LARGE).logical_not().any():
        known, count = _all_of_four(known), count + 1
    return count


def kinds_of_passes(known: Tensor, count: int) -> tuple[Passes, ...]:
    """Describe the passes of `fill`, for a picture that is halved so often."""
    pixels = float((~known).sum())
    return tuple(Passes(ROUNDS, alike=pixels / 4**n) for n in reversed(range(count + 1)))


def fill(degradation: Degradation, first: Tensor, count: int, seed: int = 0) -> Generator[None, int | None, Tensor]:
    """Fill holes with copies of known patches that are like those of a first estimate.

    Parameters
    ----------
    degradation : Degradation
        One that keeps known pixels.
    first : Tensor
        The estimate, ``(1, C, H, W)``.
    count : int
        How often the picture is halved, see `halvings`.
    seed : int
        Of the search.

    Returns
    -------
    Tensor
        Of the shape of the estimate, which remains where hardly any patch is known, or the work is to be brief.
    """
    assert degradation.kept is not None
    device, generator = first.device, torch.Generator().manual_seed(seed)
    sizes = [(degradation.composite(first).cpu(), degradation.kept.all(dim=1, keepdim=True).cpu())]
    for _ in range(count):
        sizes.append((avg_pool2d(sizes[-1][0], 2), _all_of_four(sizes[-1][1])))
    found: Tensor | None = None
    for picture, seen in reversed(sizes):
        copying = _Copying(picture, seen, generator)
        if found is not None and copying.has_sources:
            copying.begin(found)
        for _ in range(ROUNDS):
            if (yield):
                return sizes[0][0].to(device)
            if copying.has_sources:
                copying.search()
                copying.average()
        if copying.has_sources:
            found = copying.places()
    return degradation.composite(copying.image.to(device))


class _Copying:
    """The holes of a picture of one size, and the known patches that those around them are most like.

    Patches are named by the number of their middle pixel.
    """

    def __init__(self, picture: Tensor, known: Tensor, generator: torch.Generator) -> None:
        self.height, self.width = picture.shape[2:]
        self.generator = generator
        self.image = picture.clone()  # (1, C, H, W), whose holes are filled
        self.pixels = self.image[0].flatten(1).t()  # (H W, C), a view
        self.holes = _numbers(~known)
        incomplete = _dilated(~known, REACH)
        self.asked = _numbers(incomplete)
        self.sources = torch.zeros_like(known[0, 0])
        inner = slice(REACH, -REACH), slice(REACH, -REACH)
        self.sources[inner] = ~incomplete[0, 0][inner]
        self.is_source = self.sources.flatten()
        known_patches = _numbers(self.sources)
        self.has_sources = len(known_patches) >= FEWEST
        if self.has_sources:
            self.number = torch.full((self.height * self.width,), -1)
            self.number[self.asked] = torch.arange(len(self.asked))
            self._describe(known_patches)
            self.matches = known_patches[self._random(0, len(known_patches) - 1)]

    def begin(self, found: Tensor) -> None:
        """Copy from the places that were found at half the size, ``(2, h, w)``."""
        rows, columns = self.asked // self.width, self.asked % self.width
        half = (rows // 2).clamp(max=found.shape[1] - 1), (columns // 2).clamp(max=found.shape[2] - 1)
        rows, columns = 2 * found[0][half] + rows % 2, 2 * found[1][half] + columns % 2
        there = rows.clamp(0, self.height - 1) * self.width + columns.clamp(0, self.width - 1)
        self.matches = torch.where(self.is_source[there], there, self.matches)
        self.pixels[self.holes] = self.pixels[self.matches[self.number[self.holes]]]

    def search(self) -> None:
        """Look for known patches that are more alike: near those of the neighbours, and at random around each."""
        self.wanted = self._described(self.asked)
        self.distances = self._distances(self.matches)
        for sweep in range(SWEEPS):
            for step in (8, 4, 2, 1) if sweep == 0 else (2, 1):
                for down, right in ((-step, 0), (step, 0), (0, -step), (0, step)):
                    self._propagate(down, right)
            reach = max(self.height, self.width)
            while reach:
                rows = self.matches // self.width + self._random(-reach, reach)
                columns = self.matches % self.width + self._random(-reach, reach)
                self._try(rows, columns)
                reach //= 2

    def average(self) -> None:
        """Make each pixel of a hole the mean of what the patches that hold it are like."""
        weights = torch.exp(-self.distances / (2 * self.distances.median().clamp(min=1e-12)))
        rows, columns = self.holes // self.width, self.holes % self.width
        sums = torch.zeros(len(self.holes), self.pixels.shape[1])
        total = torch.zeros(len(self.holes), 1)
        for down in range(-REACH, REACH + 1):
            for right in range(-REACH, REACH + 1):
                number, inside = self._asked_at(rows + down, columns + right)
                weight = torch.where(inside, weights[number], 0.0)[:, None]
                # Of the patch's own source, the pixel at the same place.
                sums += weight * self.pixels[self.matches[number] - down * self.width - right]
                total += weight
        self.pixels[self.holes] = sums / total.clamp(min=1e-12)

    def places(self) -> Tensor:
        """Tell where each pixel was copied from, rows and columns ``(2, H, W)``; known ones from where they are."""
        there = torch.arange(self.height * self.width)
        there[self.asked] = self.matches
        return torch.stack((there // self.width, there % self.width)).view(2, self.height, self.width)

    def _propagate(self, down: int, right: int) -> None:
        """Try what the neighbours at a distance are like, moved by as much."""
        number, inside = self._asked_at(self.asked // self.width + down, self.asked % self.width + right)
        near = self.matches[number]
        self._try(near // self.width - down, near % self.width - right, inside)

    def _try(self, rows: Tensor, columns: Tensor, allowed: Tensor | bool = True) -> None:
        """Take these patches in place of the matches where they are sources, and more alike."""
        there, inside = self._at(rows, columns)
        distances = self._distances(there)
        better = inside & self.is_source[there] & (distances < self.distances) & allowed
        self.matches = torch.where(better, there, self.matches)
        self.distances = torch.where(better, distances, self.distances)

    def _at(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Find the numbers of pixels, and which of them lie in the picture; that of the others is 0."""
        inside = (rows >= 0) & (rows < self.height) & (columns >= 0) & (columns < self.width)
        return torch.where(inside, rows * self.width + columns, 0), inside

    def _asked_at(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Find the patches that are asked for at pixels, and tell where there is one; the number of others is 0."""
        there, inside = self._at(rows, columns)
        number = self.number[there]
        return number.clamp(min=0), inside & (number >= 0)

    def _describe(self, known_patches: Tensor) -> None:
        """Find the principal components of known patches, and describe all of these by them and their place."""
        chosen = known_patches[torch.randperm(len(known_patches), generator=self.generator)[:SAMPLES]]
        patches = self._patches(chosen).double()
        mean = patches.mean(0)
        covariance = (patches - mean).t() @ (patches - mean)
        self.basis = torch.linalg.eigh(covariance).eigenvectors[:, -COMPONENTS:].float()
        self.mean = mean.float()
        components = self.basis.shape[1] + 2
        self.descriptions = torch.zeros(self.height * self.width, components)
        for part in known_patches.split(PART):
            self.descriptions[part] = self._described(part)

    def _described(self, numbers: Tensor) -> Tensor:
        """Describe patches as they are now."""
        scale = PLACE * SIDE / min(self.height, self.width)
        place = torch.stack((numbers // self.width, numbers % self.width), dim=1) * scale
        parts = [(self._patches(part) - self.mean) @ self.basis for part in numbers.split(PART)]
        return torch.cat((torch.cat(parts), place), dim=1)

    def _distances(self, matches: Tensor) -> Tensor:
        return (self.wanted - self.descriptions[matches]).square().sum(1)

    def _patches(self, numbers: Tensor) -> Tensor:
        """Cut patches out, mirrored at the picture's edges: ``(patches, SIDE * SIDE * C)``."""
        wide = pad(self.image, (REACH,) * 4, mode="reflect")[0].flatten(1).t()
        width = self.width + 2 * REACH
        corners = numbers // self.width * width + numbers % self.width
        square = torch.arange(SIDE)
        return wide[corners[:, None] + (square[:, None] * width + square).flatten()].flatten(1)

    def _random(self, least: int, most: int) -> Tensor:
        """Draw a number for each patch that is asked for."""
        return torch.randint(least, most + 1, self.asked.shape, generator=self.generator)


def _dilated(mask: Tensor, pixels: int) -> Tensor:
    """Widen what is True, ``(1, 1, H, W)``, by so many pixels on each side."""
    return max_pool2d(mask.float(), 2 * pixels + 1, 1, pixels) > 0


def _all_of_four(known: Tensor) -> Tensor:
    """Halve a mask: True where all of four pixels are."""
    return max_pool2d((~known).float(), 2) == 0


def _numbers(mask: Tensor) -> Tensor:
    """List the numbers of the pixels where a mask is True."""
    return mask.flatten().nonzero()[:, 0]
