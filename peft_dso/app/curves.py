"""The pictures of a report: drawn once, with the strength that is set marked on top of them."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Optional

from ..evaluation import StrengthResult


COLORS = {"bias": "#0b4f8a", "bias_first_choice": "#b45309", "kl": "#3f7d2a"}
STYLES: dict[str, tuple[str, dict[str, str]]] = {
    "bias": ("bias (probabilities)", {"marker": "o", "linestyle": "-"}),
    "bias_first_choice": ("bias (first choices)", {"marker": "s", "linestyle": "--"}),
    "kl": ("KL, nats", {"marker": "^", "linestyle": ":"}),
}


@dataclass(frozen=True)
class Drawing:
    """
    A picture, and where its axes are.

    Args:
        source (`str`): of the image, SVG in a data address.
        title (`str`): what it shows.
        box (`tuple[float, float, float, float]`): left, bottom, width and height of the axes, as shares of the
            picture.
        x (`tuple[float, float]`): values at the left and the right end of the axes.
        y (`tuple[float, float]`): values at the lower and the upper end.
    """

    source: str
    title: str
    box: tuple[float, float, float, float]
    x: tuple[float, float]
    y: tuple[float, float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies, in percent of the picture from its left and its top."""
        left, bottom, width, height = self.box
        across = left + width * (x - self.x[0]) / (self.x[1] - self.x[0])
        up = bottom + height * (y - self.y[0]) / (self.y[1] - self.y[0])
        return 100 * across, 100 * (1 - up)


def _figure() -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("The report needs matplotlib. Install it with: pip install 'peft_dso[app]'") from None
    # Not pyplot, whose state all threads share.
    figure = Figure(figsize=(5.2, 3.5), layout="constrained")
    axis = figure.subplots()
    axis.grid(alpha=0.3)
    return figure, axis


def _drawn(figure: Any, axis: Any, title: str) -> Drawing:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    source = "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Drawing(source, title, tuple(axis.get_position().bounds), axis.get_xlim(), axis.get_ylim())


def draw_curves(results: Sequence[StrengthResult]) -> Drawing:
    """
    Bias and KL over the strength, with standard errors.

    Args:
        results (`Sequence[StrengthResult]`): at least one, by strength.

    Returns:
        `Drawing`: the picture.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure, axis = _figure()
    titles = []
    for key, (title, style) in STYLES.items():
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
            titles.append(title)
    axis.set_xlabel("steering strength w")
    axis.set_ylim(bottom=0)
    if titles:
        axis.legend(fontsize=9)
    return _drawn(figure, axis, f"{', '.join(titles)} over the strength; the numbers are in the table below")


def draw_pareto(results: Sequence[StrengthResult]) -> Drawing:
    """
    Bias against unambiguous accuracy, a point per strength; better is up and left.

    Args:
        results (`Sequence[StrengthResult]`): those with both measures, at least one.

    Returns:
        `Drawing`: the picture.

    Raises:
        ImportError: matplotlib is missing.
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
    axis.set_xlim(left=0)
    low, high = min(m.value - m.standard_error for m in y), max(m.value + m.standard_error for m in y)
    room = max(0.02, (high - low) / 3)
    axis.set_ylim(low - room, high + room)
    axis.set_xlabel("per-occupation bias (lower is fairer)")
    axis.set_ylabel("unambiguous accuracy")
    return _drawn(figure, axis, "Unambiguous accuracy against per-occupation bias, a point per strength")


def marked(drawing: Drawing, strength: float, at: Optional[tuple[float, float]] = None) -> str:
    """
    A picture with the strength that is set marked: by a line, or by a ring at a point.

    Args:
        drawing (`Drawing`): the picture.
        strength (`float`): what is set.
        at (`tuple[float, float]`, *optional*): where the ring is; NaN: nowhere. Default a line at the strength.

    Returns:
        `str`: HTML with a description of the image.
    """
    mark = ""
    if at is None and drawing.x[0] <= strength <= drawing.x[1]:
        left, top = drawing.place(strength, drawing.y[1])
        _, bottom = drawing.place(strength, drawing.y[0])
        mark = (
            f'<span class="dso-line" style="left:{left:.2f}%;top:{top:.2f}%;height:{bottom - top:.2f}%">'
            f"<span>{strength:g}</span></span>"
        )
    elif at is not None and not any(map(math.isnan, at)):
        left, top = drawing.place(*at)
        mark = f'<span class="dso-ring" style="left:{left:.2f}%;top:{top:.2f}%"></span>'
    told = f"{drawing.title}; the strength is {strength:g}."
    image = f'<img class="dso-figure" src="{drawing.source}" alt="{escape(told)}">'
    return f'<div class="dso-marked">{image}<span aria-hidden="true">{mark}</span></div>'
