"""
Direct Steering Optimization (arXiv 2512.15926) for Hugging Face PEFT: learn an affine pair behind every norm of a frozen
model, and turn its strength while the model is in use.

Importing this package registers the PEFT type "DSO"; do it before an adapter of that type is loaded.
"""

from .tuner import (
    DSOConfig,
    DSOLayer,
    DSOModel,
    Site,
    find_sites,
    get_steering_strength,
    set_steering_strength,
    steering_strength,
)


__version__ = "0.1.0.dev0"

__all__ = [
    "DSOConfig",
    "DSOLayer",
    "DSOModel",
    "Site",
    "find_sites",
    "get_steering_strength",
    "set_steering_strength",
    "steering_strength",
]
