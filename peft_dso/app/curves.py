"""The pictures of a report, drawn for the page with the strength that is set."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any, Optional

from ..evaluation import StrengthResult


COLORS = {"bias": "#0b4f8a", "bias_first_choice": "#b45309", "kl": "#3f7d2a"}


def _figure() -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("The report needs matplotlib. Install it with: pip install 'peft_dso[app]'") from None
    # Not pyplot, whose state all threads share.
    figure = Figure(figsize=(5.2, 3.5), layout="constrained")
    return figure, figure.subplots()


def _image(figure: Any, description: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="dso-figure" src="data:image/svg+xml;base64,{data}" alt="{escape(description)}">'


def over_strength(results: Sequence[StrengthResult], strength: Optional[float]) -> str:
    """
    Bias and KL over the strength, with standard errors, the current strength marked.

    Args:
        results (`Sequence[StrengthResult]`): at least one.
        strength (`float`, *optional*): what is set; outside of what was measured it is not marked.

    Returns:
        `str`: an image with a description.
    """
    figure, axis = _figure()
    drawn = []
    for key, title, style in (
        ("bias", "bias (probabilities)", {"marker": "o", "linestyle": "-"}),
        ("bias_first_choice", "bias (first choices)", {"marker": "s", "linestyle": "--"}),
        ("kl", "KL, nats", {"marker": "^", "linestyle": ":"}),
    ):
        measured = [r for r in results if key in r.measures]
        if measured:
            axis.errorbar(
                [r.strength for r in measured],
                [r.measures[key].value for r in measured],
                yerr=[r.measures[key].standard_error for r in measured],
                label=title,
                capsize=3,
                markersize=5,
                color=COLORS[key],
                **style,
            )
            drawn.append(title)
    if strength is not None and results[0].strength <= strength <= results[-1].strength:
        axis.axvline(strength, color="#444444", linewidth=2)
        axis.annotate(f"now {strength:g}", (strength, 0.97), xycoords=("data", "axes fraction"), va="top",
                      xytext=(4, 0), textcoords="offset points")  # fmt: skip
    axis.set_xlabel("steering strength w")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    if drawn:
        axis.legend(fontsize=9)
    where = "" if strength is None else f"; the strength is {strength:g}"
    return _image(figure, f"{', '.join(drawn)} over the strength{where}. The numbers are in the table below.")


def pareto(results: Sequence[StrengthResult], strength: Optional[float], here: Optional[tuple[float, float]]) -> str:
    """
    Bias against unambiguous accuracy, a point per strength; better is up and left.

    Args:
        results (`Sequence[StrengthResult]`): those with both measures.
        strength (`float`, *optional*): what is set.
        here (`tuple[float, float]`, *optional*): bias and accuracy at it.

    Returns:
        `str`: an image with a description.
    """
    figure, axis = _figure()
    x, y = ([r.measures[key] for r in results] for key in ("bias", "accuracy"))
    axis.errorbar(
        [m.value for m in x],
        [m.value for m in y],
        xerr=[m.standard_error for m in x],
        yerr=[m.standard_error for m in y],
        capsize=2,
        markersize=5,
        marker="o",
        color=COLORS["bias"],
    )
    for r in results:
        place = (r.measures["bias"].value, r.measures["accuracy"].value)
        axis.annotate(f"{r.strength:g}", place, textcoords="offset points", xytext=(3, 7), fontsize=9)
    if here is not None:
        axis.plot(*here, marker="o", markersize=13, fillstyle="none", color="#444444", markeredgewidth=2)
    axis.set_xlim(left=0)
    low, high = (min(m.value - m.standard_error for m in y), max(m.value + m.standard_error for m in y))
    axis.set_ylim(low - max(0.02, (high - low) / 3), high + max(0.02, (high - low) / 3))
    axis.set_xlabel("per-occupation bias (lower is fairer)")
    axis.set_ylabel("unambiguous accuracy")
    axis.grid(alpha=0.3)
    now = "" if strength is None or here is None else f" The ring is the strength {strength:g}."
    return _image(figure, f"Unambiguous accuracy against per-occupation bias, a point per strength.{now}")
