"""Estimates of the noise in a picture."""

from __future__ import annotations

from torch import Tensor


def haar_noise(y: Tensor, known: Tensor | None = None) -> float:
    """Estimate the standard deviation of white noise from the diagonal Haar coefficients of squares of four pixels.

    The median magnitude of the coefficients, over 0.6745, is the deviation of a Gaussian; edges are too few to move a
    median.  Clipping at the ends of the range makes the estimate too small.

    Parameters
    ----------
    y : Tensor
        ``(1, C, H, W)``.
    known : Tensor, optional
        ``(1, 1, H, W)`` or ``(1, C, H, W)``, bool; squares with an unknown sample do not count.

    Returns
    -------
    float
        The mean over the channels, in units of y; 0 where no square counts.

    References
    ----------
    D. L. Donoho, I. M. Johnstone, "Ideal spatial adaptation by wavelet shrinkage", Biometrika 81 (1994),
    doi:10.1093/biomet/81.3.425.
    """

    def corners(image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        even = image[..., : image.shape[-2] // 2 * 2, : image.shape[-1] // 2 * 2]
        return even[..., ::2, ::2], even[..., ::2, 1::2], even[..., 1::2, ::2], even[..., 1::2, 1::2]

    a, b, c, d = corners(y)
    coefficients = ((a - b - c + d) / 2)[0].flatten(1)  # (C, squares)
    if known is not None:
        a, b, c, d = corners(known.all(dim=1))
        coefficients = coefficients[:, (a & b & c & d).flatten()]
    if not coefficients.numel():
        return 0.0
    return (coefficients.abs().median(dim=1).values.mean() / 0.6745).item()
