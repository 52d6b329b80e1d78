"""Figures of matplotlib, which is an extra, without its global state."""

from __future__ import annotations

import os
from typing import Any


StrPath = str | os.PathLike[str]


def new_figure(width: float, height: float) -> Any:
    """A figure of its own, with no window and no global state: a notebook keeps the backend that it has."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("Plots need matplotlib. Install it with: pip install 'peft_dso[eval]'") from None
    figure = Figure(figsize=(width, height), layout="tight")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: StrPath) -> None:
    """Write a figure as a PNG."""
    figure.savefig(path, dpi=120)
