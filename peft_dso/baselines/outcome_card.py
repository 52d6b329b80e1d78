"""What a comparison writes: pictures, files of records, and a section for a model card."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation import Report, StrengthResult, save_records
from ..evaluation.figures import save
from ..evaluation.measures import MEASURES
from ..evaluation.plots import draw_pareto, draw_sweep
from ..export.card import COMPARISON
from .fits import Comparison
from .methods import METHODS
from .outcome import (
    ACCURACY_LOSS,
    COLUMNS,
    NEUTRAL_KL,
    accuracy_loss,
    averaged,
    cell,
    chosen_results,
    records_of_comparison,
    shown_name,
    table_lines,
    warning_lines,
)


BEGIN, END = COMPARISON


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rows = lines
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def _budget_section(comparison: Comparison, budget: str, title: str) -> str:
    found = chosen_results(comparison, budget)
    if not found:
        return ""
    validation = chosen_results(comparison, budget, "validation")
    keys = [k for k in COLUMNS if any(k in r.measures for r in found.values())]
    lines = [["method", "strength", *(MEASURES[key].column for key in keys)]]
    for name, r in sorted(found.items(), key=lambda item: item[1].measures["bias"].value):
        strength = f"{r.strength:.3g}" if r.strength else "0 (the base)"
        lines.append([name, strength, *(cell(key, r.measures.get(key)) for key in keys)])
    counted = _counted(comparison.reports[next(iter(found))][0]) if budget == "accuracy" else ""
    return f"### {title}\n\n{counted}{_markdown(lines)}\n\n{_verdict(found, validation)}\n"


def _counted(report: Report) -> str:
    """On how many questions the accuracy was judged, and what that allowed."""
    n = report.sets["validation"][0].measures["accuracy"].n
    least = " (one question)" if accuracy_loss(n) > ACCURACY_LOSS else ""
    return f"{n} unambiguous validation questions; a loss of {accuracy_loss(n):.3g}{least} was allowed.\n\n"


def _verdict(found: Mapping[str, StrengthResult], validation: Mapping[str, StrengthResult]) -> str:
    """
    Whether DSO is ahead of the best other method, behind it, or neither by two standard errors. Which is the best the
    validation part says: of several that are alike the test part would take the one that was lucky there.
    """
    others = [name for name in found if name != "dso"]
    if "dso" not in found or not others:
        return ""
    best = min(others, key=lambda name: validation[name].measures["bias"].value)
    mine, theirs = (found[name].measures["bias"] for name in ("dso", best))
    difference = theirs.value - mine.value
    error = math.hypot(mine.standard_error, theirs.standard_error)
    words = "is not told apart from"
    if abs(difference) > 2 * error:
        words = "is ahead of" if difference > 0 else "is behind"
    return (
        f"DSO {words} the best other method on the validation part, {best}: per-occupation bias {mine.value:.3f} ± "
        f"{mine.standard_error:.3f} and {theirs.value:.3f} ± {theirs.standard_error:.3f}."
    )


def card_section(comparison: Comparison) -> str:
    """
    The comparison as a section of a model card, in Markdown.

    Args:
        comparison (`Comparison`): the results.

    Returns:
        `str`: what was compared on, each method at the strength that the validation part chose within a budget of
        accuracy and of KL, whether DSO is ahead, all strengths, and what not to overlook in them.
    """
    described = "; ".join(f"{key}: {value}" for key, value in comparison.description.items())
    methods = "\n".join(
        f"- *{name}*: {METHODS[name].description}" + _notes(comparison, name)
        for name in dict.fromkeys(key.partition(": ")[0] for key in comparison.reports)
    )
    failed = "".join(f"\n{name} failed: {reason}\n" for name, reason in comparison.failures.items())
    parts = [
        "## Compared with other methods",
        f"{described}.",
        "All were fitted on the same questions, what is free was chosen on the validation part, and all were measured "
        "on the same held-out questions. ± is the standard error. The pairs act at every token, the prompt included.",
        methods,
        _budget_section(
            comparison, "accuracy", f"At most {ACCURACY_LOSS:g} of the unambiguous accuracy lost (validation part)"
        ),
        _budget_section(comparison, "neutral_kl", f"At most {NEUTRAL_KL:g} nats per token of neutral text"),
        f"### All strengths\n\n{_markdown(table_lines(comparison))}\n{failed}",
        "\n".join(f"- {line}" for line in warning_lines(comparison)),
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _notes(comparison: Comparison, name: str) -> str:
    notes = [fit.note for fit in comparison.fits.get(name, []) if fit.note]
    if name == "prompting":
        chosen = [key.partition(": ")[2] for key, fits in comparison.fits.items() if ": " in key and fits[0].note]
        notes = [f"chose the wording {wording!r}" for wording in chosen]
    return f" ({'; '.join(dict.fromkeys(notes))})" if notes else ""


def save_comparison(comparison: Comparison, folder: str | os.PathLike[str]) -> list[Path]:
    """
    Write `comparison.csv` and `records.json` (flat records), `comparison.md` (the section of a model card, which is
    also put into the card of DSO's adapter), and the pictures: `pareto.png`, `pareto_kl.png`, `strengths.png`.

    Args:
        comparison (`Comparison`): the results.
        folder (`str`): where to write.

    Returns:
        `list[Path]`: the files.

    Raises:
        ValueError: every method failed.
        ImportError: matplotlib is missing.
    """
    if not comparison.reports:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in comparison.failures.items())
        raise ValueError(f"Every method failed: {reasons}.")
    out = Path(folder)
    written = [out / name for name in ("comparison.csv", "records.json", "comparison.md")]
    records = records_of_comparison(comparison)
    for path in written[:2]:
        save_records(records, path)
    section = card_section(comparison)
    written[2].write_text(section, encoding="utf-8")
    card = out / "dso" / "README.md"
    if card.is_file():
        before = card.read_text(encoding="utf-8")
        begin = before.find(BEGIN)
        kept = before if begin < 0 else before[:begin] + before[before.find(END) + len(END) :].lstrip("\n")
        card.write_text(f"{kept.rstrip()}\n\n{BEGIN}\n{section}{END}\n", encoding="utf-8")
    lines = {shown_name(comparison, name): averaged(reports) for name, reports in comparison.reports.items()}
    for name, draw in _pictures(lines).items():
        try:
            figure = draw()
        except ValueError:
            continue  # nothing measured that it could show
        save(figure, out / name)
        written.append(out / name)
    return written


def _pictures(lines: Mapping[str, Sequence[StrengthResult]]) -> dict[str, Any]:
    fitted = {name: list(results) for name, results in lines.items() if ": " not in name}
    ordered = {name: sorted(results, key=lambda r: r.strength) for name, results in lines.items()}
    return {
        "pareto.png": lambda: draw_pareto(ordered, "accuracy"),
        "pareto_kl.png": lambda: draw_pareto(ordered, "neutral_kl"),
        "strengths.png": lambda: draw_sweep(Report(fitted or {k: list(v) for k, v in lines.items()})),
    }
