"""Averaging along the fit: one network, and one picture, better than those of any step."""

from __future__ import annotations


def weight_of_newest(most: float, window: int, t: int) -> float:
    """Compute the weight of the newest value at update ``t``, counted from 1, of an exponential moving average.

    ``a <- a + (1 - f) (x - a)`` with ``f = min(most, t / (t + window))``: early on, when the network still travels far,
    the average reaches back over a part of the way only.  The first update gives it its value.

    Parameters
    ----------
    most : float
        The largest f, in [0, 1); 0 follows the newest value.
    window : int
        The larger it is, the shorter the average reaches back early on.
    t : int
        Number of the update.

    Returns
    -------
    float
        1 - f; 1 at the first update.
    """
    return 1.0 if t == 1 else 1 - min(most, t / (t + window))
