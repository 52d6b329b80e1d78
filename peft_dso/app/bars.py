"""What the page shows as HTML: tables first, which can be heard too, with bars in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import torch

from .engine import Comparison


def message(text: str) -> str:
    """What went wrong, in place of what was asked for."""
    return f'<p class="dso-message" role="alert">{escape(text)}</p>'


def problem(error: Exception) -> str:
    """What an error says; a `KeyError` as it was written, which `str` puts into quotes."""
    return message(str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error))


def note(text: str) -> str:
    """A line of explanation."""
    return f'<p class="dso-note">{escape(text)}</p>'


def text(title: str, written: str = "") -> str:
    """A text that a model is writing, under its title."""
    return (
        f'<div class="dso-text" role="region" tabindex="0" aria-label="{escape(title)}"><h2>{escape(title)}</h2>'
        f"<p>{escape(written)}</p></div>"
    )


def _bar(share: float, kind: str) -> str:
    """A bar and its number; the bar says nothing that the number does not."""
    width = max(0.0, min(1.0, share)) * 100
    return (
        f'<span class="dso-track" aria-hidden="true"><span class="dso-bar dso-{kind}" style="width:{width:.1f}%">'
        f'</span></span><span class="dso-number">{share:.3f}</span>'
    )


def answers(compared: Comparison, strengths: Mapping[str, float]) -> str:
    """
    The answers' probabilities, unsteered and steered side by side, with the difference.

    Args:
        compared (`Comparison`): what the model says.
        strengths (`Mapping[str, float]`): by adapter, those that it was asked at.

    Returns:
        `str`: a table.
    """
    told = ", ".join(f"{value:g}" if len(strengths) == 1 else f"{name} {value:g}" for name, value in strengths.items())
    lines = []
    for word, base, steered in zip(compared.words, compared.base, compared.steered, strict=False):
        lines.append(
            f'<tr><th scope="row">{escape(word)}</th><td>{_bar(base, "base")}</td>'
            f'<td>{_bar(steered, "steered")}</td><td class="dso-difference">{steered - base:+.3f}</td></tr>'
        )
    return (
        '<table class="dso-table dso-answers"><caption>How likely each answer comes next: probabilities, '
        f"a full bar is 1. KL(steered || unsteered) at this place: {compared.kl:.4f} nats.</caption><thead><tr>"
        '<th scope="col">Answer</th><th scope="col">Unsteered</th>'
        f'<th scope="col">Steered at {escape(told)}</th><th scope="col">Difference</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def occupations(before: Mapping[str, float], after: Mapping[str, float], strengths: tuple[float, float]) -> str:
    """
    Each occupation's lean before and after, most before first.

    Args:
        before (`Mapping[str, float]`): Pr[pro] - Pr[anti] by occupation.
        after (`Mapping[str, float]`): the same, steered.
        strengths (`tuple[float, float]`): at which strengths.

    Returns:
        `str`: a table.
    """
    lines = []
    for name in sorted(before, key=lambda name: -abs(before[name])):
        values = (before[name], after.get(name, float("nan")))
        cells = "".join(
            f'<td><span class="dso-track" aria-hidden="true"><span class="dso-bar dso-{kind}" '
            f'style="width:{min(1.0, abs(value)) * 100 if value == value else 0:.1f}%"></span></span>'
            f'<span class="dso-number">{value:+.3f}</span></td>'
            for kind, value in zip(("base", "steered"), values, strict=False)
        )
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return (
        '<table class="dso-table dso-occupations"><caption>Each occupation: Pr[pro] - Pr[anti], 0 is fair. Where '
        "there are more than two groups: how far their shares are from equal.</caption><thead><tr>"
        '<th scope="col">Occupation</th>'
        + "".join(f'<th scope="col">At {w:g}</th>' for w in strengths)
        + f"</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )


def layers(vectors: Mapping[str, Mapping[str, torch.Tensor]]) -> str:
    """
    What an adapter changes, by block and kind of norm: the share of neurons that it touches, and how strongly.

    Args:
        vectors (`Mapping[str, Mapping[str, torch.Tensor]]`): by site its `slope` and `shift`, each of shape `(d,)`.

    Returns:
        `str`: a table.
    """
    kinds: dict[str, dict[int, tuple[float, float, float]]] = {}
    for site, parts in vectors.items():
        names = site.split(".")
        block = next((int(name) for name in names if name.isdecimal()), 0)
        sizes = [float(parts[v].abs().mean()) if v in parts else 0.0 for v in ("slope", "shift")]
        changed = float(torch.stack([t != 0 for t in parts.values()]).any(0).float().mean())
        kinds.setdefault(names[-1], {})[block] = (changed, *sizes)  # type: ignore[assignment]
    blocks = sorted({block for by_block in kinds.values() for block in by_block})
    heads = "".join(f'<th scope="colgroup" colspan="3">{escape(kind)}</th>' for kind in kinds)
    titles = '<th scope="col">changed</th><th scope="col">mean |a|</th><th scope="col">mean |b|</th>' * len(kinds)
    lines = []
    for block in blocks:
        cells = ""
        for by_block in kinds.values():
            if block in by_block:
                changed, slope, shift = by_block[block]
                cells += f"<td>{_bar(changed, 'steered')}</td><td>{slope:.4f}</td><td>{shift:.4f}</td>"
            else:
                cells += '<td colspan="3">not steered</td>'
        lines.append(f'<tr><th scope="row">{block}</th>{cells}</tr>')
    return (
        '<div class="dso-wide" tabindex="0" role="region" aria-label="What the adapter changes, by block">'
        '<table class="dso-table"><caption>By block and norm: the share of neurons that the adapter changes, and the '
        "mean size of their slopes a and shifts b; the strength multiplies both.</caption><thead>"
        f'<tr><th rowspan="2" scope="col">Block</th>{heads}</tr><tr>{titles}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def measures(titles: Sequence[str], lines: Sequence[Sequence[str]], caption: str) -> str:
    """A table of text."""
    body = "".join(
        f'<tr><th scope="row">{escape(line[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in line[1:])}</tr>'
        for line in lines
    )
    heads = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    return (
        f'<div class="dso-wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="dso-table">'
        f"<caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )
