"""The report as a table and as JSON."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from typing import Any

from ..metrics import Measure
from .sweep import Report, StrengthResult


COLUMNS = (
    ("bias", "bias"),
    ("bias_first_choice", "first choices"),
    ("gap", "gap"),
    ("abstention", "abstention"),
    ("accuracy", "accuracy"),
    ("right", "p(right)"),
    ("kl", "KL"),
    ("kl_unambiguous", "KL unamb."),
)


def format_table(results: list[StrengthResult]) -> str:
    """
    A set of results as text: one line per strength; bias, gap, abstention and KL on ambiguous questions, accuracy and
    p(right) on unambiguous ones. `±` is the standard error, `floor` what a fair model would show.
    """
    columns = [(key, title) for key, title in COLUMNS if key in results[0].measures]
    head = ["strength", *(title for _, title in columns)]
    lines = [head]
    for result in results:
        line = [f"{result.strength:g}"]
        for key, _ in columns:
            m = result.measures[key]
            text = f"{m.value:.3f} ± {m.standard_error:.3f}"
            floors = {"bias": result.noise_floor, "bias_first_choice": result.noise_floor_first_choice}
            line.append(text + (f" (floor {floors[key]:.3f})" if key in floors else ""))
        lines.append(line)
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines)


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_report(report: Report, path: str | os.PathLike[str]) -> None:
    """Write a report as JSON; NaN becomes null."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(_plain(asdict(report)), file, indent=2, allow_nan=False)
        file.write("\n")


def load_report(path: str | os.PathLike[str]) -> Report:
    """
    Read a report that [`save_report`] wrote.

    Raises:
        ValueError: the file is no such report.
    """

    def number(value: Any) -> float:
        return math.nan if value is None else float(value)

    with open(path, encoding="utf-8") as file:
        data = json.load(file)
    try:
        sets = {
            name: [
                StrengthResult(
                    number(r["strength"]),
                    {
                        key: Measure(number(m["value"]), number(m["standard_error"]), int(m["n"]))
                        for key, m in r["measures"].items()
                    },
                    number(r["noise_floor"]),
                    number(r["noise_floor_first_choice"]),
                    {key: number(value) for key, value in r["occupations"].items()},
                )
                for r in results
            ]
            for name, results in data["sets"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{os.fspath(path)} is not a report of peft_dso: {error!r}.") from None
    return Report(sets, data.get("description", {}))
