"""What a comparison says: means over fits, the strengths that the validation part chooses, a table, flat records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Optional

import numpy as np

from ..evaluation import Record, Report, StrengthResult, warnings_of
from ..evaluation.measures import MEASURES, Measure
from ..evaluation.report import aligned
from ..evaluation.warnings import halves_mass
from .fits import Comparison, Fit


ACCURACY_LOSS = 0.02  # of the base's unambiguous accuracy, that a method may cost to be called as able
NEUTRAL_KL = 0.02  # nats per token of neutral text that a method may cost
COLUMNS = ("bias", "bias_first_choice", "gap", "accuracy", "mass", "abstention", "kl", "neutral_kl")


def averaged(reports: Sequence[Report], name: str = "test") -> list[StrengthResult]:
    """
    One set of the reports of several fits: the mean over the fits. Its standard error holds that of the questions,
    which are the same for all, and how much the mean of so many fits may vary.

    Args:
        reports (`Sequence[Report]`): one per fit.
        name (`str`, defaults to `"test"`): the set.

    Returns:
        `list[StrengthResult]`: at the strengths at which all fits were measured, in the order of the first.
    """
    found = []
    measured = [{result.strength: result for result in report.sets[name]} for report in reports]
    for strength in measured[0]:
        if not all(strength in by_strength for by_strength in measured):
            continue  # one was measured when a method had other strengths
        results = [by_strength[strength] for by_strength in measured]
        measures = {}
        for key in results[0].measures:
            each = [r.measures[key] for r in results if key in r.measures]
            values = np.array([m.value for m in each])
            error = math.sqrt(float(np.mean([m.standard_error**2 for m in each])) + _spread(values) ** 2 / len(values))
            measures[key] = Measure(float(values.mean()), error, each[0].n)
        occupations = {
            key: float(np.mean([r.occupations.get(key, math.nan) for r in results])) for key in results[0].occupations
        }
        found.append(StrengthResult(strength, measures, occupations=occupations))
    return found


def _spread(values: np.ndarray) -> float:
    """The standard deviation over fits; 0 of one."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def accuracy_loss(questions: int) -> float:
    """
    How much of the accuracy a method may lose on so many unambiguous questions: 0.02, and one question where so few
    show no less.

    Args:
        questions (`int`): how many there are.

    Returns:
        `float`: a share of them.
    """
    return max(ACCURACY_LOSS, 1 / questions)


def chosen_strength(
    validation: Sequence[StrengthResult], budget: str = "accuracy", allowed: Optional[float] = None
) -> float:
    """
    The strength with the least bias among those that meet a budget and still answer, on the validation part: at least
    half of the base's probability is left on the named answers.

    Args:
        validation (`Sequence[StrengthResult]`): with strength 0.
        budget (`str`, defaults to `"accuracy"`): `"accuracy"`: at most `allowed` below the base's; `"neutral_kl"`: at
            most `allowed`.
        allowed (`float`, *optional*): default 0.02 of either, and of the accuracy one question (see
            [`accuracy_loss`]).

    Returns:
        `float`: 0 where no other one meets it.

    Raises:
        ValueError: strength 0 or what the budget is about was not measured.
    """
    base = next((r for r in validation if r.strength == 0), None)
    if base is None or budget not in base.measures:
        raise ValueError(f"{budget} at strength 0 was not measured on the validation part.")

    def meets(r: StrengthResult) -> bool:
        if halves_mass(base, r):
            return False
        if budget == "accuracy":
            loss = accuracy_loss(base.measures[budget].n) if allowed is None else allowed
            return r.measures[budget].value >= base.measures[budget].value - loss - 1e-9  # of the rounding of shares
        return r.measures[budget].value <= (NEUTRAL_KL if allowed is None else allowed)

    return min((r for r in validation if r.strength == 0 or meets(r)), key=lambda r: r.measures["bias"].value).strength


def chosen_results(comparison: Comparison, budget: str, part: str = "test") -> dict[str, StrengthResult]:
    """
    What each method gives at the strength that was chosen on the validation part.

    Args:
        comparison (`Comparison`): the results.
        budget (`str`): see [`chosen_strength`].
        part (`str`, defaults to `"test"`): on which part; `"validation"` for what it was chosen by.

    Returns:
        `dict[str, StrengthResult]`: by method; those for which the budget was not measured are left out. Of the
        wordings only the one that was chosen on the validation part.
    """
    found = {}
    for name, reports in comparison.reports.items():
        wording = ": " in name
        if wording and not comparison.fits[name][0].note:
            continue
        validation = averaged(reports, "validation")
        if not validation or any(budget not in r.measures for r in validation):
            continue
        strength = chosen_strength(validation, budget)
        found[name] = next(r for r in averaged(reports, part) if r.strength == strength)
    return found


def cell(key: str, measure: Optional[Measure]) -> str:
    """A measure as a table shows it."""
    if measure is None or math.isnan(measure.value):
        return "-"
    digits = MEASURES[key].digits
    text = f"{measure.value:.{digits}f}"
    return text if math.isnan(measure.standard_error) else f"{text} ± {measure.standard_error:.{digits}f}"


def shown_name(comparison: Comparison, name: str) -> str:
    """A method's name, with a mark on the wording that was chosen on the validation part."""
    return f"{name} (chosen)" if ": " in name and comparison.fits[name][0].note else name


def table_lines(comparison: Comparison) -> list[list[str]]:
    """
    The table, the heading first: a row per method and strength with bias, gap, unambiguous accuracy, the probability
    that is left on the answers, abstention, KL; the parameters and seconds of the fit once per method.
    """
    averages = {name: averaged(reports) for name, reports in comparison.reports.items()}
    keys = [k for k in COLUMNS if any(k in r.measures for results in averages.values() for r in results)]
    several = any(len(reports) > 1 for reports in comparison.reports.values())
    heading = ["method", "strength", *(MEASURES[key].column for key in keys)]
    lines = [[*heading, *(["bias over fits"] if several else []), "parameters", "seconds"]]
    base = next((r for results in averages.values() for r in results if r.strength == 0), None)
    rows: list[tuple[str, StrengthResult, Sequence[Report], Sequence[Fit]]] = []
    if base is not None:
        rows.append(("base", base, [], []))
    rows += [
        (name, r, comparison.reports[name], comparison.fits[name])
        for name, results in averages.items()
        for r in results
        if r.strength != 0
    ]
    for name, r, reports, fits in rows:
        strength = "-" if name == "base" or ": " in name else f"{r.strength:.3g}"
        cells = [shown_name(comparison, name), strength, *(cell(key, r.measures.get(key)) for key in keys)]
        if several:
            biases = [s.measures["bias"].value for p in reports for s in p.sets["test"] if s.strength == r.strength]
            cells.append(", ".join(f"{value:.3f}" for value in biases) if len(biases) > 1 else "-")
        fitted = bool(fits) and ": " not in name
        cells.append(f"{np.mean([f.parameters for f in fits]):.0f}" if fitted else "-")
        cells.append(f"{np.mean([f.seconds for f in fits]):.0f}" if fitted else "-")
        lines.append(cells)
    return lines


def format_comparison(comparison: Comparison) -> str:
    """The table as text, then what failed and why."""
    text = aligned(table_lines(comparison))
    failed = "".join(f"\n{name} failed: {reason}" for name, reason in comparison.failures.items())
    return text + ("\n" + failed if failed else "")


def warning_lines(comparison: Comparison) -> list[str]:
    """What not to overlook on the test part, see [`~peft_dso.evaluation.warnings_of`]: of the base, then by method."""
    found: list[str] = []
    for name, reports in comparison.reports.items():
        results = averaged(reports)
        of_base = warnings_of(Report({"test": [r for r in results if r.strength == 0]}))
        found[:0] = [line for line in (f"base: {words}" for words in of_base) if line not in found]
        found += [f"{name}: {words}" for words in warnings_of(Report({"test": results})) if words not in of_base]
    return found


def records_of_comparison(comparison: Comparison) -> list[Record]:
    """
    Flat records: of each method and set what was measured at each strength, the mean over the fits; with several fits
    each of them too, as `METHOD-seed1`. What a fit took are the records `fit_seconds` and `parameters` of the set
    `fit`; of a wording `chosen` says there whether it was (1) or not (0).

    Args:
        comparison (`Comparison`): the results.

    Returns:
        `list[Record]`: by method, set, strength and measure.
    """
    found = []

    def add(method: str, sets: Mapping[str, Sequence[StrengthResult]]) -> None:
        for name, results in sets.items():
            for r in results:
                for key, m in r.measures.items():
                    found.append(Record(name, r.strength, key, m.value, m.standard_error, m.n, method))

    for name, reports in comparison.reports.items():
        add(name, {key: averaged(reports, key) for key in reports[0].sets})
        if len(reports) > 1:
            for fit, report in zip(comparison.fits[name], reports, strict=True):
                add(f"{name}-seed{fit.seed}", report.sets)
        fits = comparison.fits[name]
        if ": " in name:
            found.append(Record("fit", 1.0, "chosen", float(bool(fits[0].note)), math.nan, 1, name))
        for key, values in (
            ("fit_seconds", [fit.seconds for fit in fits]),
            ("parameters", [float(fit.parameters) for fit in fits]),
        ):
            spread = _spread(np.array(values)) / math.sqrt(len(fits)) if len(fits) > 1 else math.nan
            found.append(Record("fit", 1.0, key, float(np.mean(values)), spread, len(fits), name))
    return found
