"""Measuring a model over a range of strengths, and the report of it."""

from .calibrate import Calibration, calibrate_strength
from .generated import generate_texts, generated_answers
from .report import format_table, load_report, save_csv, save_report
from .sweep import Report, StrengthResult, summarize, sweep


__all__ = [
    "Calibration",
    "Report",
    "StrengthResult",
    "calibrate_strength",
    "format_table",
    "generate_texts",
    "generated_answers",
    "load_report",
    "save_csv",
    "save_report",
    "summarize",
    "sweep",
]
