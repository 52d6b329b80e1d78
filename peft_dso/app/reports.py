"""The report of an adapter, read between the strengths that were measured."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from peft import PeftConfig

from ..evaluation import Report, StrengthResult, load_report
from ..inspect import REPORT, VECTORS, is_of


BUDGETS = {
    "largest strength with KL at most": ("kl", "most"),
    "smallest strength with bias at most": ("bias", "most"),
    "largest strength with accuracy at least": ("accuracy", "least"),
}


def find_report(adapter: str | os.PathLike[str], revision: Optional[str] = None) -> Optional[Report]:
    """
    The report that came with an adapter.

    Args:
        adapter (`str`): a folder or a name on the Hub.
        revision (`str`, *optional*): branch, tag or commit.

    Returns:
        `Report`, or `None` where there is none, or one of other vectors.

    Raises:
        ValueError: what lies there is no report.
    """
    folder = Path(adapter)
    if folder.is_dir() and not (folder / REPORT).is_file():
        return None
    try:
        report = load_report(
            folder / REPORT if folder.is_dir() else hf_hub_download(str(adapter), REPORT, revision=revision)
        )
        named = VECTORS in report.description
        config = PeftConfig.from_pretrained(str(adapter), revision=revision) if named else None
        return report if is_of(report, config) else None
    except (EntryNotFoundError, LocalEntryNotFoundError, HFValidationError):
        return None


def value_at(results: Sequence[StrengthResult], key: str, strength: float) -> float:
    """A measure at a strength, on the straight line between the two measured ones around it; NaN outside of them."""
    points = sorted((r.strength, r.measures[key].value) for r in results if key in r.measures)
    for (left, low), (right, high) in zip(points, points[1:] or points, strict=False):
        if left <= strength <= right:
            return low if left == right else low + (high - low) * (strength - left) / (right - left)
    return math.nan


def from_budget(results: Sequence[StrengthResult], budget: str, limit: float) -> float:
    """
    The strength that meets a budget, by the report: read off the lines between the measured strengths, in steps of
    0.01. `calibrate_strength` measures it.

    Args:
        results (`Sequence[StrengthResult]`): of one set of questions.
        budget (`str`): one of `BUDGETS`.
        limit (`float`): in nats, or a share.

    Returns:
        `float`: the strength.

    Raises:
        ValueError: the budget is unknown, the measure is missing, or no strength in the report meets it.
    """
    if budget not in BUDGETS:
        raise ValueError(f"There is no budget {budget!r}. Choose: {'; '.join(BUDGETS)}.")
    key, side = BUDGETS[budget]
    if not isinstance(limit, (int, float)) or not math.isfinite(limit):
        raise ValueError(f"The limit must be a number, got {limit!r}.")
    measured = [r for r in results if key in r.measures]
    if not measured:
        raise ValueError(f"The report holds no {key} to choose a strength by.")
    low, high = (pick(r.strength for r in measured) for pick in (min, max))
    grid = [round(low + 0.01 * k, 10) for k in range(round((high - low) / 0.01) + 1)]
    values = {w: value_at(measured, key, w) for w in grid}
    good = [w for w in grid if (values[w] <= limit + 1e-9 if side == "most" else values[w] >= limit - 1e-9)]
    if not good:
        best = min(values.values()) if side == "most" else max(values.values())
        raise ValueError(f"No strength from {low:g} to {high:g} meets it: the best {key} there is {best:.3f}.")
    return min(good) if key == "bias" else max(good)


def measured_lines(results: Sequence[StrengthResult], strength: float) -> tuple[list[str], list[list[str]]]:
    """The report as titles and lines of text, with a line for a strength between the measured ones."""
    columns: Mapping[str, str] = {
        "bias": "bias",
        "bias_first_choice": "first choices",
        "abstention": "abstention",
        "accuracy": "accuracy",
        "kl": "KL",
        "neutral_kl": "KL on neutral text",
    }
    shown = {key: title for key, title in columns.items() if any(key in r.measures for r in results)}
    lines = [
        [f"{r.strength:g}", *(f"{r.measures[key]}" if key in r.measures else "-" for key in shown)] for r in results
    ]
    if all(r.strength != strength for r in results) and results:
        values = [value_at(results, key, strength) for key in shown]
        if any(not math.isnan(value) for value in values):
            lines.append([f"{strength:g} (now, in between)", *(f"{value:.3f}" for value in values)])
    return ["strength", *shown.values()], lines
