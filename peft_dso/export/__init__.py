"""What leaves the workshop: the model card, and a steered model as a plain checkpoint."""

from .card import model_card, save_card
from .checkpoint import ExportReport, export_checkpoint
from .fold import fold_strength
from .push import PUBLISHED, push_adapter, push_folder


__all__ = [
    "PUBLISHED",
    "ExportReport",
    "export_checkpoint",
    "fold_strength",
    "model_card",
    "push_adapter",
    "push_folder",
    "save_card",
]
