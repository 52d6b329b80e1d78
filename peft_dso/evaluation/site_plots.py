"""What an adapter changes, as a picture. Imported only when it is drawn: matplotlib is an extra."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .figures import StrPath, new_figure, save


def draw_sites(vectors: Mapping[str, Mapping[str, Any]]) -> Any:
    """
    What an adapter changes, by block and kind of norm: heat maps of the mean |a| and |b| and of the share of neurons
    that are not exactly zero.

    Args:
        vectors (`Mapping[str, Mapping[str, torch.Tensor]]`): by site its `slope` and `shift`, each of shape `(d,)`
            (see [`~peft_dso.inspect.read_vectors`]).

    Returns:
        `matplotlib.figure.Figure`: the picture.

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
    figure = new_figure(max(6.5, 0.28 * len(blocks) + 3.4), 0.9 + len(panels) * (0.75 + 0.32 * len(kinds)))
    for number, (key, title) in enumerate(panels):
        axis = figure.add_subplot(len(panels), 1, number + 1)
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
        if number == len(panels) - 1:
            axis.set_xlabel("block")
    return figure


def plot_sites(vectors: Mapping[str, Mapping[str, Any]], path: StrPath) -> None:
    """[`draw_sites`], written as a PNG."""
    save(draw_sites(vectors), path)


def _short(kind: str) -> str:
    """What tells a kind of norm from the others: the name behind the block's number."""
    return kind.rpartition("{i}.")[2]
