"""
Direct Steering Optimization (arXiv 2512.15926) for Hugging Face PEFT: learn an affine pair behind every norm of a
frozen model, and turn its strength while the model is in use.

Importing this package registers the PEFT type "DSO"; do it before an adapter of that type is loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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


__version__ = "0.1.0"

if TYPE_CHECKING:
    from .objective.rewards import FairnessReward
    from .training import DSOTrainer, DSOTrainerConfig

# Imported when first used: an adapter is loaded without TRL, datasets or matplotlib.
_LAZY = {"DSOTrainer": ".training", "DSOTrainerConfig": ".training", "FairnessReward": ".objective"}

__all__ = [
    "DSOConfig",
    "DSOLayer",
    "DSOModel",
    "DSOTrainer",
    "DSOTrainerConfig",
    "FairnessReward",
    "Site",
    "find_sites",
    "get_steering_strength",
    "set_steering_strength",
    "steering_strength",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'peft_dso' has no attribute {name!r}")
    try:
        return getattr(import_module(_LAZY[name], __name__), name)
    except ModuleNotFoundError as error:
        if error.name in ("trl", "datasets", "accelerate"):
            raise ImportError(f"peft_dso.{name} needs {error.name}. Install: pip install 'peft_dso[train]'") from error
        raise


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
