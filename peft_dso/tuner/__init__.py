"""The PEFT tuner "DSO": an affine pair behind each norm, and the strength that scales it."""

from .affine import DSOAffine
from .config import DSOConfig
from .layer import DSOLayer
from .model import DSOModel
from .norms import is_norm
from .registration import register
from .sites import Site, find_sites
from .strength import get_steering_strength, set_steering_strength, steering_strength
from .units import fisher_information, fisher_units, output_unit, shift_unit


__all__ = [
    "DSOAffine",
    "DSOConfig",
    "DSOLayer",
    "DSOModel",
    "Site",
    "find_sites",
    "fisher_information",
    "fisher_units",
    "get_steering_strength",
    "is_norm",
    "output_unit",
    "set_steering_strength",
    "shift_unit",
    "steering_strength",
]

register(DSOConfig, DSOModel)
