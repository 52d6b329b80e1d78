"""Training of DSO adapters on TRL."""

from .config import DSOTrainerConfig
from .trainer import DSOTrainer


__all__ = ["DSOTrainer", "DSOTrainerConfig"]
