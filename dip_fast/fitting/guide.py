"""The mixing of an estimate with a guide: a picture that another denoiser made of the same noisy one."""

from __future__ import annotations

import torch
from torch import Tensor

from dip_fast import large
from dip_fast.fitting.blur import blur
from dip_fast.fitting.noise_model import NoiseModel
from dip_fast.fitting.pieces import pieces
from dip_fast.fitting.reductions import total
from dip_fast.fitting.results import psnr

# E e_z e_g / E e_z^2.  With CBM3D as the guide, sigma 25: House 0.88, brick 0.88, kodim12 0.89, chelsea 0.91, F16 0.91
# and grass 0.96; with a better one, a seventh nearer to the truth than CBM3D, 0.75 to 0.8.
SHARED = 0.9
WINDOW = 20.0  # pixels: 6 give a guide that is worse as much, and CBM3D up to 0.06 dB less
MOST = 0.5  # weight of the guide: two estimates that are nearly alike may share more of their errors


def mix(y: Tensor, z: Tensor, guide: Tensor, noise: NoiseModel) -> tuple[Tensor, float, float]:
    """Mix a guide g into an estimate z of the same picture, by the errors of both.

    With the errors e_z and e_g of the two, of which E e_z e_g = r E e_z^2 is shared, their distance D shows without the
    truth:

        D^2 = E (g - z)^2  =  e_g^2 + e_z^2 - 2 r e_z^2

    So the error of the guide is ``e_g^2 = D^2 + (2 r - 1) e_z^2``, and that of ``z + w (g - z)``

        (1 - w)^2 e_z^2 + w^2 e_g^2 + 2 w (1 - w) r e_z^2  =  (1 - 2 (1 - r) w) e_z^2 + w^2 D^2

    It is least at ``w = (1 - r) e_z^2 / D^2``: a guide that is far from z, as the noisy picture or a blurred one is,
    gets next to nothing.  An estimate of the least error there is would have r = 1 with any guide; what two good ones
    share was measured.

    The error of z is that of the least there is otherwise: orthogonal to all that can be computed from y, hence to
    ``y - z = n - e_z`` with the noise n of variance s^2, which gives ``E (y - z)^2 = s^2 - e_z^2``.  No such thing is
    known of a guide: what it has lost of the picture and what it has left of the noise cancel in E (y - g)^2 - s^2,
    by which a slightly blurred picture looks better than any other.

    Parameters
    ----------
    y, z, guide : Tensor
        The noisy picture, without the bias of noise that is cut off, an estimate and the guide, ``(1, C, H, W)``.
    noise : NoiseModel

    Returns
    -------
    x : Tensor
        The mixture.
    guide_psnr, mixed_psnr : float
        PSNR in dB of the guide alone and of x, estimated without the truth.
    """
    size = y.shape[2], y.shape[3]
    excess = far = gained = 0.0  # sums over the picture
    for _, _, place in pieces(size, 0):
        excess += float(total(((y[place] - z[place]).square() - noise.variance_at_mean(z[place])).double()))
    error = abs(excess) / y.numel()
    x = large.tensor(tuple(z.shape), z)
    for seen, inner, place in pieces(size, 3 * int(WINDOW)):
        apart = large.part(guide, seen) - large.part(z, seen)
        distance = blur(apart.square().mean(1, keepdim=True), WINDOW)[inner]
        weight = ((1 - SHARED) * error / distance.clamp(min=1e-12)).clamp(max=MOST)
        x[place] = torch.lerp(z[place], guide[place], weight)
        far += float(total(distance.double()))
        gained += float(total((2 * (1 - SHARED) * error * weight - weight.square() * distance).double()))
    pixels = size[0] * size[1]
    return x, psnr(far / pixels + (2 * SHARED - 1) * error), psnr(error - gained / pixels)
