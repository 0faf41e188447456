"""The operator ``similar_patches``: a picture estimated from its noisy patches and the patches that are like them.

`similar_patches_reference` defines the operator, and runs where there is no kernel.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from dip_fast.ops import extension

NAME = "dip_fast::similar_patches"
SIDE = 5  # of a patch, in pixels
STRIDE = 3  # pixels between the first patches of groups
MAX_REACH = 64
UNIT = 2.0**-32  # of sums: those of whole numbers do not depend on their order, hence not on threads or device
GROUPS = 1024  # that the definition looks at at a time
FAR = 1e3  # what no sample of the picture is near


def similar_patches(
    y: Tensor,
    x: Tensor,
    n: int,
    first: int,
    rows: int,
    alike: int,
    neighbours: int,
    reach: int,
    near: int,
    variance: Tensor,
    low: float,
    high: float,
) -> tuple[Tensor, Tensor]:
    """Estimate rows of patches of a picture by the patches that are alike in a first estimate.

    Parameters
    ----------
    y, x : Tensor
        Noisy pictures and their first estimates, float32, (N, C, H, W); neighbours in time or depth follow each other.
    n : int
        Which picture.
    first, rows : int
        Groups begin with the patches at each third row and column; these are the rows of groups ``first .. first +
        rows``, of ``(H - 5) // 3 + 1``.
    alike : int
        Patches of a group.
    neighbours : int
        Pictures on each side that patches are looked for in.
    reach, near : int
        Pixels in each direction that they are looked for in the picture itself, and in others.
    variance : Tensor
        Of the noise of samples, float64, at equal steps of their mean from `low` to `high`; linear in between, and
        constant beyond.
    low, high : float

    Returns
    -------
    sums, count : Tensor
        int64, (P, C, B, W) and (P, B, W): the sums of the estimates of each sample in all patches of all groups, in
        units of 2**-32, and their number; of the pictures and the rows of `band`.

    Raises
    ------
    TypeError
        For other dtypes.
    ValueError
        For other shapes, or what does not lie in the pictures.

    Notes
    -----
    A *group* is a patch of 5x5 pixels and the others whose distance to it in x is least.  With the mean m of its k
    patches in x, the noise's variances v at m, and the rows ``Q = (x - m) / sqrt v`` and ``P = (y - m) / sqrt v``,

        estimates = m + P Q' (Q Q' + (k - 1) I)^-1 Q sqrt v

    see `dip_fast.fitting.similar_patches`.  All is computed in float64 but for the distances.

    Examples
    --------
    >>> y = torch.rand(1, 1, 20, 23)
    >>> table = torch.full((2,), 0.01, dtype=torch.float64)
    >>> sums, count = similar_patches(y, y, 0, 0, 6, 8, 0, 13, 0, table, 0.0, 1.0)
    >>> sums.shape, int(count.sum()) == 6 * 7 * 8 * 25
    (torch.Size([1, 1, 20, 23]), True)
    """
    return torch.ops.dip_fast.similar_patches(y, x, n, first, rows, alike, neighbours, reach, near, variance, low, high)


def band(shape: tuple[int, ...], n: int, first: int, rows: int, neighbours: int, reach: int) -> tuple[slice, slice]:
    """Find the pictures and the rows that have a part in the estimates of rows of groups, of (N, C, H, W)."""
    return (
        slice(max(n - neighbours, 0), min(n + neighbours + 1, shape[0])),
        slice(max(first * STRIDE - reach, 0), min((first + rows - 1) * STRIDE + SIDE + reach, shape[2])),
    )


# ---- definition


def similar_patches_reference(
    y: Tensor,
    x: Tensor,
    n: int,
    first: int,
    rows: int,
    alike: int,
    neighbours: int,
    reach: int,
    near: int,
    variance: Tensor,
    low: float,
    high: float,
) -> tuple[Tensor, Tensor]:
    """Compute `similar_patches` in PyTorch: its definition."""
    _check(y, x, n, first, rows, alike, neighbours, reach, near, variance, low, high)
    pictures, lines = band(y.shape, n, first, rows, neighbours, reach)
    y, x = y[pictures], x[pictures]
    channels, height, width = y.shape[1:]
    samples, estimates = (images.movedim(1, 3).reshape(-1, channels) for images in (y, x))
    sums = torch.zeros(samples.shape, dtype=torch.int64, device=y.device)
    count = torch.zeros(len(samples), dtype=torch.int64, device=y.device)
    square = torch.arange(SIDE, device=y.device)
    inside = (square[:, None] * width + square).flatten()
    strip = max(1, GROUPS // ((width - SIDE) // STRIDE + 1))
    for row in range(first, first + rows, strip):
        corners = _groups(x, n - pictures.start, row, min(strip, first + rows - row), alike, reach, near)
        places = (corners[..., None] + inside).flatten()
        shape = (*corners.shape, SIDE * SIDE * channels)
        patches = _restored(samples[places].view(shape), estimates[places].view(shape), variance, low, high)
        sums.index_add_(0, places, (patches.view(-1, channels) / UNIT).round().long())
        count += places.bincount(minlength=len(count))
    sums, count = sums.view(-1, height, width, channels).movedim(3, 1), count.view(-1, height, width)
    return sums[..., lines, :].contiguous(), count[:, lines].contiguous()


def _restored(y: Tensor, x: Tensor, variance: Tensor, low: float, high: float) -> Tensor:
    """Estimate patches from noisy ones y and first estimates x, all (groups, patches, samples), in float64."""
    y, x = y.double(), x.double()  # what has next to no noise makes matrices that are singular in float32
    mean = x.mean(1, keepdim=True)
    deviation = _at(variance, (mean - low) * ((len(variance) - 1) / (high - low))).sqrt()
    Q, P = (x - mean) / deviation, (y - mean) / deviation
    both = Q @ torch.cat((Q, P), dim=1).transpose(1, 2)
    k = Q.shape[1]
    factor = torch.linalg.cholesky(both[..., :k] + (k - 1) * torch.eye(k, dtype=y.dtype, device=y.device))
    weights = torch.cholesky_solve(both[..., k:], factor)
    return mean + weights.transpose(1, 2) @ Q * deviation


def _at(table: Tensor, place: Tensor) -> Tensor:
    """Interpolate a table."""
    place = place.clamp(0, len(table) - 1)
    left = place.long().clamp(max=len(table) - 2)
    return table[left] + (place - left) * (table[left + 1] - table[left])


def _groups(x: Tensor, n: int, first: int, rows: int, alike: int, reach: int, near: int) -> Tensor:
    """Find patches that are like those of picture n, as places of their first samples in the flat pictures.

    Returns
    -------
    Tensor
        int64 (groups, patches).
    """
    height, width = x.shape[2:]
    columns = (width - SIDE) // STRIDE + 1
    shifts = [(0, 0, 0)]
    for k in range(len(x)):
        here = range(-reach, reach + 1) if k == n else range(-near, near + 1)
        shifts += [(k - n, *by) for by in itertools.product(here, here) if (k, *by) != (n, 0, 0)]
    around = pad(x, (reach,) * 4, value=FAR)
    steps = torch.tensor([(k * height + down) * width + right for k, down, right in shifts], device=x.device)
    top, high, wide = first * STRIDE, (rows - 1) * STRIDE + SIDE, (columns - 1) * STRIDE + SIDE
    patches = x[n, :, top : top + high, :wide]
    distances = torch.empty((len(shifts), rows, columns), device=x.device)
    for distance, (k, down, right) in zip(distances, shifts, strict=True):
        begin = top + reach + down, reach + right
        there = around[n + k, :, begin[0] : begin[0] + high, begin[1] : begin[1] + wide]
        distance.copy_(avg_pool2d((patches - there).square_().sum(0, keepdim=True), SIDE, STRIDE)[0])
    distances[0] = -1.0  # each is of its own group
    nearest = distances.flatten(1).t().topk(alike, dim=1, largest=False).indices
    across = torch.arange(columns, device=x.device) * STRIDE
    corners = ((torch.arange(rows, device=x.device)[:, None] + first) * STRIDE + n * height) * width + across
    return corners.flatten()[:, None] + steps[nearest]


# ---- checks, fake, registration


def _check(
    y: Tensor,
    x: Tensor,
    n: int,
    first: int,
    rows: int,
    alike: int,
    neighbours: int,
    reach: int,
    near: int,
    variance: Tensor,
    low: float,
    high: float,
) -> None:
    for name, images in (("y", y), ("x", x)):
        if images.dtype != torch.float32:
            raise TypeError(f"{name} must be of dtype float32, got {images.dtype}")
    if y.dim() != 4 or y.numel() == 0 or min(y.shape[2:]) < SIDE:
        raise ValueError(f"y must be (N, C, H, W) with N, C >= 1 and H, W >= 5, got {tuple(y.shape)}")
    if x.shape != y.shape:
        raise ValueError(f"x must be of the shape of y, {tuple(y.shape)}, got {tuple(x.shape)}")
    N, _, H, W = y.shape
    whole = (H - SIDE) // STRIDE + 1
    if not 0 <= n < N:
        raise ValueError(f"n must be one of the {N} pictures, counted from 0, got {n}")
    if not (first >= 0 and rows >= 1 and first + rows <= whole):
        raise ValueError(f"rows {first} .. {first} + {rows} of groups must lie in 0 .. {whole}")
    if not (neighbours >= 0 and 0 <= near <= reach <= MAX_REACH):
        raise ValueError(
            f"neighbours must be at least 0, and 0 <= near <= reach <= {MAX_REACH}, "
            f"got {neighbours}, {near} and {reach}"
        )
    most = min(H - SIDE + 1, reach + 1) * min(W - SIDE + 1, reach + 1)  # at a corner
    if not 2 <= alike <= most:
        raise ValueError(f"alike must be in 2 .. {most}, got {alike}")
    if variance.dtype != torch.float64:
        raise TypeError(f"variance must be of dtype float64, got {variance.dtype}")
    if variance.dim() != 1 or len(variance) < 2 or not low < high:
        raise ValueError(
            f"variance must be a table of two values or more, from low to a larger high, got {tuple(variance.shape)}, "
            f"{low} and {high}"
        )


def _fake(
    y: Tensor,
    x: Tensor,
    n: int,
    first: int,
    rows: int,
    alike: int,
    neighbours: int,
    reach: int,
    near: int,
    variance: Tensor,
    low: float,
    high: float,
) -> tuple[Tensor, Tensor]:
    _check(y, x, n, first, rows, alike, neighbours, reach, near, variance, low, high)
    pictures, lines = (each.stop - each.start for each in band(y.shape, n, first, rows, neighbours, reach))
    shape = pictures, y.shape[1], lines, y.shape[3]
    return y.new_empty(shape, dtype=torch.int64), y.new_empty((pictures, *shape[2:]), dtype=torch.int64)


if extension.load() is None or NAME not in torch._C._dispatch_get_all_op_names():
    torch.library.define(
        NAME,
        "(Tensor y, Tensor x, int n, int first, int rows, int alike, int neighbours, int reach, int near, "
        "Tensor variance, float low, float high) -> (Tensor, Tensor)",
    )
torch.library.impl(NAME, "default", similar_patches_reference)  # for devices that have no kernel
torch.library.register_fake(NAME, _fake)
