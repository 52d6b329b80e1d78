"""Measuring a model over a range of strengths, and the report of it."""

from .report import format_table, load_report, save_report
from .sweep import Report, StrengthResult, measure, sweep


__all__ = ["Report", "StrengthResult", "format_table", "load_report", "measure", "save_report", "sweep"]
