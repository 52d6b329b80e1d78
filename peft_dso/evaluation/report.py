"""The report as a table, as JSON and as CSV."""

from __future__ import annotations

import csv
import json
import math
import os
from dataclasses import asdict
from typing import Any

from .measures import Measure
from .sweep import Report, StrengthResult


COLUMNS = (
    ("bias", "bias"),
    ("bias_first_choice", "first choices"),
    ("gap", "gap"),
    ("position", "position"),
    ("abstention", "abstention"),
    ("accuracy", "accuracy"),
    ("accuracy_gap", "accuracy gap"),
    ("right", "p(right)"),
    ("kl", "KL"),
    ("kl_unambiguous", "KL unamb."),
)


def aligned(lines: list[list[str]]) -> str:
    """Lines of cells as text, each column flush right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines)


def format_table(results: list[StrengthResult]) -> str:
    """
    A set of results as text: one line per strength; bias, gap, position, abstention and KL on ambiguous questions,
    the others on unambiguous ones. `±` is the standard error, `floor` what a fair model would show, `bound` how far
    theorem 2 lets the accuracy move from that of strength 0.
    """
    columns = [(key, title) for key, title in COLUMNS if any(key in r.measures for r in results)]
    lines = [["strength", *(title for _, title in columns)]]
    bounded = any(math.isfinite(r.accuracy_bound) and r.accuracy_bound > 0 for r in results)
    if bounded:
        lines[0].append("accuracy change (bound)")
    for result in results:
        line = [f"{result.strength:g}"]
        floors = {"bias": result.noise_floor, "bias_first_choice": result.noise_floor_first_choice}
        for key, _ in columns:
            text = f"{result.measures[key]}" if key in result.measures else "-"
            line.append(text + (f" (floor {floors[key]:.3f})" if key in floors and key in result.measures else ""))
        if bounded:
            change = result.measures.get("accuracy_change")
            line.append(f"{change.value:+.3f} (±{result.accuracy_bound:.3f})" if change else "-")
        lines.append(line)
    return aligned(lines)


def save_csv(report: Report, path: str | os.PathLike[str]) -> None:
    """Write a report as CSV: a line per set, strength and measure, with value, standard error and n."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["set", "strength", "measure", "value", "standard_error", "n"])
        for name, results in report.sets.items():
            for result in results:
                for key, m in result.measures.items():
                    writer.writerow([name, f"{result.strength:g}", key, m.value, m.standard_error, m.n])
                for key in ("noise_floor", "noise_floor_first_choice", "accuracy_bound"):
                    value = getattr(result, key)
                    if math.isfinite(value):
                        writer.writerow([name, f"{result.strength:g}", key, value, "", ""])


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
                    number(r["accuracy_bound"]),
                )
                for r in results
            ]
            for name, results in data["sets"].items()
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)} is not a report of peft_dso: {error!r}.") from None
    return Report(sets, data.get("description", {}))
