"""What leaves the workshop: the model card, and a steered model as a plain checkpoint."""

from .card import model_card, save_card
from .checkpoint import ExportReport, export_checkpoint
from .fold import fold_strength


__all__ = ["ExportReport", "export_checkpoint", "fold_strength", "model_card", "save_card"]
