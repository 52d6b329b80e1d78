"""Pictures of a report. Imported only when one is drawn: matplotlib is an extra."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .figures import StrPath, new_figure, save
from .measures import MEASURES
from .site_plots import draw_sites, plot_sites
from .sweep import Report, StrengthResult


__all__ = [
    "draw_occupations",
    "draw_pareto",
    "draw_sites",
    "draw_sweep",
    "plot_occupations",
    "plot_pareto",
    "plot_report",
    "plot_sites",
    "plot_sweep",
]

# Told apart by marker and line as well as by colour, whose greys differ too.
_COLOURS = ("#12355b", "#c4621a", "#8fc46a", "#74489c", "#8c1c13", "#c9a227")
_MARKERS, _LINES = ("o", "s", "^", "D", "v"), ("-", "--", ":", "-.")
_PANELS = ("bias", "bias_first_choice", "accuracy", "right", "kl")


def _style(place: int) -> dict[str, str]:
    """How the line of one of several sets looks: no two of 20 alike, also in grey."""
    return {
        "color": _COLOURS[place % len(_COLOURS)],
        "marker": _MARKERS[place % len(_MARKERS)],
        "linestyle": _LINES[place % len(_LINES)],
    }


def _label(name: str) -> str:
    """A name as matplotlib shows it: no formula, and in the legend."""
    return name.replace("$", r"\$").removeprefix("_") or name


def _line(axis: Any, results: Sequence[StrengthResult], x: str, y: str, **options: Any) -> None:
    """A point per strength with its standard errors; `x` is a measure, or `"strength"`."""
    xs = [r.strength if x == "strength" else r.measures[x].value for r in results]
    axis.errorbar(
        xs,
        [r.measures[y].value for r in results],
        xerr=None if x == "strength" else [r.measures[x].standard_error for r in results],
        yerr=[r.measures[y].standard_error for r in results],
        capsize=3,
        markersize=5,
        **options,
    )


def draw_sweep(report: Report) -> Any:
    """
    Bias, ability and KL over the strength, with standard errors: one panel per measure, one line per set; thin grey
    lines are what a fair model would show.

    Args:
        report (`Report`): the results.

    Returns:
        `matplotlib.figure.Figure`: the picture.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: none of the measures was measured.
    """
    keys = [key for key in _PANELS if any(key in r.measures for results in report.sets.values() for r in results)]
    if not keys:
        raise ValueError("There is nothing to draw over the strengths.")
    figure = new_figure(3.9 * len(keys), 3.8)
    for place, key in enumerate(keys):
        axis, kind = figure.add_subplot(1, len(keys), place + 1), MEASURES[key]
        for number, (name, results) in enumerate(report.sets.items()):
            measured = sorted((r for r in results if key in r.measures), key=lambda r: r.strength)
            if not measured:
                continue
            _line(axis, measured, "strength", key, label=_label(name), **_style(number))
            floored = [r for r in measured if kind.floor in r.measures]
            if floored:
                axis.plot(
                    [r.strength for r in floored],
                    [r.measures[kind.floor or ""].value for r in floored],
                    color="0.55",
                    linewidth=0.9,
                    linestyle=_style(number)["linestyle"],
                )
        axis.set_title(kind.title, fontsize=9)
        axis.set_xlabel("strength w")
        axis.set_ylabel(f"{kind.unit} (± standard error)", fontsize=8)
        axis.set_ylim(0, 1.03 if key in ("accuracy", "right") else None)
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    return figure


def draw_pareto(lines: Mapping[str, Sequence[StrengthResult]], against: str = "accuracy") -> Any:
    """
    Bias against another measure, a point per strength with its standard errors.

    Args:
        lines (`Mapping[str, Sequence[StrengthResult]]`): by name, such as a report's sets or several methods; those
            without both measures are left out.
        against (`str`, defaults to `"accuracy"`): the other measure, such as `"neutral_kl"`.

    Returns:
        `matplotlib.figure.Figure`: the picture.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: nothing has both measures.
    """
    both = {name: _with_both(results, against) for name, results in lines.items()}
    both = {name: results for name, results in both.items() if results}
    if not both:
        raise ValueError(f"A Pareto plot needs bias and {MEASURES[against].title} in one set.")
    many = len(both) > 4
    figure = new_figure(8.4 if many else 6, 4.4)
    axis = figure.add_subplot()
    for place, (name, results) in enumerate(both.items()):
        style = _style(place)
        _line(axis, results, "bias", against, label=_label(name), **style)
        for r in results:  # each line's strengths on a side of their own
            axis.annotate(
                f"{r.strength:.3g}",
                (r.measures["bias"].value, r.measures[against].value),
                textcoords="offset points",
                xytext=(3, 7 if place % 2 == 0 else -13),
                fontsize=8,
                color=style["color"],
            )
    axis.set_xlim(left=0)
    if MEASURES[against].unit.startswith("nats"):  # from hundredths to some nats
        axis.set_yscale("symlog", linthresh=0.01)
        axis.set_ylim(bottom=0)
    else:
        axis.margins(y=0.25)
    axis.set_xlabel("per-occupation bias (lower is fairer)")
    axis.set_ylabel(f"{MEASURES[against].title} ({MEASURES[against].unit})")
    axis.set_title("Fairness and what it costs; numbers are strengths w", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, **({"loc": "upper left", "bbox_to_anchor": (1.01, 1)} if many else {}))
    return figure


def _with_both(results: Sequence[StrengthResult], against: str) -> list[StrengthResult]:
    return [r for r in results if {"bias", against} <= r.measures.keys()]


def _occupation_sets(report: Report) -> dict[str, list[StrengthResult]]:
    return {name: results for name, results in report.sets.items() if results and results[0].occupations}


def draw_occupations(report: Report, set_name: str | None = None) -> Any:
    """
    Each occupation before (the lowest strength) and after (the highest), as sorted bars.

    Args:
        report (`Report`): the results.
        set_name (`str`, *optional*): which set; default the first with ambiguous questions.

    Returns:
        `matplotlib.figure.Figure`: the picture.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: there are no ambiguous questions.
    """
    sets = _occupation_sets(report)
    if not sets or (set_name is not None and set_name not in sets):
        raise ValueError(f"There is no set with ambiguous questions{f' called {set_name!r}' if set_name else ''}.")
    results = sorted(sets[set_name or next(iter(sets))], key=lambda r: r.strength)
    shown = results[:1] if len(results) == 1 else [results[0], results[-1]]
    names = sorted(shown[0].occupations, key=lambda name: shown[0].occupations[name])
    signed = "gap" in shown[0].measures or any(value < 0 for r in shown for value in r.occupations.values())
    figure = new_figure(7, 1.4 + 0.24 * len(names))
    axis = figure.add_subplot()
    height = 0.8 / len(shown)
    styles = ({"color": "#cdd6e0"}, {"color": "#12355b", "hatch": "///"})
    for place, (r, style) in enumerate(zip(shown, styles, strict=False)):  # of one strength, the first alone
        axis.barh(
            [y + (len(shown) - 1) * height / 2 - place * height for y in range(len(names))],
            [r.occupations.get(name, math.nan) for name in names],
            height,
            label=f"strength {r.strength:g}",
            linewidth=0.5,
            edgecolor="#333333",
            **style,
        )
    axis.set_yticks(range(len(names)), [_label(name) for name in names], fontsize=8)
    axis.set_ylim(-0.8, len(names) - 0.2)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_xlabel("Pr[pro] - Pr[anti]   (0 is fair)" if signed else "sum over groups of |share - 1/k|   (0 is fair)")
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=9, loc="lower right")
    return figure


def plot_sweep(report: Report, path: StrPath) -> None:
    """[`draw_sweep`], written as a PNG."""
    save(draw_sweep(report), path)


def plot_pareto(report: Report, path: StrPath) -> None:
    """[`draw_pareto`] of a report's sets, written as a PNG."""
    save(draw_pareto(report.sets), path)


def plot_occupations(report: Report, path: StrPath, set_name: str | None = None) -> None:
    """[`draw_occupations`], written as a PNG."""
    save(draw_occupations(report, set_name), path)


def plot_report(report: Report, folder: StrPath) -> list[Path]:
    """
    All pictures that a report has the data for: `sweep.png`, `pareto.png`, `occupations.png`. One of an earlier report
    that this one has no data for is deleted.

    Args:
        report (`Report`): the results.
        folder (`str`): where to write.

    Returns:
        `list[Path]`: the files.

    Raises:
        ImportError: matplotlib is missing.
    """
    both = any(_with_both(results, "accuracy") for results in report.sets.values())
    pictures = {
        "sweep": (plot_sweep, True),
        "pareto": (plot_pareto, both),
        "occupations": (plot_occupations, bool(_occupation_sets(report))),
    }
    written = []
    for name, (draw, has_data) in pictures.items():
        path = Path(folder) / f"{name}.png"
        if has_data:
            draw(report, path)
            written.append(path)
        else:
            path.unlink(missing_ok=True)
    return written
