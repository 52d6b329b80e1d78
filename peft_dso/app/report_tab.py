"""The tab with the report of an adapter, and the strength from a budget."""

from __future__ import annotations

from typing import Any, Optional

import gradio as gr

from ..evaluation import Report, StrengthResult
from . import bars, curves
from .reports import BUDGETS, from_budget, measured_lines, value_at


def ordered(report: Report, name: str) -> list[StrengthResult]:
    """
    A set of a report in the order of the strengths.

    Raises:
        ValueError: there is no such set.
    """
    if name not in report.sets:
        raise ValueError(f"The report has no set {name!r}. It has: {', '.join(report.sets)}.")
    return sorted(report.sets[name], key=lambda result: result.strength)


class Shown:
    """
    A set of a report: its pictures, which are drawn once, and its numbers at any strength.

    Args:
        report (`Report`): the results.
        name (`str`): of the set.

    Raises:
        ValueError: there is no such set.
    """

    def __init__(self, report: Report, name: str) -> None:
        self.results = ordered(report, name)
        self._both = [r for r in self.results if {"bias", "accuracy"} <= r.measures.keys()]
        self._curves = curves.draw_curves(self.results)
        self._pareto = curves.draw_pareto(self._both) if self._both else None

    def at(self, strength: float) -> tuple[str, str]:
        """The pictures with a strength marked, and the numbers, as HTML."""
        pictures = [curves.marked(self._curves, strength)]
        if self._pareto is not None:
            here = (value_at(self._both, "bias", strength), value_at(self._both, "accuracy", strength))
            pictures.append(curves.marked(self._pareto, strength, here))
        titles, lines = measured_lines(self.results, strength)
        caption = "What was measured (± standard error; bias, abstention and KL on ambiguous questions)"
        return f'<div class="dso-figures">{"".join(pictures)}</div>', bars.measures(titles, lines, caption)


def add_report(name: str, slider: Any, report: Optional[Report], single: bool) -> None:
    """
    Add the tab.

    Args:
        name (`str`): of the adapter.
        slider (`gr.Slider`): its strength.
        report (`Report`, *optional*): what was measured of it.
        single (`bool`): whether it is the only adapter.
    """
    with gr.Tab("Report" if single else f"Report of {name}"):
        if report is None or not any(report.sets.values()):
            gr.HTML(
                bars.note("No report came with this adapter. peft-dso sweep measures one, peft-dso card keeps it.")
            )
            return
        sets = [key for key, results in report.sets.items() if results]
        described = ", ".join(f"{k}: {v}" for k, v in report.description.items() if isinstance(v, (str, int, float)))
        if described:
            gr.HTML(bars.note(described))
        chosen = gr.Radio(sets, value=sets[0], label="Questions", visible=len(sets) > 1)
        shown = {name: Shown(report, name) for name in sets}
        first = shown[sets[0]].at(slider.value)
        pictures, numbers = gr.HTML(first[0]), gr.HTML(first[1])
        _add_budget(report, chosen, slider)
        before_after = gr.HTML(_occupations(report, sets[0]))

    def draw(set_name: str, strength: Any) -> tuple[str, str]:
        try:
            return shown[set_name].at(float(strength))
        except (KeyError, ValueError, TypeError) as error:
            return bars.message(f"There is nothing to show: {error}."), ""

    gr.on(
        [slider.change, chosen.change],
        draw,
        [chosen, slider],
        [pictures, numbers],
        show_progress="hidden",
        trigger_mode="always_last",
        api_visibility="private",
    )
    chosen.change(
        lambda set_name: _occupations(report, set_name), chosen, before_after,
        show_progress="hidden", api_visibility="private",
    )  # fmt: skip


def _occupations(report: Report, set_name: str) -> str:
    results = ordered(report, set_name)
    if not results[0].occupations:
        return bars.note("These questions say nothing about single occupations.")
    before, after = results[0], results[-1]
    return bars.occupations(before.occupations, after.occupations, (before.strength, after.strength))


def _add_budget(report: Report, chosen: Any, slider: Any) -> None:
    """A strength from what it may cost, by the report."""
    with gr.Row(equal_height=True):
        budget = gr.Dropdown(list(BUDGETS), value=next(iter(BUDGETS)), label="Choose the", min_width=240)
        limit = gr.Number(0.05, label="Limit", min_width=100, precision=4)
        find = gr.Button("Set the strength", min_width=140)
    said = gr.HTML("", elem_id=None)

    def choose(set_name: str, wanted: str, most: Any, now: Any) -> tuple[Any, str]:
        try:
            strength = from_budget(ordered(report, set_name), wanted, most)
        except (ValueError, TypeError) as error:
            return now, bars.message(str(error))
        return strength, bars.note(f"{wanted} {most:g}: strength {strength:g}, read between the measured strengths.")

    find.click(choose, [chosen, budget, limit, slider], [slider, said], api_visibility="private")
