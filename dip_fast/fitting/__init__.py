"""The loop that fits a network to one damaged picture."""

from dip_fast.fitting.adjoint import linear
from dip_fast.fitting.convolution import Convolution
from dip_fast.fitting.degradations import Degradation, Identity, Mask, Operator
from dip_fast.fitting.filling import MaskedFilling
from dip_fast.fitting.interface import fit
from dip_fast.fitting.loop import Fit
from dip_fast.fitting.masked import MaskedPrediction
from dip_fast.fitting.measurement import Measurement
from dip_fast.fitting.noise_level import measure_noise
from dip_fast.fitting.noise_model import NoiseModel
from dip_fast.fitting.objectives import DeepImagePrior, Example, Objective
from dip_fast.fitting.quantisation import Quantised
from dip_fast.fitting.results import Result, State
from dip_fast.fitting.start import deep_image_prior, masked_filling, masked_prediction, prepare

__all__ = [
    "Convolution",
    "DeepImagePrior",
    "Degradation",
    "Example",
    "Fit",
    "Identity",
    "Mask",
    "MaskedFilling",
    "MaskedPrediction",
    "Measurement",
    "NoiseModel",
    "Objective",
    "Operator",
    "Quantised",
    "Result",
    "State",
    "deep_image_prior",
    "fit",
    "linear",
    "masked_filling",
    "masked_prediction",
    "measure_noise",
    "prepare",
]
