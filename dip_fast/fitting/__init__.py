"""The loop that fits a network to one damaged picture."""

from dip_fast.fitting.degradations import Degradation, Identity, Mask, Operator
from dip_fast.fitting.loop import Fit
from dip_fast.fitting.objectives import DeepImagePrior, Objective
from dip_fast.fitting.results import Result, State
from dip_fast.fitting.start import deep_image_prior, fit, prepare

__all__ = [
    "DeepImagePrior",
    "Degradation",
    "Fit",
    "Identity",
    "Mask",
    "Objective",
    "Operator",
    "Result",
    "State",
    "deep_image_prior",
    "fit",
    "prepare",
]
