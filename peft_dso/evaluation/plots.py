"""Pictures of a report. Imported only when one is drawn: matplotlib is an extra."""

from __future__ import annotations

import os
from typing import Any

from .sweep import Report


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


def plot_sweep(report: Report, path: str | os.PathLike[str]) -> None:
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
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
