"""Measuring a model over a range of strengths, and the report of it."""

from .calibrate import Calibration, calibrate_strength
from .generated import generate_texts, generated_answers
from .knob import AdapterScaling, AdapterSwitch, BareModel, DSOStrength, Knob, Prompting, knob_of
from .records import Record, load_records, records_of, save_records
from .report import format_table, load_report, save_csv, save_report
from .sweep import Report, StrengthResult, summarize, sweep
from .warnings import shows_bias, warnings_of


__all__ = [
    "AdapterScaling",
    "AdapterSwitch",
    "BareModel",
    "Calibration",
    "DSOStrength",
    "Knob",
    "Prompting",
    "Record",
    "Report",
    "StrengthResult",
    "calibrate_strength",
    "format_table",
    "generate_texts",
    "generated_answers",
    "knob_of",
    "load_records",
    "load_report",
    "records_of",
    "save_csv",
    "save_records",
    "save_report",
    "shows_bias",
    "summarize",
    "sweep",
    "warnings_of",
]
