"""Pictures of a report. Imported only when one is drawn: matplotlib is an extra."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .sweep import Report


StrPath = str | os.PathLike[str]


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ImportError("Plots need matplotlib. Install it with: pip install 'peft_dso[eval]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


# Told apart by marker and line as well as by colour, so that they can be read in grey.
_STYLES = (
    {"color": "#0b4f8a", "marker": "o", "linestyle": "-"},
    {"color": "#d1761f", "marker": "s", "linestyle": "--"},
    {"color": "#5a9a3c", "marker": "^", "linestyle": ":"},
    {"color": "#7a4fa3", "marker": "D", "linestyle": "-."},
)
_TITLES = {
    "bias": "per-occupation bias (probabilities)",
    "bias_first_choice": "per-occupation bias (first choices)",
    "accuracy": "unambiguous accuracy",
    "right": "probability of the right answer",
}


def plot_sweep(report: Report, path: StrPath) -> None:
    """
    Bias and ability over the strength, with standard errors, as a PNG: one panel per measure, one line per set.

    Args:
        report (`Report`): the results.
        path (`str`): where to write.

    Raises:
        ImportError: matplotlib is missing.
    """
    pyplot = _pyplot()
    keys = [key for key in _TITLES if any(key in r.measures for results in report.sets.values() for r in results)]
    figure, axes = pyplot.subplots(1, len(keys), figsize=(4.2 * len(keys), 3.8), squeeze=False)
    for axis, key in zip(axes[0], keys):
        for (name, results), style in zip(report.sets.items(), _STYLES * len(report.sets)):
            measured = [r for r in results if key in r.measures]
            axis.errorbar(
                [r.strength for r in measured],
                [r.measures[key].value for r in measured],
                yerr=[r.measures[key].standard_error for r in measured],
                label=name,
                capsize=3,
                markersize=5,
                **style,
            )
        axis.set_title(_TITLES[key], fontsize=10)
        axis.set_xlabel("steering strength w")
        axis.set_ylim(0, 1.03 if key in ("accuracy", "right") else None)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("share (± standard error)")
    axes[0][0].legend(fontsize=9)
    _save(figure, path)


def plot_pareto(report: Report, path: StrPath) -> None:
    """
    Bias against unambiguous accuracy, a point per strength with its standard errors, as a PNG; better is up and left.

    Args:
        report (`Report`): the results; sets without both measures are left out.
        path (`str`): where to write.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: no set has both measures.
    """
    both = {
        name: [r for r in results if {"bias", "accuracy"} <= r.measures.keys()]
        for name, results in report.sets.items()
    }
    both = {name: results for name, results in both.items() if results}
    if not both:
        raise ValueError("A Pareto plot needs ambiguous and unambiguous questions in one set.")
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(6, 4.4))
    for place, ((name, results), style) in enumerate(zip(both.items(), _STYLES * len(both))):
        x, y = ([r.measures[key] for r in results] for key in ("bias", "accuracy"))
        axis.errorbar(
            [m.value for m in x],
            [m.value for m in y],
            xerr=[m.standard_error for m in x],
            yerr=[m.standard_error for m in y],
            label=name,
            capsize=2,
            markersize=5,
            **style,
        )
        for r in results:  # each set's strengths on a side of their own
            axis.annotate(
                f"{r.strength:g}",
                (r.measures["bias"].value, r.measures["accuracy"].value),
                textcoords="offset points",
                xytext=(3, 7 if place % 2 == 0 else -13),
                fontsize=8,
                color=style["color"],
            )
    axis.set_xlim(left=0)
    axis.margins(y=0.25)
    axis.set_xlabel("per-occupation bias (lower is fairer)")
    axis.set_ylabel("unambiguous accuracy")
    axis.set_title("Fairness and ability; numbers are strengths w", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9)
    _save(figure, path)


def plot_occupations(report: Report, path: StrPath, set_name: str | None = None) -> None:
    """
    Each occupation before (the lowest strength) and after (the highest), as sorted bars, as a PNG.

    Args:
        report (`Report`): the results.
        path (`str`): where to write.
        set_name (`str`, *optional*): which set; default the first with ambiguous questions.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: there are no ambiguous questions.
    """
    sets = {name: results for name, results in report.sets.items() if results and results[0].occupations}
    if not sets or (set_name is not None and set_name not in sets):
        raise ValueError(f"There is no set with ambiguous questions{f' called {set_name!r}' if set_name else ''}.")
    results = sorted(sets[set_name or next(iter(sets))], key=lambda r: r.strength)
    before, after = results[0], results[-1]
    names = sorted(before.occupations, key=lambda name: before.occupations[name])
    signed = any(value < 0 for r in (before, after) for value in r.occupations.values()) or "gap" in before.measures
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(7, 1.4 + 0.24 * len(names)))
    height = 0.4
    for shift, r, style in (
        (height / 2, before, {"color": "#b9c6d6", "edgecolor": "#333333"}),
        (-height / 2, after, {"color": "#0b4f8a", "edgecolor": "#333333", "hatch": "///"}),
    ):
        axis.barh(
            [place + shift for place in range(len(names))],
            [r.occupations.get(name, math.nan) for name in names],
            height,
            label=f"strength {r.strength:g}",
            linewidth=0.5,
            **style,
        )
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_ylim(-0.8, len(names) - 0.2)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_xlabel("Pr[pro] - Pr[anti]   (0 is fair)" if signed else "sum over groups of |share - 1/k|   (0 is fair)")
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=9, loc="lower right")
    _save(figure, path)


def plot_sites(vectors: Mapping[str, Mapping[str, Any]], path: StrPath) -> None:
    """
    What an adapter changes, by block and kind of norm: heat maps of the mean |a| and |b| and of the share of neurons
    that are not exactly zero, as a PNG.

    Args:
        vectors (`Mapping[str, Mapping[str, torch.Tensor]]`): by site its `slope` and `shift`, each of shape `(d,)`
            (see [`~peft_dso.inspect.read_vectors`]).
        path (`str`): where to write.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: there is no site.
    """
    if not vectors:
        raise ValueError("There is no site to draw.")
    import torch

    places: dict[str, tuple[int, str]] = {}
    for site in vectors:
        numbers = [part for part in site.split(".") if part.isdecimal()]
        kind = ".".join("{i}" if part.isdecimal() else part for part in site.split("."))
        places[site] = (int(numbers[0]) if numbers else 0, kind)
    kinds = list(dict.fromkeys(kind for _, kind in places.values()))
    blocks = sorted({block for block, _ in places.values()})
    panels: list[tuple[str, str]] = [
        ("slope", "mean |slope|"),
        ("shift", "mean |shift|"),
        ("changed", "share of neurons changed"),
    ]
    panels = [p for p in panels if p[0] == "changed" or any(p[0] in v for v in vectors.values())]
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(max(6.5, 0.28 * len(blocks) + 3.4), 0.9 + len(panels) * (0.75 + 0.32 * len(kinds)))
    )
    for axis, (key, title) in zip(axes if len(panels) > 1 else [axes], panels):
        grid = [[math.nan] * len(blocks) for _ in kinds]
        for site, (block, kind) in places.items():
            tensors = vectors[site]
            if key == "changed":
                value = float(torch.stack([t != 0 for t in tensors.values()]).any(0).float().mean())
            elif key in tensors:
                value = float(tensors[key].abs().mean())
            else:
                continue
            grid[kinds.index(kind)][blocks.index(block)] = value
        limits = {"vmin": 0, "vmax": 1} if key == "changed" else {"vmin": 0}
        drawn = axis.imshow(grid, aspect="auto", cmap="Greys", **limits)
        axis.set_yticks(range(len(kinds)), [_short(kind) for kind in kinds], fontsize=8)
        step = max(1, len(blocks) // 15)
        axis.set_xticks(range(0, len(blocks), step), [str(block) for block in blocks[::step]], fontsize=8)
        axis.set_title(title, fontsize=10)
        figure.colorbar(drawn, ax=axis, pad=0.02)
    (axes if len(panels) == 1 else axes[-1]).set_xlabel("block")
    _save(figure, path)


def _short(kind: str) -> str:
    """What tells a kind of norm from the others: the name behind the block's number."""
    return kind.rpartition("{i}.")[2]


def plot_report(report: Report, folder: StrPath) -> list[Path]:
    """
    All pictures that a report has the data for: `sweep.png`, `pareto.png`, `occupations.png`.

    Args:
        report (`Report`): the results.
        folder (`str`): where to write.

    Returns:
        `list[Path]`: the files.

    Raises:
        ImportError: matplotlib is missing.
    """
    written = []
    for name, draw in (("sweep", plot_sweep), ("pareto", plot_pareto), ("occupations", plot_occupations)):
        path = Path(folder) / f"{name}.png"
        try:
            draw(report, path)
        except ValueError:
            continue  # nothing measured that it could show
        written.append(path)
    return written


def _save(figure: Any, path: StrPath) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    _pyplot().close(figure)
