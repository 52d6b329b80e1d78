"""The report as a table, in words, as JSON and as CSV."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from typing import Any, Optional

from .measures import MEASURES, Measure, MeasureKind
from .records import plain, records_of, save_records
from .sweep import Report, StrengthResult


def aligned(lines: list[list[str]]) -> str:
    """Lines of cells as text, each column flush right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _cell(kind: MeasureKind, measure: Optional[Measure]) -> str:
    if measure is None:
        return "-"
    text = f"{measure.value:.{kind.digits}f}"
    # The 0 before the point is left out: it would be most of what a table has to spare.
    error = f"{measure.standard_error:.{kind.digits}f}".removeprefix("0")
    return text if math.isnan(measure.standard_error) else f"{text}±{error}"


def format_table(results: list[StrengthResult], columns: str = "main") -> str:
    """
    A set of results as text, a line per strength. `±` is the standard error, `floor` what a fair model would show.

    Args:
        results (`list[StrengthResult]`): of one set.
        columns (`str`, defaults to `"main"`): `"main"` fits into 100 columns: per-occupation bias from probabilities
            and from first choices with their floors, unambiguous accuracy, abstention, KL, and KL per token on
            neutral text; a last line has the change of the perplexity of that text at the greatest strength. `"all"`
            is everything that was measured.

    Returns:
        `str`: the table.

    Raises:
        TypeError: a whole report is given.
        ValueError: `columns` is unknown.
    """
    if isinstance(results, Report):
        sets = ", ".join(f"report.sets[{name!r}]" for name in results.sets)
        raise TypeError(f"format_table shows one set of a report: give {sets}.")
    if columns not in ("main", "all"):
        raise ValueError(f"columns={columns!r}: choose 'main' or 'all'.")
    measured = [kind for kind in MEASURES.values() if any(kind.name in r.measures for r in results)]
    floors = {kind.floor for kind in measured}
    wanted = [kind for kind in measured if kind.name not in floors]
    if columns == "main":
        wanted = sorted((kind for kind in wanted if kind.place is not None), key=lambda kind: kind.place or 0)
    shown = [column for kind in wanted for column in (kind, MEASURES.get(kind.floor or "")) if column is not None]
    lines = [["strength", *(kind.column for kind in shown)]]
    lines += [[f"{r.strength:g}", *(_cell(kind, r.measures.get(kind.name)) for kind in shown)] for r in results]
    return aligned(lines) + (_perplexity(results) if columns == "main" else "")


def _perplexity(results: list[StrengthResult]) -> str:
    """The line below a table; empty where neutral text was not measured at any strength but 0."""
    turned = [r for r in results if r.strength and "neutral_ppl_change" in r.measures]
    if not turned:
        return ""
    last = max(turned, key=lambda r: abs(r.strength))
    change = last.measures["neutral_ppl_change"]
    error = "" if math.isnan(change.standard_error) else f" ±{change.standard_error:.1%}"
    return f"\nperplexity of neutral text at strength {last.strength:g}: {change.value:+.1%}{error}"


def save_csv(report: Report, path: str | os.PathLike[str]) -> None:
    """Write a report as CSV: a line per set, strength and measure, with value, standard error and n."""
    save_records(records_of(report), path)


def save_report(report: Report, path: str | os.PathLike[str]) -> None:
    """Write a report as JSON, whole or not at all; NaN becomes null."""
    unfinished = f"{os.fspath(path)}.unfinished"
    with open(unfinished, "w", encoding="utf-8") as file:
        json.dump(plain(asdict(report)), file, indent=2, allow_nan=False)
        file.write("\n")
    os.replace(unfinished, path)


def load_report(path: str | os.PathLike[str]) -> Report:
    """
    Read a report that [`save_report`] wrote, this version's or 0.1's.

    Raises:
        ValueError: the file is no such report.
    """

    def number(value: Any) -> float:
        return math.nan if value is None else float(value)

    def result_of(data: dict[str, Any]) -> StrengthResult:
        measures = {
            key: Measure(number(m["value"]), number(m["standard_error"]), int(m["n"]))
            for key, m in data["measures"].items()
        }
        # Floors and the bound stood beside the measures once.
        for key, of in (
            ("noise_floor", "bias"),
            ("noise_floor_first_choice", "bias_first_choice"),
            ("accuracy_bound", "kl_unambiguous"),
        ):
            if key in data and of in measures and key not in measures:
                measures[key] = Measure(number(data[key]), math.nan, measures[of].n)
        occupations = {key: number(value) for key, value in data["occupations"].items()}
        return StrengthResult(number(data["strength"]), measures, occupations)

    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
        sets = {name: [result_of(r) for r in results] for name, results in data["sets"].items()}
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{os.fspath(path)} is not a report of peft_dso: {error!r}. Measure again with peft-dso sweep."
        ) from None
    described = data.get("description", {})
    return Report(sets, described if isinstance(described, dict) else {"description": str(described)})
