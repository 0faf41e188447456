"""The loop that fits a network to one damaged picture."""

from dip_fast.fitting.loop import Fit, fit, prepare

__all__ = ["Fit", "fit", "prepare"]
