"""What leaves the workshop: the model card, and a steered model as a plain checkpoint."""

from .card import PUBLISHED, model_card, push_adapter, save_card
from .checkpoint import ExportReport, export_checkpoint
from .fold import fold_strength


__all__ = [
    "PUBLISHED",
    "ExportReport",
    "export_checkpoint",
    "fold_strength",
    "model_card",
    "push_adapter",
    "save_card",
]
